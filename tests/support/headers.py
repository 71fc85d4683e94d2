"""The header of a model's GGUF, made in this process or in a fresh one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from exporter.convert.to_gguf import convert
from exporter.core.ggml_types import GGMLType
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.llamacpp.toolchain import Toolchain, find_toolchain
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge


def header(base: Path, toolchain: Toolchain) -> bytes:
    """The header of the base's GGUF with 16-bit weights."""
    plan = plan_merge(open_checkpoint(base), [])
    made = convert(MergedTensors(plan), base, toolchain, model_name="m")
    types = dict.fromkeys((slot.name for slot in made.slots), GGMLType.by_name("F16"))
    (found,) = made.headers(types, ftype=1)
    return found.content


def header_in_a_fresh_process(base: Path) -> bytes:
    argv = [sys.executable, "-m", "tests.support.headers", str(base)]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


if __name__ == "__main__":
    sys.stdout.buffer.write(header(Path(sys.argv[1]), find_toolchain()))
