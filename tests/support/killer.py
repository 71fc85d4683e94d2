"""Exports that are killed at random moments and resumed, in children of one process.

Arguments: ADAPTER BASE FOLDER KILLS. All is imported before the process forks each child. A child
exports into a separate folder, and writes its notes beside it.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from exporter.convert.config_prefetch import conversion
from exporter.core import resumable_file
from exporter.core.events import Event, Note, Progress
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain, find_toolchain

SEED = 7
QUANTS = ("F16", "Q8_0")


class Killer:
    """Starts exports of one adapter, and ends them."""

    def __init__(self, adapter: Path, base: Path, toolchain: Toolchain) -> None:
        """Store the inputs of the exports."""
        self.adapter, self.base, self.toolchain = adapter, base, toolchain

    def start(self, output: Path) -> tuple[int, int]:
        """The child's id, and a pipe that becomes readable after its first written bytes."""
        heard, tells = os.pipe()
        pid = os.fork()
        if pid:
            os.close(tells)
            return pid, heard
        try:
            self.export(output, tells)
        except BaseException:  # noqa: BLE001 - nothing goes on in a fork
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def export(self, output: Path, tells: int) -> None:
        said: list[str] = []
        began: list[int] = []

        def report(event: Event) -> None:
            if isinstance(event, Note):
                said.append(event.message)
            if isinstance(event, Progress) and event.task == "quantizing" and not began:
                began.append(os.write(tells, b"!"))

        request = ExportRequest(((self.adapter, 1.0),), self.base, QUANTS, files_in(output))
        export(request, self.toolchain, report=report)
        unfinished = output.with_suffix(".said.part")
        unfinished.write_text(json.dumps(said))
        unfinished.replace(output.with_suffix(".said"))  # a kill may come between these two lines

    def finish(self, output: Path) -> tuple[float, float]:
        """Export to the end. Returns the seconds of planning, and those of writing."""
        times = [time.monotonic()]
        pid, heard = self.start(output)
        os.read(heard, 1)
        times.append(time.monotonic())
        status = os.waitpid(pid, 0)[1]
        os.close(heard)
        assert status == 0, output
        return times[1] - times[0], time.monotonic() - times[1]

    def kill(self, output: Path, after: float, *, writing: bool) -> None:
        """Export, and kill the child `after` seconds from the start, or from the first byte."""
        pid, heard = self.start(output)
        if writing:
            os.read(heard, 1)
        time.sleep(after)
        os.close(heard)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main(adapter: str, base: str, folder: str, kills: str) -> None:
    toolchain = find_toolchain()
    import peft  # noqa: F401 - before the children are born
    import torch  # noqa: F401
    import transformers  # noqa: F401

    with imported(toolchain):
        import gguf  # noqa: F401

        conversion()
        importlib.import_module("conversion.llama")
    resumable_file.SYNC_NBYTES = 1  # every tensor is recorded as soon as it is whole
    killer = Killer(Path(adapter), Path(base), toolchain)
    planned, wrote = killer.finish(Path(folder) / "whole")
    rng = random.Random(SEED)
    for number in range(int(kills)):
        output, writing = Path(folder) / f"killed-{number}", number % 4 > 0
        killer.kill(output, (wrote if writing else planned) * rng.random(), writing=writing)
        if not all(path.exists() for path in files_in(output)):
            killer.finish(output)


def files_in(output: Path) -> tuple[Path, ...]:
    return tuple(output / f"{quant}.gguf" for quant in QUANTS)


if __name__ == "__main__":
    main(*sys.argv[1:])
