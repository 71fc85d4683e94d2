"""`--to safetensors`, killed: nothing wrong is left, and the next run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.formats.safetensors_folder import save_merged
from tests.support.merged_folders import SIZE, files, names, request
from tests.support.tiny import make_adapter, make_base
from tests.support.warm import run_warm

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
from pathlib import Path
from exporter.core.events import Progress
from exporter.export import ExportRequest
from exporter.formats.safetensors_folder import save_merged

base, adapter, output, share = sys.argv[1:]

def report(event):
    if isinstance(event, Progress) and event.done > float(share) * event.total:
        os.kill(os.getpid(), signal.SIGKILL)

request = ExportRequest(((Path(adapter), 1.0),), Path(base), (), ())
save_merged(request, Path(output), max_shard=50_000, report=report)
"""


def killed(base: Path, adapter: Path, output: Path, share: float) -> int:
    """Begin a save in a process of its own, which dies; gives its exit code."""
    script = base.parent / "killed.py"
    script.write_text(KILLED)
    return run_warm([script, base, adapter, output, share]).returncode


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_leaves_no_folder_and_the_next_goes_on(tmp_path, share):
    base = make_base(tmp_path / "base", **SIZE)
    adapter = make_adapter(tmp_path / "lora", base)
    output = tmp_path / "out" / "merged"
    save_merged(request(base, adapter), tmp_path / "undisturbed", max_shard=50_000)

    assert killed(base, adapter, output, share) == -9
    assert not output.exists()
    left = output.with_name(".merged.partial")
    before = {path.name: path.stat().st_mtime_ns for path in left.glob("model*")}
    assert (len(before) > 1) is (share > 0.1)
    save_merged(request(base, adapter), output, max_shard=50_000)

    after = {name: (output / name).stat().st_mtime_ns for name in before}
    assert after == before
    assert files(output) == files(tmp_path / "undisturbed")
    assert names(output.parent) == ["merged"]


@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_a_run_with_another_base_begins_afresh(tmp_path):
    """Also when it has the other's place and size."""
    base = make_base(tmp_path / "base", **SIZE)
    other = make_base(tmp_path / "other", seed=5, **SIZE)
    adapter = make_adapter(tmp_path / "lora", base)
    output = tmp_path / "out" / "merged"
    assert killed(base, adapter, output, 0.9) == -9
    (base / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    said: list[Any] = []

    save_merged(request(base, adapter), output, max_shard=50_000, report=said.append)

    save_merged(request(base, adapter), tmp_path / "undisturbed", max_shard=50_000)
    assert files(output) == files(tmp_path / "undisturbed")
    assert any("starting over" in getattr(event, "message", "") for event in said)
