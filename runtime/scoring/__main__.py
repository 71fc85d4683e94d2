"""`python -m runtime.scoring --socket PATH -m MODEL [--lora GGUF]… -c TOKENS`: score texts.

It leaves when its standard input ends, as its parent holds the other end, and on SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from exporter.core.errors import DecantError, EngineError
from exporter.core.gguf import read_gguf
from exporter.llamacpp.toolchain import Toolchain, find_toolchain
from runtime.encoder_decoder.__main__ import KEY, count, leave_with_parent, toolchain_in
from runtime.encoder_decoder.model import FLASH_OFF, is_encoder_decoder, open_encoder_decoder
from runtime.scoring.forward import F16, F32, FLASH_AUTO, ForwardSpec, open_forward
from runtime.scoring.score_request import Engine
from runtime.scoring.score_server import ScoreListener, work

Q8_0 = 8  # ggml_type
CACHE_TYPES = {"f32": F32, "f16": F16, "q8_0": Q8_0}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until this process is ended; returns, with an exit code, only when it cannot."""
    arguments = parser().parse_args(argv)
    for ending in (signal.SIGTERM, signal.SIGINT):
        # the kernel's own way: Python's would wait for llama.cpp
        signal.signal(ending, signal.SIG_DFL)
    try:
        serve(arguments)
    except DecantError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return error.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m runtime.scoring", description=__doc__)
    made.add_argument("--socket", type=Path, required=True, help="where to listen")
    made.add_argument("-m", "--model", type=Path, required=True)
    made.add_argument("--lora", type=Path, action="append", default=[], help="an adapter's GGUF")
    made.add_argument("-c", "--ctx-size", type=count, default=0, help="0: as it was trained")
    made.add_argument("-t", "--threads", type=count, default=1)
    made.add_argument("-ngl", "--gpu-layers", type=int, default=-1, help="-1: all")
    made.add_argument("--cache-type", choices=CACHE_TYPES, default="f32", help="f32 is exact")
    made.add_argument("--flash", action="store_true", help="sum attention as llama.cpp likes best")
    made.add_argument("--build", type=Path, help="the llama.cpp to use; else this machine's")
    return made


def serve(arguments: argparse.Namespace) -> None:
    """Listen, load, answer. Raises EngineError and other DecantErrors."""
    key = os.environ.get(KEY)
    if not key:
        raise EngineError(f"{KEY} is not set", hint="set it to what clients are to send")
    listener = ScoreListener(arguments.socket, key)
    for target in (leave_with_parent, listener.serve_forever):
        Thread(target=target, daemon=True).start()
    toolchain = toolchain_in(arguments.build) if arguments.build else find_toolchain()
    with engine_of(arguments, toolchain) as engine:
        listener.engine = engine
        work(engine, listener.scores)


@contextmanager
def engine_of(arguments: argparse.Namespace, toolchain: Toolchain) -> Iterator[Engine]:
    """The loaded model. Raises ModelError."""
    context, threads = arguments.ctx_size, arguments.threads or 1
    if is_encoder_decoder(read_gguf(arguments.model)):
        with open_encoder_decoder(
            arguments.model, toolchain, context=context, threads=threads
        ) as model:
            yield model
        return
    spec = ForwardSpec(
        arguments.model,
        tuple(arguments.lora),
        context,
        threads,
        arguments.gpu_layers,
        CACHE_TYPES[arguments.cache_type],
        FLASH_AUTO if arguments.flash else FLASH_OFF,
    )
    with open_forward(spec, toolchain) as forward:
        yield forward


if __name__ == "__main__":
    sys.exit(main())
