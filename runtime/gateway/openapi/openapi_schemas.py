"""JSON Schemas of the bodies, as far as the gateway and all its engines agree on them.

Engines take more fields than the schemas name. So the schemas are written out, instead of made
from models (pydantic, msgspec) that would check requests: the gateway passes unknown fields on, and
the engine, whose fields change with llama.cpp, refuses the wrong ones.
"""

from __future__ import annotations

from typing import Any

from runtime.scoring.score_route import TOP_MAX

Schema = dict[str, Any]  # Any: JSON
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
TOKEN: Schema = COUNT
PENALTY: Schema = {"type": "number", "minimum": -2, "maximum": 2}
OBJECT: Schema = {"type": "object"}
PROMPT_NAME: Schema = {
    "type": "string",
    "description": "Names the model's prompt that precedes each text; empty for none.",
}

ADAPTER_NAME: Schema = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9_.+-]+$",
    "maxLength": 128,
    "description": "The adapter's name, without its base's.",
}
BASE_NAME: Schema = {
    "type": "string",
    "description": "The served base; needed only where several have the adapter or fit it.",
}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema, **more: object) -> Schema:
    return {"type": "array", "items": items, **more}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def fields(*required: str, **properties: Schema) -> Schema:
    """An object, which may have more fields than the named ones."""
    return {"type": "object", "required": list(required), "properties": properties}


def asking(*required: str, **properties: Schema) -> Schema:
    """A request to a model, which may be left out when only one is served."""
    return fields(*required, model=ref("ModelName"), **properties)


SAMPLING: dict[str, Schema] = {
    "stream": FLAG,
    "temperature": {"type": "number", "minimum": 0, "maximum": 100},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": -1, "maximum": (1 << 32) - 1},
}
STOP = either(TEXT, listed(TEXT))
TEXTS = either(TEXT, listed(TEXT, minItems=1))
PROMPT = either(TEXT, listed(TEXT, minItems=1), listed(TOKEN, minItems=1))
ROLE: Schema = {"enum": ["system", "user", "assistant"]}
CONTENT = either(TEXT, listed(ref("TextPart"), minItems=1))
TURNS: Schema = {"enum": ["user", "assistant"]}

OPENAI: dict[str, Schema] = {
    "ChatRequest": asking(
        "messages",
        messages=listed(ref("Message"), minItems=1),
        max_tokens=COUNT,
        max_completion_tokens=COUNT,
        n={"type": "integer", "minimum": 1, "maximum": 128},
        stop=STOP,
        frequency_penalty=PENALTY,
        presence_penalty=PENALTY,
        logprobs=FLAG,
        top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
        response_format=fields("type", type={"enum": ["text", "json_object"]}),
        tools=listed(ref("Tool")),
        **SAMPLING,
    ),
    "Message": fields("role", "content", role=ROLE, content=CONTENT),
    "TextPart": fields("type", "text", type={"const": "text"}, text=TEXT),
    "Tool": fields(
        "type",
        "function",
        type={"const": "function"},
        function=fields("name", name=NAME, description=TEXT, parameters=OBJECT),
    ),
    "Chat": fields(
        "id", "object", "created", "model", "choices",
        id=TEXT, object={"const": "chat.completion"}, created=COUNT, model=TEXT,
        choices=listed(
            fields("index", "message", "finish_reason", index=COUNT, message=OBJECT), minItems=1
        ),
        usage=OBJECT,
    ),
    "CompletionRequest": asking(
        "prompt",
        prompt=PROMPT,
        max_tokens=COUNT,
        stop=STOP,
        frequency_penalty=PENALTY,
        presence_penalty=PENALTY,
        echo=FLAG,
        logprobs={"type": "integer", "minimum": 0, "maximum": TOP_MAX},
        logprob_start_len={
            **either(COUNT, listed(COUNT)),
            "description": "With echo: the first token of the prompt that `logprobs` lists.",
        },
        target={**PROMPT, "description": "With echo, of an encoder-decoder: what is scored."},
        **SAMPLING,
    ),
    "Completion": fields(
        "id", "object", "created", "model", "choices",
        id=TEXT, object={"const": "text_completion"}, created=COUNT, model=TEXT,
        choices=listed(fields("index", "text", "finish_reason", index=COUNT, text=TEXT)),
        usage=OBJECT,
    ),
    "ResponsesRequest": asking(
        "input",
        input=either(TEXT, listed(ref("Message"), minItems=1)),
        instructions=TEXT,
        max_output_tokens=COUNT,
        **SAMPLING,
    ),
    "Responses": fields(
        "id", "object", "output", id=TEXT, object={"const": "response"}, output=listed(OBJECT)
    ),
    "EmbeddingsRequest": asking(
        "input",
        input=PROMPT,
        encoding_format={"enum": ["float", "base64"]},
        dimensions={"type": "integer", "minimum": 1},
        prompt_name=PROMPT_NAME,
    ),
    "Embeddings": fields(
        "object", "data", "usage",
        object={"const": "list"},
        data=listed(
            fields("index", "embedding", index=COUNT, embedding={"type": ["array", "string"]})
        ),
        usage=OBJECT,
    ),
    "TokenCount": fields("input_tokens", input_tokens=COUNT),
}  # fmt: skip

