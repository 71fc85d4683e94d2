"""The routes that add, remove and list adapters, as vLLM's and llama-server's clients call them."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from runtime.gateway.adapter_registry import Change
from runtime.gateway.api_errors import bad_request
from runtime.gateway.call import Call, Route


async def load(call: Call) -> Response:
    """Add an adapter. Raises ApiError."""
    (name, base), place = named_in(call), text_of(call.body, "lora_path")
    if not name or not place:
        raise bad_request("Both 'lora_name' and 'lora_path' must be provided.")
    in_place = call.body.get("load_inplace", False)
    if not isinstance(in_place, bool):
        raise bad_request("`load_inplace` must be true or false")
    call.record.model = await call.gateway.adapters.add(Change(name, place, base, in_place))
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload(call: Call) -> Response:
    """Remove an adapter; requests that already use it finish. Raises ApiError."""
    name, base = named_in(call)
    if not name:
        raise bad_request("'lora_name' needs to be provided to unload a LoRA adapter.")
    call.record.model = call.gateway.adapters.remove(name, base)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def list_adapters(call: Call) -> Response:
    """List the adapters in llama-server's form; `id` is the number in a request's `lora`."""
    return JSONResponse(
        [
            {"id": number, "path": adapter.path.name, "scale": adapter.scale,
             "name": adapter.name, "model": f"{id_}:{adapter.name}"}
            for id_, model in call.gateway.catalog.models.items()
            for number, adapter in enumerate(model.adapters)
        ]
    )  # fmt: skip


def named_in(call: Call) -> tuple[str, str | None]:
    """An adapter's name, and its base; None where the request leaves the choice to the server.

    The name may be the id that lists give, BASE:NAME. Raises ApiError.
    """
    name = text_of(call.body, "lora_name")
    base = text_of(call.body, "model") or text_of(call.body, "base_model_name")
    before, _, after = name.rpartition(":")
    if not base and before in call.gateway.catalog.models:
        return after, before
    return name, base or None


def text_of(body: dict[str, Any], name: str) -> str:
    """A text of a body; empty where it is absent. Raises ApiError for another type."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"`{name}` must be a text")
    return value or ""


ROUTES = (
    Route("POST", "/v1/load_lora_adapter", load),
    Route("POST", "/v1/unload_lora_adapter", unload),
    Route("GET", "/lora-adapters", list_adapters),
)
