"""`/v1/completions` with `echo` and `logprobs` says what transformers and peft say."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.gateway.conftest import Served, asking, serving, until, used
from tests.runtime.scoring.conftest import CONTEXT, Scored, drawn, families
from tests.support.processes import cpu_s, is_alive

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

CLOSE = 1e-4  # nats a token
ROUTE = "/v1/completions"
VOICES = {
    "plain": (0.0, 0.0), "plain:first": (1.0, 0.0), "plain:first@0.5": (0.5, 0.0),
    "plain:second": (0.0, 1.0), "plain:second@-0.7": (0.0, -0.7),
}  # fmt: skip
LIMIT = 9000  # log-probabilities in an answer
TEXT = "the tea on é a"


@pytest.fixture(scope="module")
def served(scored, tmp_path_factory) -> Iterator[Served]:
    """The base with two adapters, and a merged model."""
    adapters: list[object] = []
    for name, path in zip(("first", "second"), scored.adapters, strict=True):
        adapters += ["--adapter", f"{name}={path}"]
    models = (scored.gguf, *adapters)
    limit = ("--limit", f"logprobs={LIMIT}")
    with serving(tmp_path_factory.mktemp("echo"), *models, "--threads", "1", *limit) as found:
        found.wait_until_ready()
        yield found


def ask(served: Served, **body: object) -> Any:
    status, answer = served.ask(ROUTE, {"echo": True, "max_tokens": 0, **body})
    assert status == 200, answer
    return answer


def values(choice: Any) -> list[float]:
    """The log-probabilities after the first token, which has none."""
    first, *rest = choice["logprobs"]["token_logprobs"]
    assert first is None
    return rest


@pytest.mark.parametrize("model", VOICES)
def test_prompts_as_token_ids_are_scored_as_unmerged(served, scored, model):
    texts = families(21)

    answer = ask(served, model=model, prompt=texts, logprobs=1)

    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    for text, choice in zip(texts, answer["choices"], strict=True):
        expected = scored.reference.tokens(text, VOICES[model]) if len(text) > 1 else []
        np.testing.assert_allclose(values(choice), expected, rtol=0, atol=CLOSE)


def test_the_form_is_openais_classic_one(served, scored):
    answer = ask(served, model="plain", prompt=TEXT, logprobs=2)

    choice = answer["choices"][0]
    said = choice["logprobs"]
    ids = tokenizer(scored)(TEXT)["input_ids"]
    assert answer["object"] == "text_completion"
    assert answer["usage"] == {
        "prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)
    }  # fmt: skip
    assert (choice["index"], choice["text"], choice["finish_reason"]) == (0, TEXT, "length")
    assert said.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(one) for one in said.values()} == {len(ids)}
    assert said["tokens"][0] == "<s>"
    assert "bytes:\\xc3" in said["tokens"]
    assert said["token_logprobs"][0] is None
    assert said["top_logprobs"][0] is None
    for place in range(1, len(ids)):
        token, tops = said["tokens"][place], said["top_logprobs"][place]
        assert 2 <= len(tops) <= 3
        assert tops[token] == said["token_logprobs"][place] or token.startswith("bytes")
        start = said["text_offset"][place]
        if not token.startswith("bytes"):
            assert TEXT[start:].startswith(token if start else token.removeprefix(" "))
    offsets = said["text_offset"]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[-1] < len(TEXT)


def tokenizer(scored: Scored) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(scored.base)


def test_a_text_has_its_tokens_scores(served, scored):
    ids = tokenizer(scored)(TEXT)["input_ids"]

    by_text, by_ids = (
        ask(served, model="plain:first", prompt=[TEXT], logprobs=0),
        ask(served, model="plain:first", prompt=[ids], logprobs=0),
    )

    assert values(by_text["choices"][0]) == values(by_ids["choices"][0])
    assert by_text["choices"][0]["logprobs"]["top_logprobs"] is None
    expected = scored.reference.tokens(ids, (1.0, 0.0))
    np.testing.assert_allclose(values(by_ids["choices"][0]), expected, rtol=0, atol=CLOSE)


def test_without_logprobs_the_text_alone_comes_back(served):
    answer = ask(served, model="plain", prompt=[TEXT, "a"])

    assert [choice["text"] for choice in answer["choices"]] == [TEXT, "a"]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]


def test_the_likeliest_next_token_is_written_and_scored(served, scored):
    text = drawn(23, 30)[0]
    expected = scored.reference.logprobs(text, (0.0, 1.0))[-1]

    answer = ask(served, model="plain:second", prompt=text, logprobs=1, max_tokens=1, temperature=0)

    said = answer["choices"][0]["logprobs"]
    assert len(said["tokens"]) == len(text) + 1
    assert said["token_logprobs"][-1] == pytest.approx(expected.max(), abs=CLOSE)
    assert said["top_logprobs"][-1] == {said["tokens"][-1]: said["token_logprobs"][-1]}
    assert answer["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1, "seed": 5}])
def test_what_is_written_is_the_usual_engines_and_scored_as_one_text(served, settings):
    body = {"model": "plain:first", "prompt": TEXT, "max_tokens": 6, **settings}
    status, plain = served.ask(ROUTE, body)
    assert status == 200

    answer = ask(served, **body, logprobs=1)

    choice = answer["choices"][0]
    said = choice["logprobs"]
    assert choice["text"] == TEXT + plain["choices"][0]["text"]
    assert choice["finish_reason"] == plain["choices"][0]["finish_reason"] == "length"
    alone = ask(served, model="plain:first", prompt=TEXT, logprobs=1)["choices"][0]["logprobs"]
    count = len(alone["tokens"])
    assert len(said["tokens"]) == count + 6
    assert said["tokens"][:count] == alone["tokens"]
    np.testing.assert_allclose(
        said["token_logprobs"][1:count], alone["token_logprobs"][1:], rtol=0, atol=1e-5
    )
    if settings["temperature"] == 0:
        for token, tops in zip(said["tokens"][count:], said["top_logprobs"][count:], strict=True):
            assert max(tops, key=tops.get) == token


def test_a_stop_text_is_no_part_of_the_answer(served):
    whole = ask(served, model="plain", prompt=TEXT, max_tokens=6, temperature=0, logprobs=0)
    written = whole["choices"][0]["text"].removeprefix(TEXT)

    cut = ask(
        served, model="plain", prompt=TEXT, max_tokens=6, temperature=0, logprobs=0,
        stop=[written[2:4]],
    )  # fmt: skip

    choice = cut["choices"][0]
    assert choice["text"] == TEXT + written[:2]
    assert choice["finish_reason"] == "stop"
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert tokens == whole["choices"][0]["logprobs"]["tokens"][: len(tokens)]
    assert offsets[-1] < len(choice["text"])


def test_n_answers_stand_by_their_prompts(served):
    answer = ask(
        served, model="plain", prompt=[TEXT, "a"], n=3, max_tokens=4, temperature=1, seed=1,
        logprobs=0,
    )  # fmt: skip

    found = [choice["text"] for choice in answer["choices"]]
    assert all(text.startswith(TEXT) for text in found[:3])
    assert all(text.startswith("a") for text in found[3:])
    assert len(set(found[:3])) > 1


def test_a_stream_is_the_answer_in_one_event(served):
    body = {"model": "plain", "prompt": TEXT, "echo": True, "max_tokens": 0, "logprobs": 1}
    with served.send("POST", ROUTE, {**body, "stream": True}) as response:
        assert response.getheader("Content-Type").startswith("text/event-stream")
        first, last, rest = response.read().decode().split("\n\n")

    assert first.startswith('data: {"id"')
    assert (last, rest) == ("data: [DONE]", "")


def test_clients_of_other_adapters_change_no_bit(served):
    texts = families(31)
    bodies = [{"model": model, "prompt": texts[n : n + 6], "logprobs": 3}
              for model in VOICES for n in (0, 6)]  # fmt: skip
    alone = [ask(served, **body)["choices"] for body in bodies]
    order = random.Random(6).choices(range(len(bodies)), k=60)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: ask(served, **bodies[n])["choices"], order))

    wrong = [n for n, got in zip(order, answers, strict=True) if got != alone[n]]
    assert wrong == []
    assert all(alone[0] != other for other in alone[1:])


def test_long_lists_are_scored_in_portions_and_come_back_in_order(served, scored):
    texts = drawn(33, *([3, 9] * 50))

    answer = ask(served, model="plain", prompt=texts, logprobs=0)

    assert [choice["index"] for choice in answer["choices"]] == list(range(100))
    assert answer["usage"]["prompt_tokens"] == 600
    for place in (0, 31, 32, 99):
        expected = scored.reference.tokens(texts[place], (0.0, 0.0))
        np.testing.assert_allclose(values(answer["choices"][place]), expected, rtol=0, atol=CLOSE)


def test_lists_begin_at_the_token_that_is_asked_for(served):
    texts = [text for text in families(41) if len(text) > 1]
    starts = [len(text) * place // len(texts) for place, text in enumerate(texts)]
    body = {"model": "plain:first", "prompt": texts, "logprobs": 2}
    whole = ask(served, **body)

    answer = ask(served, **body, logprob_start_len=starts)

    assert max(starts) > 100
    for start, choice, other in zip(starts, answer["choices"], whole["choices"], strict=True):
        found, all_of = choice["logprobs"], other["logprobs"]
        assert choice["text"] == other["text"]
        assert found["tokens"] == all_of["tokens"][start:]
        assert found["text_offset"] == all_of["text_offset"][start:]
        assert [*found["top_logprobs"]][-1].keys() == all_of["top_logprobs"][-1].keys()
        kept = slice(int(not start), None)
        np.testing.assert_allclose(
            found["token_logprobs"][kept], all_of["token_logprobs"][start:][kept], rtol=0, atol=1e-5
        )


def test_a_long_lists_starts_are_cut_with_it_and_unlisted_tokens_are_not_counted(served):
    texts = drawn(43, *[300] * 40)

    answer = ask(
        served, model="plain", prompt=texts, logprobs=0, logprob_start_len=[298] * 33 + [299] * 7
    )

    lengths = [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]]
    assert lengths == [2] * 33 + [1] * 7


def test_the_next_token_follows_a_prompt_that_is_not_listed(served):
    text = drawn(47, 30)[0]
    body = {"model": "plain", "prompt": text, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    whole = ask(served, **body)["choices"][0]["logprobs"]

    answer = ask(served, **body, logprob_start_len=30)["choices"][0]["logprobs"]

    assert answer["tokens"] == whole["tokens"][-1:]
    assert answer["token_logprobs"] == pytest.approx(whole["token_logprobs"][-1:], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": [5, 6], "logprob_start_len": 3}, "is 3 for a prompt of 2 tokens"),
        ({"prompt": [5, 6], "logprob_start_len": -1}, "must be the place of a token, from 0"),
        ({"prompt": [5, 6], "logprob_start_len": "1"}, 'is "1" for a prompt of 2 tokens'),
        ({"prompt": [[5], [6]], "logprob_start_len": [0]}, "has 1 places for 2 prompts"),
        ({"prompt": [5] * (CONTEXT + 1)}, f"has {CONTEXT + 1} tokens and {CONTEXT} fit"),
        ({"prompt": [5] * 1000, "logprobs": 9}, f"10000 log-probabilities, and this server gives {LIMIT}"),  # noqa: E501
        ({"prompt": ["a"] * 40, "n": 10}, "400 answers"),
        ({"prompt": [[5], [320]]}, "320"),
        ({"prompt": [[5], []]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"prompt_string": "a"}}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": "a", "target": "b"}, "target"),
        ({"prompt": "a", "logprobs": 101}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "n": 0.5}, "`n`"),
        ({"prompt": "a", "echo": 1}, "echo"),
        ({"prompt": "a", "max_tokens": "4"}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 4, "temperature": "hot"}, ""),
        ({}, "prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_in_words(served, body, says):
    status, answer = served.ask(
        ROUTE, {"model": "plain", "echo": True, "max_tokens": 0, "logprobs": 1, **body}
    )

    assert status == 400, answer
    assert says in answer["error"]["message"]


def test_an_engine_computes_no_more_when_its_client_has_gone(served):
    ask(served, model="plain", prompt=TEXT, logprobs=1)  # it is loaded
    (engine,) = [pid for pid in served.children() if b"runtime.scoring" in command_of(pid)]
    body = {
        "model": "plain", "prompt": drawn(35, *[1000] * 32), "echo": True, "max_tokens": 1,
        "temperature": 0,
    }  # fmt: skip
    with asking(served, ROUTE, body):
        before = cpu_s(engine)
        assert until(lambda: cpu_s(engine) > before + 0.1)

    assert until(lambda: used(served) == 0, 5)
    time.sleep(0.3)  # what is in a step has its end
    before = cpu_s(engine)
    time.sleep(1)
    assert cpu_s(engine) - before <= 0.05


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_engine_ends_with_the_gateway(scored, tmp_path):
    with serving(tmp_path, scored.gguf, "--threads", "1") as served:
        served.wait_until_ready()
        ask(served, prompt=TEXT, logprobs=1)
        children = served.children()
        assert len(children) == 2
        served.process.kill()
        served.process.wait()
        assert until(lambda: not any(is_alive(child) for child in children))
