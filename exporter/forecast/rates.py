"""The rates of this machine: measured in a moment, and kept for an hour."""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.atomic_file import existing_part
from exporter.core.kept_values import KeptValues
from exporter.core.machine import cores
from exporter.forecast.timed_sample import Pace, pace_of
from exporter.forecast.work import Task
from exporter.llamacpp.toolchain import Toolchain, cache_folder, host_facts

if TYPE_CHECKING:
    from exporter.quantize.quantizer import Quantizer

MOST = 256  # files of some bytes
KEPT_S = 3600  # an hour: a machine may have been busy when it was measured
SMALL_PART = 0.02
"""Share of all values below which a kind of work counts with the largest one."""
WRITE_NBYTES, WRITE_S = 8 << 20, 0.1
STRINGS, ROUNDS = 20_000, 3


class Rates:
    """The rates for one build of llama.cpp, each measured when it is first needed."""

    def __init__(self, toolchain: Toolchain, quantizer: Quantizer, threads: int) -> None:
        self.toolchain, self.quantizer, self.threads = toolchain, quantizer, threads
        self.values = KeptValues(cache_folder() / "rates", "rate", MOST)
        build, kernels = toolchain.folder.name, quantizer.kernels.variant
        self.machine = (host_facts().model, cores(), build, kernels, threads)

    def pass_s(self, values: Counter[Task]) -> tuple[float, float]:
        """Seconds to merge, quantize and write all values: of all threads, and of the main one.

        They do not include waiting for the disk.
        """
        all_s = main_s = 0.0
        for task, count in gathered(values).items():
            pace = self.pace(task)
            all_s += pace.all_s * count
            main_s += pace.main_s * count
        return all_s, main_s

    def pace(self, task: Task) -> Pace:
        found = self.read("pace", task)
        if found is None:
            pace = pace_of(task, self.quantizer, self.threads)
            found = self.keep(asdict(pace), "pace", task)
        return Pace(**found)

    def stroke_s(self) -> float:
        """Seconds of a loop in Python, the unit of the verification's own time."""
        found = self.read("stroke")
        if found is None:
            found = self.keep({"stroke_s": sum(stroke() for _ in range(ROUNDS)) / ROUNDS}, "stroke")
        return found["stroke_s"]

    def write_s(self, folder: Path) -> float:
        """Seconds until a byte is on the disk of `folder`, which need not exist yet."""
        place = existing_part(folder)
        device = place.stat().st_dev
        found = self.read("write", device)
        if found is None:
            found = self.keep({"write_s": synced_s(place)}, "write", device)
        return found["write_s"]

    def read(self, *what: object) -> dict[str, float] | None:
        """A kept rate; None if it is missing, or older than an hour."""
        value = self.values.read(self.values.path((*self.machine, *what)))
        if not isinstance(value, dict) or not 0 <= time.time() - value.pop("at", 0) < KEPT_S:
            return None
        return value

    def keep(self, rate: dict[str, float], *what: object) -> dict[str, float]:
        """Keep a rate, and return it."""
        path = self.values.path((*self.machine, *what))
        self.values.write(path, rate | {"at": time.time()})
        return rate


def gathered(values: Counter[Task]) -> Counter[Task]:
    """The work with its smallest kinds counted as the largest: norms need no measurement."""
    total, found = values.total(), Counter[Task]()
    (largest, _), *_ = values.most_common(1)
    for task, count in values.items():
        found[task if count >= SMALL_PART * total else largest] += count
    return found


def stroke() -> float:
    """Seconds to decode the strings of a vocabulary's part."""
    packed = struct.pack("<Q8s", 8, b"a string") * STRINGS
    began = time.perf_counter()
    at, texts = 0, []
    for _ in range(STRINGS):
        (length,) = struct.unpack_from("<Q", packed, at)
        texts.append(packed[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return time.perf_counter() - began


def synced_s(folder: Path) -> float:
    """Seconds for a byte written to `folder` and synced, through a file without a name."""
    block = os.urandom(WRITE_NBYTES)
    place = folder if os.access(folder, os.W_OK) else None  # if not, the export will say so
    with tempfile.TemporaryFile(dir=place) as file:
        began, written = time.perf_counter(), 0
        while time.perf_counter() - began < WRITE_S:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written += len(block)
        return (time.perf_counter() - began) / written
