"""Generates one answer of an encoder-decoder model as a stream of text pieces."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from runtime.encoder_decoder.model import EncoderDecoder, Flag, Sampling, generate


@dataclass(frozen=True, slots=True)
class Task:
    """One request for an answer: its input, limits and sampling."""

    ids: tuple[int, ...]
    """The encoder's input."""
    limit: int
    """The most tokens, including the one that ends the answer; the context limits it, too."""
    sampling: Sampling
    stops: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete."""

    reason: str
    """OpenAI's finish reason: stop, or length when a limit was reached."""
    prompt_n: int
    prompt_ms: float
    """Milliseconds until the first token."""
    predicted_n: int
    predicted_ms: float
    stopped_by: str | None = None
    """The stop text that ended the answer, if one did."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer broke off; `message` gives the reason."""

    message: str


Event: TypeAlias = Piece | Ended | Failed


def answer(model: EncoderDecoder, task: Task, stop: Flag) -> Iterator[Event]:
    """Generate the answer to a task until it ends or `stop` is set. Raises EngineError."""
    text = Text(task.stops, strips_space=model.adds_space)
    began = first = time.monotonic()
    count, reason = 0, "length"
    with closing(generate(model, task.ids, task.sampling, stop)) as tokens:
        for token in islice(tokens, task.limit):
            count += 1
            if count == 1:
                first = time.monotonic()
            if model.is_end(token):
                reason = "stop"
                break
            if shown := text.add(model.piece(token)):
                yield Piece(shown)
            if text.is_stopped:
                reason = "stop"
                break
    if shown := text.end():
        yield Piece(shown)
    ended = time.monotonic()
    prompt_ms, predicted_ms = (first - began) * 1000, (ended - first) * 1000
    yield Ended(reason, len(task.ids), prompt_ms, count, predicted_ms, text.stopped_by)


class Text:
    """Turns tokens' bytes into text: whole characters, up to what may begin a stop text.

    The pieces, joined, are the same however the bytes are cut.
    """

    def __init__(self, stops: Sequence[str] = (), *, strips_space: bool = False) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self.strips_space = strips_space
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.stopped_by: str | None = None

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def add(self, piece: bytes) -> str:
        """The text that these bytes complete; the rest is held back."""
        if self.strips_space and piece:
            piece, self.strips_space = piece.removeprefix(b" "), False
        return self.show(self.decoder.decode(piece))

    def end(self) -> str:
        """The text held back until now, as no more bytes follow."""
        if self.is_stopped:
            return ""
        shown = self.show(self.decoder.decode(b"", final=True))
        rest, self.held = self.held, ""
        return shown + rest

    def show(self, text: str) -> str:
        self.held += text
        starts = [(at, stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if starts:
            _, first, self.stopped_by = min((at + len(stop), at, stop) for at, stop in starts)
            shown, self.held = self.held[:first], ""
            return shown
        kept = max((beginning(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - kept
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown


def beginning(text: str, stop: str) -> int:
    """The number of characters at the end of `text` that are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
