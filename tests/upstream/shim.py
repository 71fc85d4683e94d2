"""decant's gateway in llama-server's place: its arguments in, its model served, or none.

What the gateway does itself it takes from the arguments: address, key, models, slots, context.
The rest goes to the child as it is. Only two things are not as `decant serve` has them: any name
means the one model, as it does for llama-server, and clients may set the fields that are its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.adapters import Adapter
from runtime.engine.opened_model import Model, open_model
from runtime.engine.template_choice import CHATML
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog, ResolvedModel
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.server import listening, serve
from runtime.gateway.settings import Settings

OWN = frozenset(
    ("--host", "--port", "--api-key", "--model", "--alias", "--ctx-size", "--parallel", "--lora")
)
"""What the gateway is told itself, each with a value."""
NOT_PASSED = frozenset(
    ("--offline", "--slots", "--no-slots", "--metrics", "--embedding", "--reranking")
)
"""What each child has as it must, whatever was asked."""
PATHS = frozenset(("--chat-template-file", "--model-draft", "--media-path", "--slot-save-path"))
FIELDS = frozenset(("lora", "id_slot", "n_discard", "cache_prompt"))


UNASKED = "{{ bos_token }}" + CHATML + "{# message.reasoning_content #}"
"""What llama-server takes by itself for a model without a template. It always adds BOS; thoughts
are left in messages, because tests give it other templates, which know them."""


class AnyName(Catalog):
    """At most one model, whatever it is called."""

    def __init__(self, models: list[Model], name: str | None) -> None:
        """List it under its name."""
        super().__init__(models)
        if name is not None:
            self.models, self.others = dict(zip([name], models, strict=False)), {}

    def find(self, name: object) -> ResolvedModel:
        is_any = isinstance(name, str) and self.models
        return super().find(None if is_any else name)


def split(argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The gateway's own arguments, and the child's."""
    own: dict[str, list[str]] = {}
    passed: list[str] = []
    words = iter(argv)
    for word in words:
        if word in OWN:
            own.setdefault(word, []).append(next(words))
        elif word in PATHS:
            passed += [word, str(Path(next(words)).absolute())]
        elif word not in NOT_PASSED:
            passed.append(word)
    return own, passed


def main(argv: list[str]) -> int:
    """What llama-server would do with these arguments."""
    own, passed = split(argv)

    def one(name: str) -> str | None:
        return own.get(name, [None])[-1]

    parallel, context = one("--parallel"), one("--ctx-size")
    slots = int(parallel) if parallel else None
    settings = Settings(
        host=one("--host") or "127.0.0.1",
        keys=tuple(own.get("--api-key", [])),
        parallel=slots,
        context=int(context) // (slots or 1) if context else None,
        allow_fields=FIELDS,
        grace_s=0,
        extra=tuple(passed),
    )
    catalog = AnyName(models(own), one("--alias"))
    gateway = Gateway(settings, catalog, EnginePool(settings, find_toolchain()))
    app = build_app(gateway)
    # what embeds or ranks is loaded when it is first asked to
    gateway.is_loading = bool(catalog.models) and not {"--embedding", "--reranking"} & set(argv)
    beside = gateway.preload if gateway.is_loading else None
    with listening(settings.host, int(one("--port") or 0)) as listener:
        return asyncio.run(serve(gateway, app, listener, None, beside))


def models(own: dict[str, list[str]]) -> list[Model]:
    """The model that is to be served; none where llama-server would be a router."""
    if "--model" not in own:
        return []
    projector = os.environ.get("LLAMA_ARG_MMPROJ")
    adapters = tuple(Adapter(Path(path).stem, Path(path), 1.0) for path in own.get("--lora", []))
    path = Path(own["--model"][-1])
    model = open_model(path, adapters, Path(projector) if projector else None)
    return [model if model.can_chat else replace(model, chat_template=UNASKED)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
