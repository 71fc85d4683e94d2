"""The record of a request, from its head to its end, for the log and the metrics."""

from __future__ import annotations

import secrets
import time
from typing import Any

from starlette.types import Scope

KEY = "record"


class Record:
    """One request without its content: neither the prompt nor the answer is recorded.

    It is kept in the request's state (ASGI's `scope["state"]`), where the handler finds it.
    """

    def __init__(self, scope: Scope, client_id: str) -> None:
        """Begin now. client_id: the client whose limits the request counts against."""
        self.id = secrets.token_hex(8)
        self.began = time.monotonic()
        self.method, self.path = scope["method"], scope["path"]
        self.address = address_of(scope)
        self.client_id = client_id
        self.status = 0
        self.model = self.label = ""
        self.first_s: float | None = None
        self.waited_s = 0.0
        self.nbytes = 0
        self.is_stream = False
        self.ending = "complete"

    def keep_in(self, scope: Scope) -> None:
        scope.setdefault("state", {})[KEY] = self

    @staticmethod
    def of(scope: Scope) -> Record:
        """The record that `keep_in` stored. Raises KeyError without one."""
        record = scope["state"][KEY]
        assert isinstance(record, Record)
        return record

    def line(self, took_s: float) -> dict[str, Any]:
        """The request's line in the log."""
        found = {
            "id": self.id, "client": self.address, "method": self.method, "path": self.path,
            "status": self.status, "model": self.model, "ending": self.ending,
            "seconds": round(took_s, 4), "queued": round(self.waited_s, 4), "bytes": self.nbytes,
        }  # fmt: skip
        return found | ({"first": round(self.first_s, 4)} if self.first_s is not None else {})


def address_of(scope: Scope) -> str:
    """The client's address; empty for a Unix socket."""
    return str(scope["client"][0]) if scope.get("client") else ""
