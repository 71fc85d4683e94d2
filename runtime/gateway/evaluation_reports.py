"""The reports that `decant eval` has written, and tickets that open one of them for a while."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

LIFETIME_S = 12 * 3600
"""The time for which a ticket opens its report; the page gets a new one for each opening."""
PAGE_MAX = 64 << 20  # bytes; decant's own pages stay below 5 MB
PAGE_NAME = "report.html"
ROUTE = "/evaluations"


@dataclass(frozen=True, slots=True)
class Reports:
    """The reports in a folder, for one server's life."""

    folder: Path | None = None
    """The folder with a folder for each evaluation; None: the server has no reports."""
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """Signs the tickets. The server makes a new one at each start."""
    clock: Callable[[], float] = time.monotonic

    def listing(self, *, has_keys: bool) -> dict[str, Any]:
        """All reports as JSON, the newest first, with a ticket in each address if needed."""
        from runtime.evaluation.report.report_folder import list_reports

        if self.folder is None:
            return {"object": "list", "data": [], "notes": []}
        found, notes = list_reports(self.folder)
        own = self.names()
        data = [described(one) for one in found if one.folder.name in own]
        for entry in data:
            address = f"{ROUTE}/{quote(entry['id'], safe='')}/{PAGE_NAME}"
            # relative, because a proxy may serve all routes under a prefix
            entry["report"] = address.lstrip("/") + (self.ticket_query(entry["id"], has_keys))
        place = f"{self.folder}{os.sep}"
        return {"object": "list", "data": data, "notes": [n.replace(place, "") for n in notes]}

    def names(self) -> set[str]:
        """The names of the folders in `folder`, without links and without unprintable names."""
        if self.folder is None:
            return set()
        try:
            with os.scandir(self.folder) as entries:
                return {
                    entry.name
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and entry.name.isprintable()
                }
        except OSError:
            return set()

    def page(self, name: str) -> bytes | None:
        """The HTML of a report; None if there is no such report, or its file is a link."""
        if self.folder is None or name not in self.names():
            return None
        try:
            return regular_file(self.folder / name / PAGE_NAME)
        except OSError:
            return None

    def ticket_query(self, name: str, has_keys: bool) -> str:
        return f"?ticket={self.ticket(name)}" if has_keys else ""

    def ticket(self, name: str) -> str:
        """The ticket that opens one report in a frame or a tab, which cannot send a key."""
        ends = int(self.clock()) + LIFETIME_S
        return f"{ends}-{self.signature(name, ends)}"

    def signature(self, name: str, ends: int) -> str:
        return hmac.new(self.secret, f"{ends} {name}".encode(), sha256).hexdigest()

    def is_valid(self, ticket: str, name: str) -> bool:
        """Whether a ticket is one of ours, for this report, and its time has not ended."""
        ends, _, signature = ticket.partition("-")
        if not ends.isdecimal() or len(ends) > len(str(1 << 63)):
            return False
        expected = self.signature(name, int(ends)).encode()
        is_ours = hmac.compare_digest(expected, signature.encode("utf-8", "replace"))
        return is_ours and self.clock() < int(ends)


def regular_file(path: Path) -> bytes | None:
    """The bytes of a regular file; None for a pipe, or a file that is too large.

    Raises OSError for a link, and for a file that cannot be read.
    """
    # without O_NONBLOCK a pipe would wait for its writer
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > PAGE_MAX:
            return None
        with open(file, "rb", closefd=False) as opened:
            return opened.read(PAGE_MAX)
    finally:
        os.close(file)


def described(listed: Any) -> dict[str, Any]:  # Any: a Listed, whose module is imported late
    """A report's entry in the list."""
    from runtime.evaluation.report.figure_text import headline

    evaluation = listed.evaluation
    return {
        "id": listed.folder.name,
        "object": "evaluation",
        "began": evaluation.began,
        "data": evaluation.data.name,
        "items": evaluation.data.items,
        "models": [model.name for model in evaluation.models],
        "headline": headline(evaluation),
        "is_complete": evaluation.is_complete,
    }
