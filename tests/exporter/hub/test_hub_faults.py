"""The fault table of rows.py in real sizes; `make test` runs it, `make check` does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from exporter.hub.timeouts import Limits
from tests.support.hub_rows import ROWS, eight_connections
from tests.support.hub_stage import Stage

pytestmark = pytest.mark.slow

IMPATIENT = replace(Limits(), stall_s=2, slow_s=2)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ROWS)
def test_download_survives(fault: str, tmp_path: Path):
    size = 12 << 20 if ROWS[fault] is eight_connections else 64 << 20
    stage = Stage(tmp_path, size=size, limits=IMPATIENT)
    with stage.stack:
        result = ROWS[fault](stage)
    assert result.holds, f"must be {result.demanded}, is {result.measured}"