ENGINES: dict[str, Schema] = {
    "PromptRequest": asking("prompt", prompt=PROMPT, n_predict=COUNT, stop=STOP, **SAMPLING),
    "InfillRequest": asking(
        "input_prefix", "input_suffix",
        input_prefix=TEXT, input_suffix=TEXT, prompt=TEXT, n_predict=COUNT, **SAMPLING,
    ),
    "Answer": either(ref("OneAnswer"), listed(ref("OneAnswer"))),
    "OneAnswer": fields("content", "stop", content=TEXT, stop=FLAG),
    "RerankRequest": asking(
        "query", "documents", query=TEXT, documents=listed(TEXT, minItems=1), top_n=COUNT
    ),
    "Ranking": fields(
        "results",
        results=listed(
            fields("index", "relevance_score", index=COUNT, relevance_score={"type": "number"})
        ),
    ),
    "TokenizeRequest": asking(
        "content", content=TEXT, add_special=FLAG, parse_special=FLAG, with_pieces=FLAG
    ),
    "Tokens": fields("tokens", tokens=listed(either(COUNT, OBJECT))),
    "DetokenizeRequest": asking("tokens", tokens=listed(TOKEN)),
    "Text": fields("content", content=TEXT),
    "TemplateRequest": asking("messages", messages=listed(ref("Message"), minItems=1)),
    "Prompt": fields("prompt", prompt=TEXT),
}  # fmt: skip

