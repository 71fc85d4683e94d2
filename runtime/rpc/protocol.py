"""The requests to the workers that will compute a model's layers, before the model is loaded.

llama.cpp's RPC protocol (ggml-rpc.cpp, version 7) begins with HELLO, whose answer gives the version
of the protocol but not the llama.cpp commit: two commits of one version may compute differently.
`decant worker` therefore also answers ASK, on the same port; see runtime/rpc/worker.py.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

from exporter.core.errors import InputError, WorkerError
from exporter.core.events import Report, Warn, silent
from exporter.llamacpp.toolchain import Toolchain

DEFAULT_PORT = 50052  # ggml-rpc-server's default
ASK = b"decant?\n"
"""Its first byte is not a command of the protocol: a bare ggml-rpc-server hangs up on it."""
ANSWER_MAX = 1 << 16  # bytes
CONNECT_S, ANSWER_S = 5.0, 15.0
# commands, and the bytes of their messages (ggml-rpc.cpp)
GET_DEVICE_MEMORY, HELLO, DEVICE_COUNT = 11, 14, 15
HELLO_REQUEST = 24  # bytes
HELLO_ANSWER = 28  # bytes
HELLO_HEAD = struct.Struct("<BQ")  # the command, and the number of bytes that follow
DEVICES_MAX = 64  # a larger count is taken for another protocol
ALL_LAYERS = 999  # above any model's count: llama-server's -ngl then offloads every layer
ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?):(?P<port>\d{1,5})")
VERSION = re.compile(r"^#define RPC_PROTO_(?:MAJOR|MINOR|PATCH)_VERSION\s+(\d+)\s*$", re.MULTILINE)
TUNNEL = "reach it through a tunnel: ssh -N -L {port}:127.0.0.1:{port} {host}"


@dataclass(frozen=True, slots=True)
class Spread:
    """Which workers compute layers of a model, and how many."""

    workers: tuple[str, ...]
    """Each as HOST:PORT."""
    layers: int = ALL_LAYERS
    """How many of the last layers the workers compute; the others stay on this machine."""
    shares: tuple[int, ...] = ()
    """Proportions of the layers per device; empty: in proportion to their memory."""
    unchecked: bool = False
    """Accept public addresses and bare ggml-rpc-servers, without asking for their llama.cpp."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker's address and free memory."""

    address: str
    free: tuple[int, ...]
    """The free memory of each of its devices, in bytes."""


def parse_workers(text: str) -> tuple[str, ...]:
    """Parse HOST:PORT,… of the command line. Raises InputError."""
    found = []
    for part in text.split(","):
        match = ADDRESS.fullmatch(part.strip())
        if not match or not 0 < int(match["port"]) < 1 << 16:
            raise InputError(
                f"--rpc {text!r}: {part.strip()!r} is not HOST:PORT",
                hint=f"name each worker as 127.0.0.1:{DEFAULT_PORT}; llama.cpp takes no IPv6 here",
            )
        found.append(f"{match['host']}:{int(match['port'])}")
    if twice := [one for one in found if found.count(one) > 1]:
        raise InputError(f"--rpc names {twice[0]} twice", hint="name each worker once")
    return tuple(found)


def rpc_flags(spread: Spread) -> list[str]:
    """llama-server's flags for the workers."""
    flags = ["--rpc", ",".join(spread.workers), "-ngl", str(spread.layers)]
    return [*flags, "-ts", ",".join(map(str, spread.shares))] if spread.shares else flags


def split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def preflight(
    spread: Spread, toolchain: Toolchain, *, report: Report = silent
) -> tuple[WorkerFacts, ...]:
    """Check that every worker answers and runs the same llama.cpp.

    llama-server itself would abort, with a less specific message. Raises WorkerError.
    """
    return tuple(check(address, spread, toolchain, report) for address in spread.workers)


def check(address: str, spread: Spread, toolchain: Toolchain, report: Report) -> WorkerFacts:
    """Check one worker.

    Raises WorkerError for a public address, another llama.cpp or another protocol version.
    """
    host, port = split_address(address)
    away = resolved(host, address)
    if away.is_global and not spread.unchecked:
        raise WorkerError(
            f"{address} is a public address ({away}): the protocol has no key and no encryption",
            hint=TUNNEL.format(host=host, port=port),
        )
    if not away.is_loopback:
        report(Warn(f"the data exchanged with {address} is neither encrypted nor authenticated"))
    free = () if spread.unchecked else ask_worker(address, toolchain.info["commit"])
    version, free_there = probe(host, port, address)
    ours = protocol_version(toolchain)
    if version != ours:
        raise WorkerError(
            f"the worker at {address} speaks version {version} of the RPC protocol, we {ours}",
            hint="install the same decant on both machines",
        )
    return WorkerFacts(address, free or free_there)


