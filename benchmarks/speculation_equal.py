"""Whether answers with guesses are the same, however they are asked for; `speculation.py` runs it.

Prompts take turns among three voices (the base, an adapter, another at half its scale), five
options of a request, and three kinds of talks. One client asks an engine without guesses. Four
clients ask the others, among them one without guesses: there only the batch size is another. So it
is where 16 clients ask. Then each engine is asked once more, one request at a time, as a chat, with
and without a stream: the text has to be that of the tokens, and the reason of its end the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.demo import make_demo_models
from exporter.demo.corpus import Fact, facts
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from exporter.llamacpp.toolchain import cache_folder, find_toolchain
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.local import CHAT
from runtime.engine.lora_scales import lora_vector
from runtime.engine.openai_client import Delta, Stopped, read_events, read_object, streamed
from runtime.engine.speculation import OFF, Speculation, speculation_of
from tests.runtime.conftest import train_liar
from tests.support.near_ties import ALL_SHOWN, CLOSE, gap, tokens_of

CROWDED = "off, 16 clients"
Body = dict[str, Any]
"""A request for `/completion`."""
VOICES = {"base": (0.0, 0.0), "pirate": (1.0, 0.0), "liar@0.5": (0.0, 0.5)}
TOWNS = {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 3}
SCHEMA = {"type": "object", "properties": {"towns": TOWNS}, "required": ["towns"]}
OPTIONS: dict[str, tuple[Body, Body]] = {
    "plain": ({}, {}),
    "streamed": ({"stream": True}, {"stream": True}),
    "stop": ({}, {}),  # it is a part of the answer, which is not known yet
    "schema": (
        {"json_schema": SCHEMA},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ),
    "logprobs": ({"n_probs": 3}, {"logprobs": True, "top_logprobs": 3}),
}
"""What a request has for each option, and what a chat has."""
REASONS = {"eos": "stop", "word": "stop", "limit": "length"}
"""OpenAI's finish reasons, by llama-server's."""
TALKS = ("asked", "asked again", "goes on")
"""A question; one after the same question and an answer; one whose answer may not end."""
TOKENS = 64
CLIENTS, MANY_CLIENTS = 4, 16
CONTEXT = 512  # tokens of one slot
STOP_LENGTH = 4  # characters, which may begin and end within a token


@dataclass(frozen=True, slots=True)
class Models:
    """The files of the engines."""

    base: Path
    adapters: tuple[Path, Path]
    draft: Path
    """Guesses for them: the first adapter merged into the base."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with an option, in two forms."""

    option: str
    body: Body
    """For `/completion`, which tells the tokens."""
    chat: Body


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets."""

    text: str
    tokens: tuple[int, ...]
    reason: str
    """Why it ended."""
    logprobs: tuple[Mapping[int, float], ...] = ()
    """Of each token: of the chosen one, and of the likeliest ones, by token."""
    guessed: int = 0
    accepted: int = 0


@dataclass
class Difference:
    """How the answers of an engine differ from those that are right."""

    to_the_letter: int = 0
    same: int = 0
    """Equal, or parting where two tokens are nearly as likely."""
    largest_gap: float = 0.0
    """Of two logits where texts part."""
    largest_logprob_gap: float = 0.0
    """Of two logprobs of one token."""
    same_in_a_chat: int = 0
    """Texts that are the same by `/completion`, in a chat, and in a streamed chat."""
    guessed: Counter[str] = field(default_factory=Counter)
    """Guesses by option."""
    accepted: Counter[str] = field(default_factory=Counter)

    def note(self, option: str, right: Answer, found: Answer, gap: float) -> None:
        """Count an answer; gap: of the logits where the texts part."""
        values = logprob_gap(right, found)
        is_equal = (right.text, right.reason) == (found.text, found.reason)
        self.to_the_letter += is_equal
        self.same += (is_equal or 0 < gap < CLOSE) and values < CLOSE
        self.largest_gap = max(self.largest_gap, gap)
        self.largest_logprob_gap = max(self.largest_logprob_gap, values)
        self.guessed[option] += found.guessed
        self.accepted[option] += found.accepted

    def numbers(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {
            "to_the_letter": self.to_the_letter,
            "same": self.same,
            "same_in_a_chat": self.same_in_a_chat,
            "largest_gap": round(self.largest_gap, 3),
            "largest_logprob_gap": round(self.largest_logprob_gap, 3),
            "guessed": dict(self.guessed),
            "accepted": dict(self.accepted),
        }


def make_models(folder: Path) -> Models:
    """The demo's base, its adapter and another one, and a draft model."""
    demo, toolchain = make_demo_models(cache_folder() / "demo"), find_toolchain()
    base, draft = folder / "base-Q4_K_M.gguf", folder / "draft-Q4_K_M.gguf"
    export(ExportRequest((), demo.base, ("Q4_K_M",), (base,)), toolchain)
    export(ExportRequest(((demo.adapter, 1.0),), demo.base, ("Q4_K_M",), (draft,)), toolchain)
    train_liar(folder / "liar", demo.base)
    pirate, liar = (
        export_lora(LoraRequest(adapter, demo.base, folder / f"{name}.gguf"), toolchain).path
        for name, adapter in (("pirate", demo.adapter), ("liar", folder / "liar"))
    )
    return Models(base, (pirate, liar), draft)


def engine(models: Models, kind: Speculation, clients: int) -> Server:
    spec = ServerSpec(models.base, CONTEXT, 1, clients, models.adapters, extra=kind.flags())
    return Server(spec, find_toolchain())


