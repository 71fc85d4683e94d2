"""`GET /openapi.json`: the description of the gateway's routes in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from exporter.core.version import own_version
from runtime.gateway import routes_llama
from runtime.gateway.api_errors import form_of
from runtime.gateway.call import Call, Route
from runtime.gateway.openapi.openapi_schemas import SCHEMAS, ref

Json = dict[str, Any]  # Any: JSON
JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
ERRORS = {"openai": "Error", "anthropic": "AnthropicError", "ollama": "OllamaError"}
EVERYWHERE = {
    "400": "The request is wrong; the message says how.",
    "401": "The key is missing or wrong.",
    "403": "The Host name, the page's Origin or the key is not allowed.",
}
WITH_BODY = {
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The Content-Type is not application/json.",
    "429": "Too many requests; Retry-After says when to try again.",
    "501": "This model does not support the route.",
    "503": "The model cannot be loaded now, or the server is ending.",
}
MISSING = {"ModelName": WITH_BODY["404"], "EvaluationId": "There is no such report."}


@dataclass(frozen=True, slots=True)
class RouteDoc:
    """The description of one route."""

    summary: str
    answer: str | None = None
    """The name of the answer's schema; empty for any JSON. None: any JSON if the route takes a
    body and `is_text` is false, else `content_type`."""
    request: str | None = None
    """The name of the body's schema."""
    stream: str | None = None
    """The content type of a streamed answer."""
    is_open: bool = False
    """Whether the route needs no key."""
    content_type: str = "text/plain"
    """The type of an answer that is not JSON."""
    is_text: bool = False
    """Whether a request with a body is answered in `content_type`."""
    id_schema: str = "ModelName"
    """The name of the schema of `{id}`."""


PASSED: dict[str, RouteDoc] = {
    "/v1/chat/completions": RouteDoc("Answer a chat", "Chat", "ChatRequest", EVENTS),
    "/v1/completions": RouteDoc("Continue a text", "Completion", "CompletionRequest", EVENTS),
    "/v1/responses": RouteDoc(
        "Answer, as OpenAI's Responses", "Responses", "ResponsesRequest", EVENTS
    ),
    "/v1/embeddings": RouteDoc("Embed texts", "Embeddings", "EmbeddingsRequest"),
    "/v1/messages": RouteDoc("Answer, as Anthropic's", "MessagesAnswer", "MessagesRequest", EVENTS),
    "/v1/messages/count_tokens": RouteDoc("Count a chat's tokens", "TokenCount", "CountRequest"),
    "/v1/chat/completions/input_tokens": RouteDoc(
        "Count a chat's tokens", "TokenCount", "TemplateRequest"
    ),
    "/v1/responses/input_tokens": RouteDoc("Count tokens", "TokenCount", "ResponsesRequest"),
    "/completion": RouteDoc("Continue a text, as llama.cpp's", "Answer", "PromptRequest", EVENTS),
    "/embedding": RouteDoc("Embed texts, as llama.cpp's", None, "EmbeddingsRequest"),
    "/infill": RouteDoc("Fill the gap between two texts", "Answer", "InfillRequest", EVENTS),
    "/v1/rerank": RouteDoc("Rank documents by relevance", "Ranking", "RerankRequest"),
    "/tokenize": RouteDoc("Cut a text into tokens", "Tokens", "TokenizeRequest"),
    "/detokenize": RouteDoc("Join tokens to a text", "Text", "DetokenizeRequest"),
    "/apply-template": RouteDoc("Show a chat's prompt", "Prompt", "TemplateRequest"),
}
OWN: dict[tuple[str, str], RouteDoc] = {
    ("GET", "/v1/models"): RouteDoc("List the models", "Models"),
    ("GET", "/models"): RouteDoc("List the models", "Models"),
    ("GET", "/v1/models/{id}"): RouteDoc("Describe one model", "Model"),
    ("GET", "/models/{id}"): RouteDoc("Describe one model", "Model"),
    ("GET", "/lora-adapters"): RouteDoc("List the adapters", "Adapters"),
    ("POST", "/v1/load_lora_adapter"): RouteDoc(
        "Serve an adapter from now on", None, "LoadAdapterRequest", is_text=True
    ),
    ("POST", "/v1/unload_lora_adapter"): RouteDoc(
        "Serve an adapter no longer", None, "UnloadAdapterRequest", is_text=True
    ),
    ("GET", "/livez"): RouteDoc("Whether the process runs", "Status", is_open=True),
    ("GET", "/readyz"): RouteDoc("Whether the server takes requests", "Status", is_open=True),
    ("GET", "/health"): RouteDoc("Whether the server takes requests", "Status", is_open=True),
    ("GET", "/v1/health"): RouteDoc("Whether the server takes requests", "Status", is_open=True),
    ("GET", "/metrics"): RouteDoc("Metrics for Prometheus"),
    ("GET", "/evaluations"): RouteDoc("List the reports of `decant eval`", "Evaluations"),
    ("GET", "/evaluations/{id}/report.html"): RouteDoc(
        "The page of one report", content_type="text/html", id_schema="EvaluationId"
    ),
    ("GET", "/openapi.json"): RouteDoc("This description", ""),
    ("GET", "/api/version"): RouteDoc("The version of Ollama's API", "OllamaVersion"),
    ("GET", "/api/tags"): RouteDoc("List the models", "OllamaModels"),
    ("GET", "/api/ps"): RouteDoc("List the loaded models", "OllamaModels"),
    ("POST", "/api/show"): RouteDoc("Describe one model", "", "OllamaShowRequest"),
    ("POST", "/api/chat"): RouteDoc("Answer a chat", "OllamaAnswer", "OllamaChatRequest", LINES),
    ("POST", "/api/generate"): RouteDoc(
        "Continue a text", "OllamaAnswer", "OllamaGenerateRequest", LINES
    ),
    ("POST", "/api/embed"): RouteDoc("Embed texts", "OllamaEmbed", "OllamaEmbedRequest"),
    ("POST", "/api/embeddings"): RouteDoc(
        "Embed one text", "OllamaEmbeddings", "OllamaEmbeddingsRequest"
    ),
}


