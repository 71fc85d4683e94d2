"""HTTP over a Unix socket: http.client, with another way to connect."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

from typing_extensions import Self


class SocketConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket; it connects at the first request."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
