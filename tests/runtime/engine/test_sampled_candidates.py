"""The engine samples from few candidates as from the whole vocabulary, in less time.

Both ways are in one build: where another sampler precedes top-k, here a min-p that drops nothing,
every token of the vocabulary is a candidate.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Sequence

import pytest

from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask_json
from tests.support.random_gguf import Shape, write_random

pytestmark = pytest.mark.llamacpp

SHAPE = Shape(
    layers=1, width=256, inner=256, heads=4, kv_heads=2, vocabulary=60_000, context=512,
    has_plain_head=True,
)  # fmt: skip
FEW = ["penalties", "dry", "top_n_sigma", "top_k", "top_p", "temperature"]
ALL = ["min_p", *FEW]
TRIES = 5
"""llama.cpp's tools sometimes end before their last lines are written."""
RARE = 41_234
"""A token that hardly ever is among the best."""
REQUESTS = {
    "sampled": {},
    "greedy": {"temperature": 0},
    "one candidate": {"top_k": 1},
    "many candidates": {"top_k": 110},
    "all candidates": {"top_k": 0},
    "more than there are": {"top_k": 100_000},
    "a rare token made likely": {"logit_bias": [[RARE, 40.0]]},
    "a rare token forbidden": {"logit_bias": [[RARE, False], [3, False]]},
    "no end": {"ignore_eos": True},
    "a token that is not there": {"logit_bias": [[99_999_999, 3.0]]},
    "repetition": {"repeat_penalty": 1.3, "presence_penalty": 0.4},
    "dry": {"dry_multiplier": 0.8},
    "top-n-sigma": {"top_n_sigma": 1.5},
    "mirostat": {"mirostat": 2},
    "a grammar": {"grammar": 'root ::= (" w" [0-9]+)+'},
}


@pytest.fixture(scope="module")
def model(toolchain, tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    write_random(path, SHAPE, toolchain.source / "gguf-py")
    return path


@pytest.fixture(scope="module")
def server(toolchain, model):
    spec = ServerSpec(model, SHAPE.context, threads=1, extra=("--no-warmup",))
    with Server(spec, toolchain) as started:
        yield started


@pytest.mark.parametrize("name", REQUESTS)
def test_few_candidates_give_the_tokens_of_all(server, name):
    body = {
        "prompt": " w17 w4", "n_predict": 24, "cache_prompt": False, "seed": 11, "n_probs": 5,
        "temperature": 1.2, "top_p": 0.98, "min_p": 0, "post_sampling_probs": True,
        **REQUESTS[name],
    }  # fmt: skip

    few, every = (
        ask_json(server, "/completion", {**body, "samplers": samplers}) for samplers in (FEW, ALL)
    )

    assert few["tokens_predicted"] > 0
    assert few["content"] == every["content"]
    assert few["completion_probabilities"] == every["completion_probabilities"]


def test_a_bias_reaches_a_token_that_is_not_among_the_best(server):
    body = {"prompt": " w17", "n_predict": 1, "samplers": FEW, "logit_bias": [[RARE, 1000.0]]}

    found = ask_json(server, "/completion", {**body, "n_probs": 1})

    assert found["completion_probabilities"][0]["id"] == RARE


def test_few_candidates_take_less_time(toolchain, model):
    few, every = sampling_ms(toolchain, model, FEW), sampling_ms(toolchain, model, ALL)

    assert few < 0.6 * every, (few, every)


def sampling_ms(toolchain, model, samplers: Sequence[str]) -> float:
    """The time that llama-completion takes to sample 200 tokens."""
    argv = [
        toolchain.tool("llama-completion"), "-m", model, "-no-cnv", "-p", " w17",
        "-n", "200", "--ignore-eos", "-t", "1", "--perf", "--min-p", "0", "--top-k", "40",
        "--samplers", ";".join(samplers),
    ]  # fmt: skip
    for _ in range(TRIES):
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if found := re.search(r"sampling time = +([\d.]+) ms", done.stderr + done.stdout):
            return float(found[1])
    raise AssertionError(done.stderr[-2000:])


NAMES = 1000


def names(count: int, letters: str = "") -> list[str]:
    """Names to choose from; all begin alike."""
    return [f"{letters}w{number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 7, NAMES])
def test_an_answer_is_one_of_the_names_of_its_schema(server, count):
    schema = {"enum": names(count)}
    body = {"prompt": " w17", "n_predict": 64, "json_schema": schema, "temperature": 0}

    found = ask_json(server, "/completion", {**body, "cache_prompt": False})

    assert json.loads(found["content"]) in schema["enum"]


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (
            'root ::= ([a-c] "1" | [^a] "2" | "ab" | . "x" | "你好")+ "."',
            r"([a-c]1|[^a]2|ab|.x|你好)+\.",
        ),
        (
            'root ::= "{" pair ("," pair)* "}"\npair ::= [a-z]+ ":" ("1" | "12" | root)',
            r"(?P<root>\{[a-z]+:(1|12|(?&root))(,[a-z]+:(1|12|(?&root)))*\})",
        ),
        ('root ::= ("a" | "a" | "aa")+ "b"', r"a+b"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_an_answer_keeps_to_its_grammar(server, grammar, pattern, seed):
    import regex  # matches beginnings, unlike re; transformers brings it

    body = {"prompt": " w17", "n_predict": 40, "grammar": grammar, "seed": seed, "temperature": 1.5}

    found = ask_json(server, "/completion", {**body, "cache_prompt": False})

    assert found["content"]
    assert regex.fullmatch(pattern, found["content"], regex.DOTALL, partial=True)


def test_many_names_take_little_more_time_than_few(server):
    times = {}
    for count in (10, NAMES):
        body = {"prompt": " w17", "n_predict": 8, "json_schema": {"enum": names(count)}}
        began = time.monotonic()
        ask_json(server, "/completion", {**body, "cache_prompt": False})
        times[count] = time.monotonic() - began

    assert times[NAMES] < 10 * times[10] + 0.5, times
