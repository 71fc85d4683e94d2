"""Copies bytes between two sockets, in both directions, until one side ends."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

BLOCK = 1 << 18  # bytes copied at once
LEAVE_S = 10.0  # for the server to notice that its client has left; it may be computing
# a peer that vanished is noticed within two minutes; the options' names differ by system
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


def relay(client: socket.socket, server: socket.socket) -> bool:
    """Copy until the end; return whether the client ended first and the server then hung up."""
    ended = threading.Event()
    first: list[str] = []

    def carry(name: str, source: socket.socket, sink: socket.socket) -> None:
        copy(source, sink)
        first.append(name)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        ended.set()

    threads = [
        threading.Thread(target=carry, args=("client", client, server), daemon=True),
        threading.Thread(target=carry, args=("server", server, client), daemon=True),
    ]
    for thread in threads:
        thread.start()
    ended.wait()
    if first[0] == "client":
        threads[1].join(LEAVE_S)
    clean = first[0] == "client" and not threads[1].is_alive()
    for end in (client, server):
        with suppress(OSError):  # closed already
            end.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    return clean


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Copy from source to sink until either ends or fails."""
    block = memoryview(bytearray(BLOCK))
    with suppress(OSError):
        while nbytes := source.recv_into(block):
            sink.sendall(block[:nbytes])


def keep_alive(connection: socket.socket) -> None:
    """Send small messages at once, and detect a peer that has vanished."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, number in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
