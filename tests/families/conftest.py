from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from tests.families.table import write_page

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a name that the process which writes the page knows, too."""
    if not hasattr(config, "workerinput") and getattr(config.option, "testrunuid", "") is None:
        config.option.testrunuid = uuid.uuid4().hex


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write docs/families.md after a whole run; of several processes the first one does."""
    if not hasattr(session.config, "workerinput"):
        write_page(session.config)
