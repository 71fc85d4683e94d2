"""Looks at an engine's process: whether it lives, and how it renders prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Container

from exporter.core.errors import DecantError, EngineDiedError
from runtime.engine.adapters import Adapter
from runtime.engine.llama_server import Server
from runtime.engine.model_server import DYING_S
from runtime.engine.request_texts import Fronts, front_of, template_notes, unlike
from runtime.gateway.scheduling.engine_entry import EngineEntry
from runtime.gateway.scheduling.placement import TALKLESS

WATCH_S = 0.1  # between two checks that a process runs


async def death_of(engine: EngineEntry, server: Server) -> EngineDiedError | None:
    """Wait until the process has died or has been replaced; returns the error if it died."""
    while engine.is_loaded and engine.server is server:
        try:
            server.raise_if_gone()
        except EngineDiedError as error:
            return error
        except DecantError:
            return None
        await asyncio.sleep(WATCH_S)
    return None


def prompt_notes(
    engine: EngineEntry, server: Server, known: Container[Adapter] | None
) -> list[str]:
    """Notes on conversations whose prompt differs from transformers'.

    known: adapters whose notes were reported before, and those of the base; None for a first load.
    """
    found = []
    if known is None:
        found += [f"{engine.name}: {note}" for note in unlike(server, server.spec.chat)]
    for adapter, own in zip(engine.model.adapters, engine.model.own, strict=True):
        if known is None or adapter not in known:
            label = f"{engine.name}:{adapter.name}"
            found += [f"{label}: {note}" for note in template_notes(server, own)]
    return found


def fronts_of(engine: EngineEntry) -> Fronts:
    """The preparation of requests to an engine; roles without conversations have no template."""
    has_chats = engine.key.role not in TALKLESS
    return engine.model.fronts if has_chats else Fronts(front_of(engine.model.header))


def wait_for_end(server: Server) -> None:
    """Wait for a process that broke off a request. Raises EngineDiedError when it has ended."""
    server.raise_if_dead("while answering with", wait_s=DYING_S)
    server.raise_if_gone()
