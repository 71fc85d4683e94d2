"""The parts of every engine's program: signals, options, the key, and ending with its parent."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from exporter.core.errors import DecantError, EngineError, ToolchainError
from exporter.llamacpp.toolchain import Toolchain, find_toolchain, recipe
from runtime.encoder_decoder.http import Listener

KEY = "LLAMA_API_KEY"


def run(serve: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Serve until this process is ended; return an exit code only after an error."""
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


def engine_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every engine has."""
    made = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
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


def required_key() -> str:
    """The key that clients send. Raises EngineError if the environment has none."""
    key = os.environ.get(KEY)
    if not key:
        raise EngineError(f"{KEY} is not set", hint="set it to the key that clients send")
    return key


def listen(listener: Listener) -> None:
    """Answer in a thread from now on, and end this process with its parent."""
    for target in (leave_with_parent, listener.serve_forever):
        Thread(target=target, daemon=True).start()


def toolchain_of(arguments: argparse.Namespace) -> Toolchain:
    """The toolchain of --build, or this machine's. Raises ToolchainError without one."""
    return toolchain_in(arguments.build) if arguments.build else find_toolchain()


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
