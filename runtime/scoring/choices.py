"""The answer to a request for log-likelihoods, in the form of OpenAI's completions."""

from __future__ import annotations

import codecs
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from runtime.encoder_decoder.model import EncoderDecoder, Flag
from runtime.encoder_decoder.openai import Json
from runtime.scoring.score_request import Engine, ScoreRequest, Text, Written
from runtime.scoring.scores import Scores, ScoringTask, empty_scores
from runtime.scoring.target_scores import target_scores

if TYPE_CHECKING:
    from exporter.llamacpp.vocabulary import Vocabulary

LEAST = -9999.0
"""OpenAI's log-probability of an impossible token."""


def answer_request(engine: Engine, request: ScoreRequest, name: str, stop: Flag) -> Json:
    """The answer, in OpenAI's form. Raises StoppedError, EngineError and UnsupportedError."""
    texts = [
        (text, one)
        for text, written in zip(request.targets or request.prompts, request.written, strict=True)
        for one in written
    ]
    starts = [
        start
        for start, written in zip(request.starts, request.written, strict=True)
        for _ in written
    ]
    whole = [[*text.ids, *one.ids] for text, one in texts]
    scores = compute_scores(engine, request, whole, starts, stop)
    if request.wants_next:
        texts = [
            (text, next_token(found, engine.vocabulary))
            for (text, _), found in zip(texts, scores, strict=True)
        ]
    choices = [
        {
            "index": index,
            "text": shown_text(engine.vocabulary, text) + one.text,
            "logprobs": None
            if request.top is None
            else logprobs(engine, (request.top, start), text, one, found),
            "finish_reason": one.reason,
        }
        for index, ((text, one), found, start) in enumerate(zip(texts, scores, starts, strict=True))
    ]
    return {
        "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion",
        "created": int(time.time()), "model": name, "choices": choices,
        "usage": usage(request, [one for _, one in texts]),
    }  # fmt: skip


def compute_scores(
    engine: Engine,
    request: ScoreRequest,
    texts: Sequence[list[int]],
    starts: Sequence[int],
    stop: Flag,
) -> list[Scores]:
    """The scores of the texts; equal texts, such as those of `n`, are computed once.

    starts: for each text, the place of the first wanted log-probability.
    """
    if request.top is None and not request.wants_next:
        return [empty_scores(len(text), 0) for text in texts]
    top = max(request.top or 0, int(request.wants_next))
    if request.targets is not None:
        assert isinstance(engine, EncoderDecoder)
        sources = [
            prompt.ids
            for prompt, written in zip(request.prompts, request.written, strict=True)
            for _ in written
        ]
        return target_scores(engine, list(zip(sources, texts, strict=True)), top, stop)
    assert not isinstance(engine, EncoderDecoder)
    first = [
        max(1, start) if request.top is not None else len(text)
        for text, start in zip(texts, starts, strict=True)
    ]
    return engine.scores(
        ScoringTask(texts, first, top, wants_next=request.wants_next), request.scales, stop
    )


def next_token(scores: Scores, vocabulary: Vocabulary) -> Written:
    """The likeliest token after a prompt."""
    token = int(scores.top_ids[-1, 0])
    if vocabulary.is_end(token):
        return Written([token], "", "stop")
    text = written_piece(vocabulary, token)
    return Written([token], text.decode(errors="replace"), "length")


def logprobs(
    engine: Engine, wanted: tuple[int, int], text: Text, written: Written, scores: Scores
) -> Json:
    """OpenAI's `logprobs`: of the prompt's tokens, then of those written after it.

    wanted: how many of the likeliest tokens, and the first token that is listed. The first token of
    a prompt has no log-probability; that of a target has one, for it follows the source.
    """
    vocabulary = engine.vocabulary
    top, start = wanted
    ids = [*text.ids, *without_stop_text(written, vocabulary)]
    names = [name_of(vocabulary.piece(token)) for token in ids[start:]]
    values: list[float | None] = [finite(value) for value in scores.logprobs[start : len(ids)]]
    if len(values) < len(names):  # the token that was written here
        values.append(finite(scores.top_logprobs[-1, 0]))
    tops: list[Json | None] = [
        likeliest(vocabulary, scores, place, top, own)
        for place, own in enumerate(zip(names, values, strict=True), start)
    ]
    if not start and not isinstance(engine, EncoderDecoder):
        values[0] = tops[0] = None
    return {
        "tokens": names,
        "token_logprobs": values,
        "top_logprobs": tops if top else None,
        "text_offset": list(offsets(vocabulary, text, ids))[start:],
    }


def likeliest(
    vocabulary: Vocabulary, scores: Scores, place: int, top: int, own: tuple[str, float | None]
) -> Json:
    """The likeliest tokens at a place, and the text's own token."""
    found: Json = {}
    for token, value in zip(
        scores.top_ids[place, :top], scores.top_logprobs[place, :top], strict=True
    ):
        if token >= 0:
            found.setdefault(name_of(vocabulary.piece(int(token))), finite(value))
    found.setdefault(*own)
    return found


def finite(value: float) -> float:
    return max(float(value), LEAST) if not math.isnan(value) else LEAST


def without_stop_text(written: Written, vocabulary: Vocabulary) -> list[int]:
    """The tokens of a written text, without those of the stop text that ended it."""
    ids = written.ids
    if written.reason != "stop" or not ids or vocabulary.is_end(ids[-1]):
        return ids
    decoder, count = codecs.getincrementaldecoder("utf-8")("replace"), 0
    for place, token in enumerate(ids):
        if count >= len(written.text):
            return ids[:place]
        count += len(decoder.decode(written_piece(vocabulary, token)))
    return ids


def written_piece(vocabulary: Vocabulary, token: int) -> bytes:
    """The bytes that a token adds to an answer; none for a control token."""
    return b"" if vocabulary.is_special(token) else vocabulary.piece(token)


def name_of(piece: bytes) -> str:
    """A token's text, or its bytes in OpenAI's form where they are no text."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def pieces(vocabulary: Vocabulary, text: Text, ids: Sequence[int]) -> Iterator[bytes]:
    """The bytes that each token adds to the text; none for a token that the tokenizer added."""
    before, after = text.hidden
    end = len(text.ids) - after
    for place, token in enumerate(ids):
        piece = vocabulary.piece(token)
        if place >= len(text.ids):
            yield written_piece(vocabulary, token)
        elif place < before or place >= end:
            yield b""
        elif place == before and text.drops_space:
            yield piece[1:]
        else:
            yield piece


def shown_text(vocabulary: Vocabulary, text: Text) -> str:
    if text.shown is not None:
        return text.shown
    return b"".join(pieces(vocabulary, text, text.ids)).decode(errors="replace")


def offsets(vocabulary: Vocabulary, text: Text, ids: Sequence[int]) -> Iterator[int]:
    """Where each token begins, in characters of the text."""
    decoder, count = codecs.getincrementaldecoder("utf-8")("replace"), 0
    for piece in pieces(vocabulary, text, ids):
        yield count
        count += len(decoder.decode(piece))


def usage(request: ScoreRequest, written: Sequence[Written]) -> Json:
    prompt = sum(len(one.ids) for one in request.prompts)
    completion = sum(len(one.ids) for one in written)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
