"""Reads a request for log-likelihoods: its texts, its adapters' scales and the wanted values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from runtime.encoder_decoder.model import EncoderDecoder
from runtime.encoder_decoder.openai import LARGE, Fields, RefusedError, shown, token_ids, wrong
from runtime.scoring.forward import Forward
from runtime.scoring.score_route import START, TOP_MAX

if TYPE_CHECKING:
    from exporter.llamacpp.vocabulary import Vocabulary

Engine = Forward | EncoderDecoder


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt or a target, in tokens."""

    ids: list[int]
    hidden: tuple[int, int] = (0, 0)
    """How many tokens the tokenizer added at the beginning and at the end."""
    drops_space: bool = False
    """Whether its first space was not in the text that the client sent."""
    shown: str | None = None
    """The text as the client sent it; None if it sent token ids."""
    begins_with_space: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A text that another engine generated after a prompt."""

    ids: list[int]
    text: str
    reason: str
    """As OpenAI names it: stop or length."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The texts to score, and the parts of the answer."""

    prompts: Sequence[Text]
    targets: Sequence[Text] | None
    """The target of an encoder-decoder after each prompt."""
    written: Sequence[Sequence[Written]]
    """The texts after each prompt, in the order of the answer's choices; a text may be empty."""
    scales: Sequence[float]
    top: int | None
    """How many of the likeliest tokens; None for an answer without log-probabilities."""
    wants_next: bool
    """Whether the likeliest next token is written after each prompt."""
    starts: Sequence[int]
    """For each prompt, the place of the first token whose log-probability is wanted."""


NOTHING = Written([], "", "length")


def read_request(fields: Fields, engine: Engine) -> ScoreRequest:
    """Read a request's body. Raises RefusedError."""
    prompts = shown_as(fields, texts(fields.body.get("prompt"), "prompt", engine))
    targets = read_targets(fields, engine, len(prompts))
    count = fields.integer("n", 1, 1)
    written = [[NOTHING] * count for _ in prompts]
    if "written" in fields.body:
        written = [[read_written(one, engine) for one in some] for some in fields.body["written"]]
    top = fields.integer("logprobs", -1, 0, TOP_MAX)
    request = ScoreRequest(
        prompts,
        targets,
        written,
        scales_of(fields),
        top if fields.body.get("logprobs") is not None else None,
        fields.flag("wants_next"),
        read_starts(fields, prompts),
    )
    refuse_too_long(request, engine)
    refuse_too_much(request, fields.integer("most", -1, -1))
    return request


def read_targets(fields: Fields, engine: Engine, count: int) -> list[Text] | None:
    value = fields.body.get("target")
    if not isinstance(engine, EncoderDecoder):
        if value is not None:
            raise wrong("`target` goes with encoder-decoders: here it is the prompt's end")
        return None
    if value is None:
        raise wrong(
            "this model is an encoder-decoder: `target` must be what it is to have written after"
            " the prompt, or one such for each prompt"
        )
    found = shown_as(fields, texts(value, "target", engine))
    if len(found) != count:
        raise wrong(f"there are {len(found)} targets for {count} prompts: give one for each")
    return found


def read_starts(fields: Fields, prompts: Sequence[Text]) -> list[int]:
    """The place of the first wanted log-probability in each prompt. Raises RefusedError."""
    value = fields.body.get(START)
    if value is None:
        return [0] * len(prompts)
    if fields.body.get("target") is not None:
        raise wrong(f"`{START}` goes with a prompt that is scored, not with `target`")
    found = value if isinstance(value, list) else [value] * len(prompts)
    if len(found) != len(prompts):
        raise wrong(f"`{START}` has {len(found)} places for {len(prompts)} prompts")
    for start, prompt in zip(found, prompts, strict=True):
        if type(start) is not int or not 0 <= start <= len(prompt.ids):
            raise wrong(
                f"`{START}` is {shown(start)} for a prompt of {len(prompt.ids)} tokens: it must be"
                " the place of a token, from 0"
            )
    return found


def shown_as(fields: Fields, found: list[Text]) -> list[Text]:
    """The texts as the client sent them, if the gateway has changed them."""
    sent = fields.body.get("shown")
    if not isinstance(sent, list) or len(sent) != len(found):
        return found
    return [
        replace(
            text,
            shown=words,
            drops_space=text.drops_space or (text.begins_with_space and words[:1] != " "),
        )
        if isinstance(words, str)
        else text
        for text, words in zip(found, sent, strict=True)
    ]


def texts(value: object, name: str, engine: Engine) -> list[Text]:
    """A text, its token ids, or a list of those."""
    if isinstance(value, str):
        return [tokenize(value, engine.vocabulary)]
    if isinstance(value, list) and value:
        if all(type(one) is int for one in value):
            return [Text(token_ids(value, name, engine.vocabulary))]
        if all(isinstance(one, str) or (isinstance(one, list) and one) for one in value):
            return [
                tokenize(one, engine.vocabulary)
                if isinstance(one, str)
                else Text(token_ids(one, name, engine.vocabulary))
                for one in value
            ]
    raise wrong(f"`{name}` must be a text, its token ids, or a list of those, not {shown(value)}")


def tokenize(text: str, vocabulary: Vocabulary) -> Text:
    """A text's tokens, as engines tokenize a prompt. Raises RefusedError if there are none."""
    ids, bare = (vocabulary.encode(text, special=special) for special in (True, False))
    if not ids:
        raise wrong("a prompt has no token: this model puts nothing before a text")
    added = len(ids) - len(bare)
    before = next((n for n in range(added + 1) if ids[n : n + len(bare)] == bare), 0)
    begins = bool(bare) and vocabulary.piece(bare[0]).startswith(b" ")
    return Text(ids, (before, added - before), begins and not text.startswith(" "), text, begins)


def read_written(value: Any, engine: Engine) -> Written:
    fields = Fields(value)
    ids = token_ids(fields.body.get("tokens"), "tokens", engine.vocabulary)
    return Written(ids, fields.text("text"), fields.text("finish_reason"))


def scales_of(fields: Fields) -> list[float]:
    """Each adapter's scale, by its number."""
    found = {
        Fields(entry).integer("id", 0, 0): Fields(entry).number("scale", 0.0, -LARGE)
        for entry in fields.objects("lora")
    }
    return [found.get(number, 0.0) for number in range(max(found, default=-1) + 1)]


def refuse_too_long(request: ScoreRequest, engine: Engine) -> None:
    lengths = [
        len(prompt.ids) + max((len(one.ids) for one in written), default=0)
        for prompt, written in zip(request.prompts, request.written, strict=True)
    ]
    lengths += [len(target.ids) for target in request.targets or ()]
    if (longest := max(lengths)) > engine.n_ctx:
        raise wrong(
            f"a prompt has {longest} tokens and {engine.n_ctx} fit: shorten it, or serve the model"
            " with a larger context (--ctx)",
            type="exceed_context_size_error",
            n_prompt_tokens=longest,
            n_ctx=engine.n_ctx,
        )


def refuse_too_much(request: ScoreRequest, most: int) -> None:
    """Refuse an answer that would hold more log-probabilities than `most`; -1 is no limit."""
    if request.top is None or most < 0:
        return
    shown_texts = request.targets or request.prompts
    tokens = sum(
        (len(text.ids) - start + len(one.ids)) * (1 + request.top)
        for text, written, start in zip(shown_texts, request.written, request.starts, strict=True)
        for one in written
    )
    if tokens > most:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST,
            f"the answer would hold {tokens} log-probabilities, and this server gives {most}: ask"
            " for fewer prompts at once, or a smaller `logprobs`",
            code="too_many",
        )
