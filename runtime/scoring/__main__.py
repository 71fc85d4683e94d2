"""`python -m runtime.scoring --socket PATH -m MODEL [--lora GGUF]… -c TOKENS`: score texts.

It leaves when its standard input ends, as its parent holds the other end, and on SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.core.gguf import read_gguf
from exporter.llamacpp.toolchain import Toolchain
from runtime.encoder_decoder.engine_program import (
    engine_parser,
    listen,
    required_key,
    run,
    toolchain_of,
)
from runtime.encoder_decoder.model import FLASH_OFF, is_encoder_decoder, open_encoder_decoder
from runtime.scoring.divergence import KeptFolder
from runtime.scoring.forward import F16, F32, FLASH_AUTO, ForwardSpec, open_forward
from runtime.scoring.score_request import Engine
from runtime.scoring.score_server import ScoreListener, work

Q8_0 = 8  # ggml_type
CACHE_TYPES = {"f32": F32, "f16": F16, "q8_0": Q8_0}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until this process is ended; return an exit code only after an error."""
    return run(serve, parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    made = engine_parser("runtime.scoring", __doc__)
    made.add_argument("--lora", type=Path, action="append", default=[], help="an adapter's GGUF")
    made.add_argument("-ngl", "--gpu-layers", type=int, default=-1, help="-1: all")
    made.add_argument("--cache-type", choices=CACHE_TYPES, default="f32", help="f32 is exact")
    made.add_argument("--flash", action="store_true", help="sum attention as llama.cpp likes best")
    made.add_argument("--kept", type=Path, help="where distributions are kept, to be compared with")
    made.add_argument("--kept-nbytes", type=int, default=0, help="the most that they may take")
    return made


def serve(arguments: argparse.Namespace) -> None:
    """Listen, load the model and answer requests. Raises EngineError and other DecantErrors."""
    listener = ScoreListener(arguments.socket, required_key())
    listen(listener)
    with engine_of(arguments, toolchain_of(arguments)) as engine:
        if arguments.kept is not None:
            listener.kept = KeptFolder(arguments.kept, arguments.kept_nbytes)
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