ANTHROPIC: dict[str, Schema] = {
    "MessagesRequest": asking(
        "messages", "max_tokens",
        messages=listed(ref("Turn"), minItems=1),
        max_tokens={**COUNT, "minimum": 1},
        system=CONTENT,
        stop_sequences=listed(TEXT),
        stream=FLAG,
        temperature={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "CountRequest": asking("messages", messages=listed(ref("Turn"), minItems=1), system=CONTENT),
    "Turn": fields("role", "content", role=TURNS, content=CONTENT),
    "MessagesAnswer": fields(
        "id", "type", "role", "content", "model", "usage",
        id=TEXT, type={"const": "message"}, role={"const": "assistant"}, content=listed(OBJECT),
        model=TEXT, usage=OBJECT,
    ),
}  # fmt: skip

OLLAMA: dict[str, Schema] = {
    "OllamaOptions": fields(
        num_predict={"type": "integer", "minimum": -2, "maximum": (1 << 31) - 1},
        temperature=SAMPLING["temperature"],
        top_p=SAMPLING["top_p"],
        seed=SAMPLING["seed"],
        stop=listed(TEXT),
    ),
    "OllamaChatRequest": asking(
        "model",
        messages=listed(ref("OllamaMessage")),
        stream=FLAG,
        options=ref("OllamaOptions"),
    ),
    "OllamaMessage": fields("role", "content", role=ROLE, content=TEXT),
    "OllamaGenerateRequest": asking(
        "model", prompt=TEXT, system=TEXT, stream=FLAG, options=ref("OllamaOptions")
    ),
    "OllamaEmbedRequest": asking("model", "input", input=TEXTS, prompt_name=PROMPT_NAME),
    "OllamaEmbeddingsRequest": asking("model", "prompt", prompt=TEXT),
    "OllamaShowRequest": asking("model"),
    "OllamaAnswer": fields("model", "created_at", "done", model=TEXT, created_at=TEXT, done=FLAG),
    "OllamaEmbed": fields("embeddings", embeddings=listed(listed({"type": "number"}))),
    "OllamaEmbeddings": fields("embedding", embedding=listed({"type": "number"})),
    "OllamaModels": fields("models", models=listed(OBJECT)),
    "OllamaVersion": fields("version", version=TEXT),
}

OWN: dict[str, Schema] = {
    "ModelName": {
        **NAME,
        "description": "NAME, NAME:ADAPTER or NAME:ADAPTER@SCALE, as GET /v1/models lists them.",
    },
    "Model": fields(
        "id", "object", "created", "owned_by", "root", "parent",
        id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT, root=TEXT,
        parent={"type": ["string", "null"], "description": "An adapter's base."},
        scale={"type": "number", "description": "An adapter's scale without @SCALE."},
        status=OBJECT,
    ),
    "Models": fields("object", "data", object={"const": "list"}, data=listed(ref("Model"))),
    "LoadAdapterRequest": fields(
        "lora_name", "lora_path",
        lora_name=ADAPTER_NAME,
        lora_path={
            "type": "string",
            "description": "A GGUF or a trainer's folder, in a folder that the server allows, or"
            " relative to one; a repo with --allow-pull.",
        },
        load_inplace={
            "type": "boolean", "description": "Replaces an adapter of the same name.",
        },
        model=BASE_NAME,
        base_model_name=BASE_NAME,
    ),
    "UnloadAdapterRequest": fields("lora_name", lora_name=ADAPTER_NAME, model=BASE_NAME),
    "Adapters": listed(
        fields(
            "id", "path", "scale", "name", "model",
            id={**COUNT, "description": "Its number in a request's `lora`."},
            path={"type": "string", "description": "Its file's name."},
            scale={"type": "number"}, name=ADAPTER_NAME, model=ref("ModelName"),
        )
    ),
    "EvaluationId": {**NAME, "description": "The id that GET /evaluations lists."},
    "Evaluation": fields(
        "id", "object", "began", "data", "items", "models", "headline", "is_complete", "report",
        id=TEXT, object={"const": "evaluation"}, data=TEXT, items=COUNT, models=listed(TEXT),
        headline=TEXT, is_complete=FLAG,
        began={"type": "string", "description": "When it began, in ISO 8601."},
        report={
            "type": "string",
            "description": "The page's address, relative to the server's. Where the server has"
            " keys, it has a ticket that replaces the key for 12 hours.",
        },
    ),
    "Evaluations": fields(
        "object", "data", "notes",
        object={"const": "list"}, data=listed(ref("Evaluation")), notes=listed(TEXT),
    ),
    "Status": fields("status", status=TEXT),
    "Error": fields(
        "error",
        error=fields(
            "message", "type",
            message=TEXT, type=TEXT, code={"type": ["string", "integer", "null"]},
        ),
    ),
    "AnthropicError": fields(
        "type", "error",
        type={"const": "error"}, error=fields("type", "message", type=TEXT, message=TEXT),
    ),
    "OllamaError": fields("error", error=TEXT),
}  # fmt: skip

SCHEMAS: dict[str, Schema] = {**OWN, **OPENAI, **ENGINES, **ANTHROPIC, **OLLAMA}
