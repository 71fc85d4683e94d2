"""Anthropic's Messages API for an encoder-decoder model: requests as chats, and answers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

from runtime.encoder_decoder.answer import Ended, Task
from runtime.encoder_decoder.model import EncoderDecoder
from runtime.encoder_decoder.openai import (
    Fields,
    Json,
    RefusedError,
    chat_ids,
    chat_task,
    shown,
    wrong,
)

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
SETTINGS = ("temperature", "top_p", "top_k", "seed", "lora", "tools", "tool_choice")
"""Settings that mean the same in both APIs, or that both refuse."""
ERRORS = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.INTERNAL_SERVER_ERROR: "api_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}
"""Anthropic's error types by status; any other status is an invalid_request_error."""


def message_task(fields: Fields, model: EncoderDecoder) -> Task:
    """The task of a request to /v1/messages."""
    if fields.body.get("max_tokens") is None:
        raise wrong("`max_tokens` is missing")
    return chat_task(as_chat(fields), model)


def count_tokens(fields: Fields, model: EncoderDecoder) -> Json:
    """The length of the input in tokens, in the API's form."""
    return {"input_tokens": len(chat_ids(as_chat(fields), model))}


def as_chat(fields: Fields) -> Fields:
    """The same request in OpenAI's form."""
    thinking = fields.object("thinking").body.get("type", "disabled")
    if thinking != "disabled":
        raise wrong(f"`thinking` of type {shown(thinking)} is not supported: this model has none")
    chat = {name: fields.body[name] for name in SETTINGS if name in fields.body}
    chat["max_tokens"] = fields.integer("max_tokens", -1, 1)
    if (stops := fields.body.get("stop_sequences")) is not None:
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise wrong(f"`stop_sequences` must be a list of texts, not {shown(stops)}")
        chat["stop"] = stops
    chat["messages"] = fields.objects("messages")
    if (system := fields.body.get("system")) is not None:
        chat["messages"] = [{"role": "system", "content": system}, *chat["messages"]]
    return Fields(chat)


def error_of(refused: RefusedError) -> Json:
    kind = ERRORS.get(refused.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": str(refused)}}


@dataclass(frozen=True, slots=True)
class MessageWording:
    """Builds responses in Anthropic's form: one message, or a stream of events."""

    model: str
    id: str
    prompt_n: int
    """Tokens of the input."""

    ending: ClassVar[bytes] = b""

    def whole(self, text: str, ended: Ended) -> Json:
        """The answer as one message."""
        reason, stop = reason_of(ended)
        return self.message([{"type": "text", "text": text}], reason, stop, ended.predicted_n)

    def message(
        self, content: list[Json], reason: str | None, stop: str | None, predicted_n: int
    ) -> Json:
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": content, "stop_reason": reason, "stop_sequence": stop,
            "usage": {"input_tokens": self.prompt_n, "output_tokens": predicted_n},
        }  # fmt: skip

    def opening(self) -> Iterator[Json]:
        """The events before the first piece."""
        yield {"type": "message_start", "message": self.message([], None, None, 0)}
        block = {"type": "text", "text": ""}
        yield {"type": "content_block_start", "index": 0, "content_block": block}

    def piece(self, text: str) -> Json:
        delta = {"type": "text_delta", "text": text}
        return {"type": "content_block_delta", "index": 0, "delta": delta}

    def closing(self, ended: Ended) -> Iterator[Json]:
        """The events after the last piece."""
        reason, stop = reason_of(ended)
        yield {"type": "content_block_stop", "index": 0}
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": {"output_tokens": ended.predicted_n},
        }
        yield {"type": "message_stop"}

    def failed(self, refused: RefusedError) -> Json:
        return error_of(refused)

    def framed(self, event: Json) -> bytes:
        """One event as bytes of the stream."""
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def message_wording(model: EncoderDecoder, task: Task) -> MessageWording:
    return MessageWording(model.header.path.name, f"msg_{secrets.token_hex(12)}", len(task.ids))


def reason_of(ended: Ended) -> tuple[str, str | None]:
    """Anthropic's stop reason, and the stop sequence that ended the answer, if one did."""
    if ended.stopped_by is not None:
        return "stop_sequence", ended.stopped_by
    return ("max_tokens" if ended.reason == "length" else "end_turn"), None
