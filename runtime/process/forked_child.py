"""Goes on in a child, so that what aborts there is an error here."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from exporter.core.errors import ModelError
from runtime.process import exit_with_parent


def go_on_apart(path: Path) -> None:
    """Return in a child of this process, which ends with the child's own exit code.

    ggml aborts where a file's vocabulary contradicts itself. Raises ModelError here, by the name
    of the file, where the child is ended by a signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.environ["GGML_NO_BACKTRACE"] = "1"  # which would call a debugger
        if sys.platform == "linux":
            exit_with_parent.end_with_parent(parent)
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it, too, and says so
    try:
        _, status = os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGINT, before)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        raise click.exceptions.Exit(code)
    raise ModelError(
        f"llama.cpp ended by {signal.Signals(-code).name} with the vocabulary of `{path}`",
        hint="its tokens contradict each other, such as two of one text: export it again",
    )