def resolved(host: str, address: str) -> ipaddress.IPv4Address:
    """The IPv4 address of a host. Raises WorkerError."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return ipaddress.IPv4Address(found[0][4][0])
    except (OSError, UnicodeError) as error:
        raise WorkerError(
            f"the host {host!r} of the worker {address} is unknown: {error}",
            hint="check the name, or give its IPv4 address",
        ) from error


def ask_worker(address: str, commit: str) -> tuple[int, ...]:
    """The free bytes of each device. Raises WorkerError if its llama.cpp is another commit."""
    answer = read_answer(address)
    theirs = answer.get("commit")
    if theirs != commit:
        raise WorkerError(
            f"the worker at {address} runs llama.cpp {theirs}, this machine {commit}:"
            " they may compute differently, or crash each other",
            hint="install the same decant on both machines, and `decant setup` there",
        )
    free = answer.get("free")
    numbers = free if isinstance(free, list) else []
    return tuple(number for number in numbers if isinstance(number, int) and number >= 0)


def read_answer(address: str) -> dict[str, Any]:
    """A worker's answer to ASK. Raises WorkerError."""
    raw = b""
    try:
        with connected(address) as connection:
            connection.sendall(ASK)
            while not raw.endswith(b"\n") and len(raw) < ANSWER_MAX:
                block = connection.recv(ANSWER_MAX)
                if not block:
                    break
                raw += block
        answer = json.loads(raw)
        if isinstance(answer, dict):
            return answer
    except (OSError, ValueError):
        pass  # reported below
    raise WorkerError(
        f"the server at {address} does not say which llama.cpp it runs",
        hint="start it with `decant worker`; --rpc-unchecked accepts a bare ggml-rpc-server, which"
        " serves one model at a time and may be busy",
    )


def connected(address: str) -> socket.socket:
    """Connect to a worker. Raises WorkerError."""
    host, port = split_address(address)
    try:
        connection = socket.create_connection((host, port), CONNECT_S)
    except OSError as error:
        raise WorkerError(
            f"no worker answers at {address}: {error.strerror or error}",
            hint="is `decant worker` running there, and the tunnel open?",
        ) from error
    connection.settimeout(ANSWER_S)
    return connection


def probe(host: str, port: int, address: str) -> tuple[str, tuple[int, ...]]:
    """A server's protocol version, and the free bytes of each device. Raises WorkerError."""
    try:
        with connected(f"{host}:{port}") as connection:
            return greet(connection), memory(connection)
    except (OSError, struct.error, ValueError) as error:
        raise WorkerError(
            f"the server at {address} does not speak llama.cpp's RPC protocol: {error}",
            hint="is it `decant worker`? A bare ggml-rpc-server busy with another model is silent",
        ) from error


def greet(connection: socket.socket) -> str:
    """Send HELLO and return the protocol's version. Raises ValueError and OSError."""
    answer = exchange(connection, HELLO, bytes(HELLO_REQUEST), HELLO_ANSWER)
    return ".".join(map(str, answer[:3]))


def memory(connection: socket.socket) -> tuple[int, ...]:
    """The free bytes of each device, asked after HELLO. Raises ValueError and OSError."""
    (count,) = struct.unpack("<I", exchange(connection, DEVICE_COUNT, b"", 4))
    if count > DEVICES_MAX:
        raise ValueError(f"it says that it has {count} devices")
    sizes = (
        exchange(connection, GET_DEVICE_MEMORY, struct.pack("<I", device), 16)
        for device in range(count)
    )
    return tuple(struct.unpack("<QQ", size)[0] for size in sizes)


def exchange(connection: socket.socket, command: int, message: bytes, nbytes: int) -> bytes:
    """Send a command and return its answer of `nbytes`. Raises ValueError and OSError."""
    connection.sendall(HELLO_HEAD.pack(command, len(message)) + message)
    (length,) = struct.unpack("<Q", received(connection, 8))
    if length != nbytes:
        raise ValueError(f"an answer of {length} bytes instead of {nbytes}")
    return received(connection, nbytes)


def received(connection: socket.socket, nbytes: int) -> bytes:
    """Read exactly `nbytes`. Raises ValueError if the connection ends before."""
    raw = b""
    while len(raw) < nbytes:
        block = connection.recv(nbytes - len(raw))
        if not block:
            raise ValueError("it hung up")
        raw += block
    return raw


def protocol_version(toolchain: Toolchain) -> str:
    """The RPC protocol's version in the header of the built llama.cpp."""
    header = toolchain.folder / "ggml" / "include" / "ggml-rpc.h"
    return ".".join(VERSION.findall(header.read_text(encoding="utf-8")))
