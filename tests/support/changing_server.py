"""A gateway over fake engines: adapters are added and removed while requests run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.engine.opened_model import Model, open_model
from runtime.gateway.call import Gateway
from runtime.gateway.scheduling.pool import EnginePool
from tests.support.fake_engine import behave
from tests.support.fake_pool import asked
from tests.support.raw import write_tiny_gguf

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
TEMPLATE = "{{ messages[0].content }}"


@dataclass
class Server:
    """A gateway over fake engines that tell which adapters they apply."""

    gateway: Gateway
    folder: Path

    @property
    def pool(self) -> EnginePool:
        return self.gateway.pool

    async def load(self, name: str, path: object = None, **more: object) -> tuple[int, Any]:
        place = str(path if path is not None else self.folder / f"{name}.gguf")
        return await asked(self.gateway, LOAD, {"lora_name": name, "lora_path": place, **more})

    async def unload(self, name: str, **more: object) -> tuple[int, Any]:
        return await asked(self.gateway, UNLOAD, {"lora_name": name, **more})

    async def answer(self, model: str, route: str = "/v1/completions") -> Any:
        """The names of the adapters that answered, or the status of an error."""
        status, body = await asked(self.gateway, route, {"model": model, "prompt": "x"})
        return body["choices"][0]["text"] if status == 200 else int(status)

    async def ids(self) -> list[str]:
        _, found = await asked(self.gateway, "/v1/models", None)
        return [one["id"] for one in found["data"]]


Test = Callable[[Server], Awaitable[None]]


def base(folder: Path, name: str, **how: object) -> Model:
    path = behave(write_tiny_gguf(folder / f"{name}.gguf"), **{"names": True, **how})
    return replace(open_model(path), chat_template=TEMPLATE)