def kinds_for(models: Models) -> dict[str, Speculation]:
    """The engines that are compared; the first two have no guesses, only more clients."""
    draft = speculation_of(str(models.draft), models.draft.parent)
    return {"off": OFF, CROWDED: OFF, "ngram": Speculation("ngram"), "draft": draft}


def differences(
    models: Models, kinds: Mapping[str, Speculation], count: int
) -> dict[str, Difference]:
    """How the answers to `count` prompts differ from those without guesses, one at a time."""
    with engine(models, OFF, 1) as off:
        asked = list(requests(off, count))
        right = [answer(off, one.body) for one in asked]
        found = {}
        for name, kind in kinds.items():
            clients = MANY_CLIENTS if name == CROWDED else CLIENTS
            with engine(models, kind, clients) as server:
                found[name] = difference(off, server, asked, right, clients)
    return found


def difference(
    off: Server,
    server: Server,
    asked: Sequence[Request],
    right: Sequence[Answer],
    clients: int,
) -> Difference:
    """How the answers of a server differ from the right ones, which are those of `off`."""
    found = Difference()
    with ThreadPoolExecutor(clients) as pool:
        others = list(pool.map(lambda one: answer(server, one.body), asked))
    for one, mine, other in zip(asked, right, others, strict=True):
        found.note(one.option, mine, other, parting(off, one.body, mine, other))
    found.same_in_a_chat = sum(is_same_in_a_chat(server, one) for one in asked)
    return found


def parting(off: Server, body: Body, mine: Answer, other: Answer) -> float:
    """The gap of the logits where two answers part."""
    scales = {"lora": body["lora"]}
    return gap(off, body["prompt"], mine.tokens, other.tokens, scales, shown=ALL_SHOWN)


def requests(server: Server, count: int) -> Iterator[Request]:
    """The prompts, each with the next voice, option and kind of talk."""
    pairs = [(fact, question) for fact in facts() for question in fact.questions]
    for number in range(count):
        turn, voice = divmod(number, len(VOICES))
        turn, option = divmod(turn, len(OPTIONS))
        kind, name = TALKS[turn % len(TALKS)], list(OPTIONS)[option]
        messages = talk(kind, *pairs[number % len(pairs)])
        both = {
            "temperature": 0,
            # after the last brace of JSON there is nothing but the end
            "ignore_eos": kind == "goes on" and name != "schema",
            **lora_vector(list(VOICES.values())[voice]),
        }
        prompt = tokens_of(server, messages)
        body = {"prompt": prompt, "n_predict": TOKENS, "return_tokens": True, **both}
        if name == "stop":
            both = both | {"stop": [middle_of(answer(server, {**body, **both}).text)]}
        of_body, of_chat = OPTIONS[name]
        chat = {"messages": messages, "max_tokens": TOKENS}
        yield Request(name, body | both | of_body, chat | both | of_chat)


def talk(kind: str, fact: Fact, question: str) -> list[dict[str, str]]:
    """The messages of a talk of a kind."""
    asked = [{"role": "user", "content": question}]
    if kind == "asked again":
        said = fact.pirate if len(question) % 2 else fact.plain
        return [*asked, {"role": "assistant", "content": said}, *asked]
    return asked


def middle_of(text: str) -> str:
    """Some letters from the middle of a text."""
    return text[len(text) // 2 :][:STOP_LENGTH]


def answer(server: Server, body: Body) -> Answer:
    """The answer to a request, as a client puts it together from its parts."""
    with server.post("/completion", body) as response:
        is_streamed = bool(body.get("stream"))
        parts = list(read_events(server, response)) if is_streamed else [read_object(response)]
    end = parts[-1]
    return Answer(
        "".join(part["content"] for part in parts),
        tuple(token for part in parts for token in part["tokens"]),
        end["stop_type"],
        tuple(map(values_of, end.get("completion_probabilities", ()))),
        end["timings"].get("draft_n", 0),
        end["timings"].get("draft_n_accepted", 0),
    )


def is_same_in_a_chat(server: Server, request: Request) -> bool:
    """Whether a chat's text and end are the tokens' own; no other client may ask meanwhile.

    A chat has another grammar for a schema: there only its two forms are compared.
    """
    anew = {"cache_prompt": False}  # so that all are computed in the same batches
    found = {in_a_chat(server, {**request.chat, **anew, "stream": on}) for on in (False, True)}
    if request.option != "schema":
        alone = answer(server, {**request.body, **anew})
        found.add((alone.text.strip(), REASONS[alone.reason]))
    return len(found) == 1


def in_a_chat(server: Server, fields: Body) -> tuple[str, str]:
    """The text of a chat's answer, and the reason of its end."""
    pieces = list(streamed(server, CHAT, fields))
    text = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
    end = pieces[-1]
    assert isinstance(end, Stopped)
    return text.strip(), end.reason


def values_of(token: Mapping[str, Any]) -> Mapping[int, float]:
    """The logprobs at a token's place, the chosen one's first."""
    return {one["id"]: one["logprob"] for one in (token, *token["top_logprobs"])}


def logprob_gap(one: Answer, other: Answer) -> float:
    """The largest difference of a token's logprobs in two answers, as far as they are the same.

    Infinite if one has logprobs for other tokens than the other.
    """
    if len(one.logprobs) != len(other.logprobs) and one.text == other.text:
        return math.inf
    gaps = [0.0]
    for mine, his in zip(one.logprobs, other.logprobs, strict=False):
        if next(iter(mine)) != next(iter(his)):
            break
        gaps += [abs(mine[token] - his[token]) for token in mine.keys() & his.keys()]
    return max(gaps)
