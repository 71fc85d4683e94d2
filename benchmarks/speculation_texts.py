"""What speculation.py asks for: kinds of texts, each with requests whose answers are of this kind.

The demo's model cannot quote or program, so some answers are given: a grammar of token ids leaves
the model one token at each place. It computes as for any other answer, and the guesses are right
where the answer's own tokens repeat the text before them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from exporter.demo.corpus import COUNTRIES, Fact, facts
from runtime.engine.model_server import ModelServer
from runtime.engine.openai_client import ask_json
from tests.support.near_ties import tokens_of

Body = dict[str, Any]
"""A request for `/completion`."""
QUOTED = 12  # sentences of a text that is quoted or rewritten
PASSAGES = 6  # different texts of a kind
REWRITTEN = 4  # every fourth sentence is changed


def talks() -> list[list[dict[str, str]]]:
    """A conversation for each question that the model has learned."""
    questions = (question for fact in facts() for question in fact.questions)
    return [[{"role": "user", "content": question}] for question in questions]


def fresh(server: ModelServer) -> list[Body]:
    """The model's own answers, new texts of some 15 tokens."""
    return [{"prompt": tokens_of(server, talk), "n_predict": 48} for talk in talks()]


def repeated(server: ModelServer) -> list[Body]:
    """Answers that may not end, and so soon repeat themselves."""
    bodies = fresh(server)
    return [{**body, "n_predict": 128, "ignore_eos": True} for body in bodies]


def quoted(server: ModelServer) -> list[Body]:
    """A text from the question, word for word."""
    return [given(server, passage(some), passage(some)) for some in passages()]


def rewritten(server: ModelServer) -> list[Body]:
    """A text from the question in which every fourth sentence is another."""
    return [given(server, passage(some), passage(some, changed=REWRITTEN)) for some in passages()]


def code(server: ModelServer) -> list[Body]:
    """JSON whose records have the same keys; the question contains none of it."""
    names = list(COUNTRIES)
    rows = [dict(zip(("capital", "language", "dish"), COUNTRIES[n], strict=True)) for n in names]
    records = [{"country": name, **row} for name, row in zip(names, rows, strict=True)]
    turned = (records[number:] + records[:number] for number in range(PASSAGES))
    return [given(server, "Tell me of the countries.", json.dumps(r, indent=1)) for r in turned]


TEXTS: dict[str, Callable[[ModelServer], list[Body]]] = {
    made.__name__: made for made in (fresh, repeated, quoted, rewritten, code)
}


def passages() -> Iterator[list[Fact]]:
    """Facts of one text, spread over all."""
    found = list(facts())
    for number in range(PASSAGES):
        yield found[number::PASSAGES][:QUOTED]


def passage(some: Sequence[Fact], *, changed: int = 0) -> str:
    """The facts as sentences; every `changed`-th in the adapter's style."""
    return " ".join(
        fact.pirate if changed and number % changed == 0 else fact.plain
        for number, fact in enumerate(some, 1)
    )


def given(server: ModelServer, question: str, answer: str) -> Body:
    """A request with one possible answer."""
    asked = {"content": answer, "add_special": False, "parse_special": False}
    tokens = ask_json(server, "/tokenize", asked)["tokens"]
    prompt = tokens_of(server, [{"role": "user", "content": question}])
    grammar = "root ::= " + " ".join(f"<[{token}]>" for token in tokens)
    return {"prompt": prompt, "n_predict": len(tokens), "grammar": grammar}
