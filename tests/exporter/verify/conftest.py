"""Right exports, and ways to make them wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from exporter.verify.expected import expected_of
from exporter.verify.light import verify_light
from exporter.verify.verification import Verification

Verify = Callable[..., Verification]


@pytest.fixture
def pour(toolchain: Toolchain) -> Callable[..., Path]:
    """Export, at some scale, to a file of a quantization; checks nothing."""

    def pour(base: Path, adapter: Path | None, path: Path, quant: str, scale: float = 1.0) -> Path:
        adapters = ((adapter, scale),) if adapter else ()
        export(ExportRequest(adapters, base, (quant,), (path,)), toolchain)
        return path

    return pour


@pytest.fixture
def verify(toolchain: Toolchain) -> Verify:
    """The light verification of a file against a base and perhaps an adapter."""

    def verify(path: Path, base: Path, adapter: Path | None, *, rows: int = 16) -> Verification:
        adapters = [WeightedAdapter(open_adapter(adapter))] if adapter else []
        plan = plan_merge(open_checkpoint(base), adapters)
        with expected_of(plan, toolchain, rows=rows) as expected:
            return verify_light(path, expected, toolchain)

    return verify
