"""Which prompts an engine shares with an earlier engine: those of `saved_prompts`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exporter.llamacpp.toolchain import Toolchain
from runtime.engine.llama_server import ServerSpec
from runtime.engine.opened_model import Model
from runtime.engine.saved_prompts import PromptPlan
from runtime.engine.speculation import Speculation

KEPT_NBYTES = 4 * 10**9
"""The most bytes that are kept, unless the user says otherwise."""


def with_prompts(
    server: ServerSpec,
    model: Model,
    toolchain: Toolchain,
    speculation: Speculation,
    flags: tuple[str, ...],
    kept: tuple[Path, int],
) -> ServerSpec:
    """The engine's process with a place for its prompts; unchanged if they cannot be kept.

    flags: the flags of llama-server that shape keys and values; kept: the folder and its limit in
    bytes. llama-server does not save the state of a draft model or of MTP layers, and workers would
    send theirs over the network.
    """
    folder, limit = kept
    has_more = server.rpc is not None or speculation.kind in ("draft", "mtp")
    if not limit or has_more or server.engine != "llama-server":
        return server
    scales = [adapter.scale for adapter in model.adapters]
    none = (0.0,) * len(scales)
    own = [(*none[:n], scale, *none[n + 1 :]) for n, scale in enumerate(scales)]
    plan = PromptPlan(
        folder,
        limit,
        (*(model.header.shards or (model.header.path,)), *filter(None, [model.projector])),
        server.adapters,
        (toolchain.folder.name, str(server.scales), str(server.context), server.cache_type, *flags),
        server.parallel,
        (server.scales,) if server.scales else (none, *own),
    )
    return replace(server, prompts=plan)
