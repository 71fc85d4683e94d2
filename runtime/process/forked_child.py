"""Continues in a forked child process, so that an abort there becomes an error in the parent."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from exporter.core.errors import ModelError
from runtime.process import exit_with_parent


def continue_in_child(path: Path) -> None:
    """Fork and return in the child; the parent exits with the child's exit code.

    ggml aborts on a file whose vocabulary contradicts itself. Raises ModelError in the parent,
    with the file's name, if a signal ends the child.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.environ["GGML_NO_BACKTRACE"] = "1"  # a backtrace would call a debugger
        if sys.platform == "linux":
            exit_with_parent.end_with_parent(parent)
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child reports a Ctrl-C
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