async def openapi(call: Call) -> Response:
    served = [
        (method, route.path)
        for route in call.request.app.routes
        if isinstance(route, Path)  # without the page's files, which are a Mount
        for method in sorted(route.methods or ())
    ]
    return JSONResponse(document(served, has_keys=bool(call.gateway.settings.keys)))


def document(served: Iterable[tuple[str, str]], *, has_keys: bool) -> Json:
    """The OpenAPI document of the described methods and paths."""
    paths: dict[str, Json] = {}
    for method, pattern in served:
        path = pattern.replace(":path}", "}")
        doc = doc_of(method, path)
        if doc is not None:
            paths.setdefault(path, {})[method.lower()] = operation(path, doc)
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": "decant", "version": own_version()},
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }
    if has_keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def doc_of(method: str, path: str) -> RouteDoc | None:
    route = next(
        (route for route, others in routes_llama.PASSED.items() if path in (route, *others)), ""
    )
    return OWN.get((method, path)) or (PASSED.get(route) if method == "POST" else None)


def operation(path: str, doc: RouteDoc) -> Json:
    statuses = {**EVERYWHERE, **(WITH_BODY if doc.request else {})}
    if "{id}" in path:
        statuses["404"] = MISSING[doc.id_schema]
    if doc.is_open or doc.request is None:
        statuses["503"] = WITH_BODY["503"]
    failure = {JSON: {"schema": ref(ERRORS[form_of(path)])}}
    found: Json = {
        "summary": doc.summary,
        "responses": {
            "200": {"description": "The answer.", "content": contents(doc)},
            **{
                status: {"description": text, "content": failure}
                for status, text in statuses.items()
            },
        },
    }
    if doc.request is not None:
        content = {JSON: {"schema": ref(doc.request)}}
        found["requestBody"] = {"required": True, "content": content}
    if "{id}" in path:
        name = {"name": "id", "in": "path", "required": True, "schema": ref(doc.id_schema)}
        found["parameters"] = [name]
    if doc.is_open:
        found["security"] = []
    return found


def contents(doc: RouteDoc) -> Mapping[str, Json]:
    """The content types of an answer, each with its schema if it has one."""
    if doc.answer is None:
        return {JSON: {}} if doc.request and not doc.is_text else {doc.content_type: {}}
    found: dict[str, Json] = {JSON: {"schema": ref(doc.answer)} if doc.answer else {}}
    return found | ({doc.stream: {}} if doc.stream else {})


ROUTES = (Route("GET", "/openapi.json", openapi),)
