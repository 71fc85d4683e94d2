"""OpenAI's API for an encoder-decoder model: checks requests and builds the answers.

It uses `Fields` and not pydantic, which would save 55 lines and add 90 ms and 8 MB to the engine.
OpenAI's clients send null for a default, and every refusal names the field, value and range.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from exporter.inputs.template_process import RenderJob, render_all
from runtime.encoder_decoder.answer import Ended, Task
from runtime.encoder_decoder.model import RANDOM_SEED, EncoderDecoder, Sampling

if TYPE_CHECKING:
    from exporter.llamacpp.vocabulary import Vocabulary

TEMPLATE = "tokenizer.chat_template"
INT32 = 2**31 - 1  # the largest int32, in which llama.cpp holds these settings
LARGE = 1e9  # above any sensible setting, and within float32
TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable_error",
}
"""llama-server's error types by status; any other status is an invalid_request_error."""
LIMITS = ("n_predict", "max_completion_tokens", "max_tokens")
UNABLE = (
    "echo", "functions", "grammar", "json_schema", "logit_bias", "logprobs", "n_probs", "suffix",
    "tools", "top_logprobs",
)  # fmt: skip
"""Settings that would change the answer and are not implemented, so they are refused."""

Json: TypeAlias = dict[str, Any]  # Any: any JSON value


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str, **more: object) -> None:
        """`more` adds fields to the error; a `type` in it replaces the status's own."""
        super().__init__(message)
        self.status = status
        self.error = {
            "code": status.value,
            "message": message,
            "type": TYPES.get(status, "invalid_request_error"),
            **more,
        }


def wrong(message: str, **more: object) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, message, **more)


