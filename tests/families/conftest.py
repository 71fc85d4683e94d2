from __future__ import annotations

from typing import TYPE_CHECKING

from tests.families.table import write_page

if TYPE_CHECKING:
    import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write docs/families.md after a whole run; of several processes the first one does."""
    if not hasattr(session.config, "workerinput"):
        write_page(session.config)
