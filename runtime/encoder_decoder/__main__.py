"""`python -m runtime.encoder_decoder --socket PATH -m MODEL -c TOKENS -t THREADS`: serve one model.

It exits when its standard input ends, whose other end the parent holds, and on SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from exporter.core.errors import DecantError, EngineError, ToolchainError
from exporter.llamacpp.toolchain import Toolchain, find_toolchain, recipe
from runtime.encoder_decoder.http import Listener, work
from runtime.encoder_decoder.model import open_encoder_decoder

KEY = "LLAMA_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until this process is ended; return an exit code only after an error."""
    arguments = parser().parse_args(argv)
    for ending in (signal.SIGTERM, signal.SIGINT):
        # the default action ends the process at once; a Python handler would wait for llama.cpp
        signal.signal(ending, signal.SIG_DFL)
    try:
        serve(arguments)
    except DecantError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return error.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m runtime.encoder_decoder", description=__doc__)
    made.add_argument("--socket", type=Path, required=True, help="path of the socket to listen on")
    made.add_argument("-m", "--model", type=Path, required=True)
    made.add_argument("-c", "--ctx-size", type=count, default=0, help="0: as the model was trained")
    made.add_argument("-t", "--threads", type=count, default=1)
    made.add_argument("--build", type=Path, help="llama.cpp's build; default: this machine's")
    return made


def count(text: str) -> int:
    """Parse a count that fits llama.cpp's int32."""
    number = int(text)
    if not 0 <= number < 1 << 31:
        raise ValueError(text)
    return number


def serve(arguments: argparse.Namespace) -> None:
    """Listen, load the model and answer requests. Raises EngineError and other DecantErrors."""
    key = os.environ.get(KEY)
    if not key:
        raise EngineError(f"{KEY} is not set", hint="set it to the key that clients send")
    listener = Listener(arguments.socket, key)
    for target in (leave_with_parent, listener.serve_forever):
        Thread(target=target, daemon=True).start()
    toolchain = toolchain_in(arguments.build) if arguments.build else find_toolchain()
    with open_encoder_decoder(
        arguments.model, toolchain, context=arguments.ctx_size, threads=arguments.threads or 1
    ) as model:
        listener.model = model
        work(model, listener.jobs)


def leave_with_parent() -> None:
    """End this process when its standard input ends, whatever the other threads do."""
    try:
        while os.read(0, 1 << 12):
            pass
    finally:
        os._exit(0)


def toolchain_in(folder: Path) -> Toolchain:
    """The toolchain in a build's folder. Raises ToolchainError for an unfinished build."""
    build = recipe().finished(folder)
    if build is None:
        raise ToolchainError(f"`{folder}` is not a finished build", hint="run `decant setup`")
    return Toolchain(build)


if __name__ == "__main__":
    sys.exit(main())
