"""`python -m runtime.encoder_decoder --socket PATH -m MODEL -c TOKENS -t THREADS`: serve one model.

It exits when its standard input ends, whose other end the parent holds, and on SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime.encoder_decoder.engine_program import (
    engine_parser,
    listen,
    required_key,
    run,
    toolchain_of,
)
from runtime.encoder_decoder.http import Listener, work
from runtime.encoder_decoder.model import open_encoder_decoder


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until this process is ended; return an exit code only after an error."""
    return run(serve, engine_parser("runtime.encoder_decoder", __doc__).parse_args(argv))


def serve(arguments: argparse.Namespace) -> None:
    """Listen, load the model and answer requests. Raises EngineError and other DecantErrors."""
    listener = Listener(arguments.socket, required_key())
    listen(listener)
    with open_encoder_decoder(
        arguments.model,
        toolchain_of(arguments),
        context=arguments.ctx_size,
        threads=arguments.threads or 1,
    ) as model:
        listener.model = model
        work(model, listener.jobs)


if __name__ == "__main__":
    sys.exit(main())