@dataclass(frozen=True, slots=True)
class Fields:
    """A request's body; each accessor checks type and range, and raises RefusedError."""

    body: Json

    def number(self, name: str, default: float, low: float, high: float = LARGE) -> float:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(f"`{name}` must be a number, not {shown(value)}")
        if not low <= value <= high:
            raise wrong(f"`{name}` is {shown(value)} and must be {span(low, high)}")
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int = INT32) -> int:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(f"`{name}` must be a whole number, not {shown(value)}")
        if not low <= value <= high:
            raise wrong(f"`{name}` is {shown(value)} and must be {span(low, high)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong(f"`{name}` must be true or false, not {shown(value)}")
        return value

    def text(self, name: str) -> str:
        value = self.body.get(name)
        if not isinstance(value, str):
            raise wrong(f"`{name}` must be a text, not {shown(value)}")
        return value

    def objects(self, name: str) -> list[Json]:
        value = self.body.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise wrong(f"`{name}` must be a list of objects, not {shown(value)}")
        return value

    def object(self, name: str) -> Fields:
        value = self.body.get(name)
        if value is not None and not isinstance(value, dict):
            raise wrong(f"`{name}` must be an object, not {shown(value)}")
        return Fields(value or {})


def shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"  # noqa: PLR2004


def span(low: float, high: float) -> str:
    return f"at least {low:g}" if high in (INT32, LARGE) else f"from {low:g} to {high:g}"


def read_body(raw: bytes) -> Fields:
    """The JSON object of a body."""
    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=refuse_constant)
        # half of a surrogate pair is not a character, though JSON can write it
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise wrong(f"the body is not valid UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise wrong("the body's JSON is nested too deeply") from error
    except ValueError as error:
        raise wrong(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise wrong(f"the body must be a JSON object, not {shown(value)}")
    return Fields(value)


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def completion_task(fields: Fields, model: EncoderDecoder) -> Task:
    """The task of a request to /v1/completions."""
    return task(fields, model, prompt_ids(fields.body.get("prompt"), model))


def prompt_ids(prompt: object, model: EncoderDecoder) -> list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return model.vocabulary.encode(prompt, special=True)
    if isinstance(prompt, list) and prompt:
        return token_ids(prompt, "prompt", model.vocabulary)
    raise wrong(f"`prompt` must be a text or a list of token ids, not {shown(prompt)}")


def token_ids(value: object, name: str, vocabulary: Vocabulary) -> list[int]:
    """A list of ids that are in the vocabulary. Raises RefusedError."""
    size = vocabulary.size
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise wrong(f"`{name}` must be a list of token ids, not {shown(value)}")
    if unknown := [item for item in value if not 0 <= item < size]:
        raise wrong(f"`{name}` has {shown(unknown[0])}, and token ids are from 0 to {size - 1}")
    return value


def chat_task(fields: Fields, model: EncoderDecoder) -> Task:
    """The task of a request to /v1/chat/completions."""
    return task(fields, model, chat_ids(fields, model))


def chat_ids(fields: Fields, model: EncoderDecoder) -> list[int]:
    """The encoder's input for a chat.

    Without a chat template the input is the system's message and below it the last user message:
    these models were trained on single texts, not on conversations.
    """
    messages = [(role(message), content(message)) for message in fields.objects("messages")]
    if "user" not in dict(messages):
        raise wrong("`messages` has none from the user")
    if template := model.header.text(TEMPLATE):
        return rendered(template, messages, model)
    system = [text for name, text in messages if name in ("system", "developer")]
    question = [text for name, text in messages if name == "user"][-1]
    text = "\n".join([*system[-1:], question])
    return model.vocabulary.encode(text, special=True)


def role(message: Json) -> str:
    return Fields(message).text("role")


def content(message: Json) -> str:
    """A message's text, joined from its parts if it has parts. Raises RefusedError."""
    value = message.get("content")
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    parts = Fields(message).objects("content")
    if kinds := [part.get("type") for part in parts if part.get("type") != "text"]:
        raise wrong(f"a message has a part of type {shown(kinds[0])}; this model reads text only")
    return "".join(Fields(part).text("text") for part in parts)


def rendered(
    template: str, messages: Sequence[tuple[str, str]], model: EncoderDecoder
) -> list[int]:
    """The ids of a conversation's prompt; a child process renders it, as templates are not trusted.

    Raises RefusedError if the template refuses the messages.
    """
    names = {name: model.vocabulary.special(name) for name in ("bos", "eos", "pad")}
    tokens = {f"{name}_token": model.vocabulary.text(token) for name, token in names.items()}
    talk = [{"role": name, "content": text} for name, text in messages]
    (made,) = render_all(template, tokens, [RenderJob(talk)])
    if made.text is None:
        raise wrong(f"the model's chat template does not take these messages: {made.refusal}")
    ids = model.vocabulary.encode(made.text, special=True)
    # the tokenizer ends every input with EOS; a template may have added one already
    return ids[:-1] if ids[-2:] == [names["eos"]] * 2 else ids


def task(fields: Fields, model: EncoderDecoder, ids: Sequence[int]) -> Task:
    """Build the task from the settings that chats and completions share."""
    refuse_what_is_not_done(fields)
    if len(ids) > model.n_ctx:
        raise wrong(
            f"the input has {len(ids)} tokens and the encoder takes {model.n_ctx}: shorten it, or"
            " start with a larger context",
            type="exceed_context_size_error",
            n_prompt_tokens=len(ids),
            n_ctx=model.n_ctx,
        )
    limit = next((n for name in LIMITS if (n := fields.integer(name, -1, -1)) >= 0), model.n_ctx)
    return Task(tuple(ids), limit, sampling(fields), stops(fields))


def refuse_what_is_not_done(fields: Fields) -> None:
    if unable := [name for name in UNABLE if fields.body.get(name)]:
        raise wrong(f"`{unable[0]}` is not supported for encoder-decoder models")
    if fields.integer("n", 1, 1) != 1:
        raise wrong("`n` must be 1: encoder-decoder models give one answer at a time")
    if fields.object("response_format").body.get("type", "text") != "text":
        raise wrong("`response_format` must be text: nothing else is supported")
    scales = [Fields(entry).number("scale", 1.0, -LARGE) for entry in fields.objects("lora")]
    if any(scales):
        raise wrong("`lora` asks for an adapter, and none is loaded beside this model: merge it")


def sampling(fields: Fields) -> Sampling:
    usual = Sampling()
    seed = fields.integer("seed", -1, -1, RANDOM_SEED)
    return Sampling(
        temperature=fields.number("temperature", usual.temperature, 0),
        top_k=fields.integer("top_k", usual.top_k, -1),
        top_p=fields.number("top_p", usual.top_p, 0, 1),
        min_p=fields.number("min_p", usual.min_p, 0, 1),
        seed=RANDOM_SEED if seed < 0 else seed,
        repeat_penalty=fields.number("repeat_penalty", usual.repeat_penalty, 1e-3, 1e3),
        repeat_last_n=fields.integer("repeat_last_n", usual.repeat_last_n, -1),
        frequency_penalty=fields.number("frequency_penalty", usual.frequency_penalty, -1e3, 1e3),
        presence_penalty=fields.number("presence_penalty", usual.presence_penalty, -1e3, 1e3),
    )


def stops(fields: Fields) -> tuple[str, ...]:
    value = fields.body.get("stop")
    given = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(stop, str) for stop in given):
        raise wrong(f"`stop` must be a text or a list of texts, not {shown(value)}")
    return tuple(given)


@dataclass(frozen=True, slots=True)
class Wording:
    """Builds responses in OpenAI's form: a chat or a completion, whole or in chunks."""

    is_chat: bool
    model: str
    id: str
    created: int
    """Seconds since 1970."""
    include_usage: bool = False
    """Whether a streamed chat ends with a chunk of token counts."""

    ending: ClassVar[bytes] = b"data: [DONE]\n\n"

    def whole(self, text: str, ended: Ended) -> Json:
        """The answer as one response."""
        part = {"message": {"role": "assistant", "content": text}} if self.is_chat else {
            "text": text, "logprobs": None,
        }  # fmt: skip
        kind = "chat.completion" if self.is_chat else "text_completion"
        numbers = {"usage": usage(ended), "timings": timings(ended)}
        return self.envelope(kind, [self.choice(part, ended.reason)]) | numbers

    def opening(self) -> Iterator[Json]:
        """The chunks before the first piece."""
        if self.is_chat:
            yield self.chunk({"delta": {"role": "assistant", "content": None}}, None)

    def piece(self, text: str) -> Json:
        return self.chunk({"delta": {"content": text}} if self.is_chat else completed(text), None)

    def closing(self, ended: Ended) -> Iterator[Json]:
        """The chunks after the last piece; the counts are in the last one."""
        numbers = {"usage": usage(ended), "timings": timings(ended)}
        if not self.is_chat:
            yield self.chunk(completed(""), ended.reason) | numbers
        elif self.include_usage:
            yield self.chunk({"delta": {}}, ended.reason)
            yield self.envelope("chat.completion.chunk", []) | numbers
        else:
            yield self.chunk({"delta": {}}, ended.reason) | {"timings": numbers["timings"]}

    def failed(self, refused: RefusedError) -> Json:
        return {"error": refused.error}

    def framed(self, chunk: Json) -> bytes:
        """One chunk as bytes of the stream."""
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def chunk(self, part: Json, reason: str | None) -> Json:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return self.envelope(kind, [self.choice(part, reason)])

    def choice(self, part: Json, reason: str | None) -> Json:
        return {"index": 0, "finish_reason": reason, **part}

    def envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "choices": choices,
        }  # fmt: skip


def wording(model: EncoderDecoder, fields: Fields, *, is_chat: bool) -> Wording:
    return Wording(
        is_chat,
        model.header.path.name,
        f"chatcmpl-{secrets.token_hex(12)}",
        int(time.time()),
        fields.object("stream_options").flag("include_usage"),
    )


def completed(text: str) -> Json:
    return {"text": text, "logprobs": None}


def usage(ended: Ended) -> Json:
    return {
        "prompt_tokens": ended.prompt_n,
        "completion_tokens": ended.predicted_n,
        "total_tokens": ended.prompt_n + ended.predicted_n,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def timings(ended: Ended) -> Json:
    """llama-server's timings of one answer."""
    return {
        "cache_n": 0,
        "prompt_n": ended.prompt_n,
        "prompt_ms": ended.prompt_ms,
        "prompt_per_second": per_second(ended.prompt_n, ended.prompt_ms),
        "predicted_n": ended.predicted_n,
        "predicted_ms": ended.predicted_ms,
        "predicted_per_second": per_second(ended.predicted_n, ended.predicted_ms),
    }


def per_second(count: int, ms: float) -> float:
    return count / ms * 1000 if ms else 0.0
