"""Workers on the loopback, and the answers of a model that they compute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from exporter.llamacpp.toolchain import Toolchain
from runtime.engine.llama_server import Server
from runtime.engine.openai_client import Delta, ask
from runtime.rpc.protocol import Spread
from runtime.rpc.rpc_server import RpcSpec
from runtime.rpc.worker import WorkerSpec
from tests.runtime.conftest import PROMPTS

LOOPBACK = "127.0.0.1"
ONE = RpcSpec(threads=1)


def spec(port: int = 0, rpc: RpcSpec = ONE, **more: Any) -> WorkerSpec:
    return WorkerSpec(LOOPBACK, port, rpc, **more)


def address(worker: Any) -> str:
    return f"{LOOPBACK}:{worker.port}"


def spread(*workers: Any, **more: Any) -> Spread:
    return Spread(tuple(address(worker) for worker in workers), **more)


def of_commit(toolchain: Toolchain, commit: str) -> Toolchain:
    """The same build, which claims to be of another commit."""
    build = SimpleNamespace(
        dir=toolchain.folder,
        tool=toolchain.tool,
        info={**toolchain.info, "commit": commit},
    )
    return Toolchain(build)


def said(server: Server) -> str:
    pieces = ask(server, [{"role": "user", "content": PROMPTS[0]}], {"temperature": 0})
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))
