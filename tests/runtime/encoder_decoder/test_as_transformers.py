"""Encoder-decoder models served: transformers' tokens, texts and probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest

from runtime.encoder_decoder.model import Flag, Sampling, generate, open_encoder_decoder
from tests.support.encoder_decoders import ANSWERS, COMPLETIONS, GREEDY, Served, serving

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

PROMPTS = {
    "T5": ("on qj go th", "the vk e a eat o", "a zx on u at vk", "be vk"),
    "MT5": tuple(ANSWERS),
}
COUNT = 32  # tokens of an answer that is compared


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch: for models so small, threads that wait for each other cost most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Reference:
    """What transformers makes of a model."""

    tokenizer: Any
    unmerged: Any
    """The base with the adapter beside it."""
    expected: dict[str, list[int]]
    """Its greedy answers."""


@pytest.fixture(scope="module")
def references(one_thread, made) -> dict[str, Reference]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    found = {}
    for kind, prompts in PROMPTS.items():
        base = AutoModelForSeq2SeqLM.from_pretrained(made[kind].base, dtype=torch.float32)
        unmerged = PeftModel.from_pretrained(base, made[kind].lora).eval()
        tokenizer = AutoTokenizer.from_pretrained(made[kind].base)
        expected = {prompt: greedy(unmerged, tokenizer, prompt) for prompt in prompts}
        found[kind] = Reference(tokenizer, unmerged, expected)
    return found


@pytest.fixture(scope="module")
def t5(made, toolchain) -> Iterator[Served]:
    with serving(made["T5"].gguf, toolchain.folder) as served:
        yield served


def greedy(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """The tokens that transformers answers with, none of them by a hair's breadth."""
    import torch

    answer = model.generate(
        input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]),
        do_sample=False,
        max_new_tokens=COUNT,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for scores in answer.scores:
        first, second = scores[0].topk(2).values
        assert first - second > 0.01 * scores[0].std()
    return answer.sequences[0].tolist()[1:]  # after the token that the decoder begins with


@pytest.mark.parametrize("kind", PROMPTS)
def test_greedy_answers_are_those_of_transformers_and_the_adapters_doing(
    references, made, toolchain, kind
):
    import torch

    model = references[kind]
    with open_encoder_decoder(made[kind].gguf, toolchain, context=64, threads=1) as ours:
        for prompt, expected in model.expected.items():
            ids = ours.vocabulary.encode(prompt, special=True)
            with closing(generate(ours, ids, Sampling(temperature=0), Flag())) as answer:
                assert list(islice(answer, COUNT)) == expected
            with model.unmerged.disable_adapter(), torch.no_grad():
                forced = torch.tensor([[0, *expected[:-1]]])
                plain = model.unmerged(input_ids=torch.tensor([ids]), decoder_input_ids=forced)
            assert plain.logits[0].argmax(-1).tolist() != expected
    assert all(len(ids) >= 24 and len(set(ids)) >= 8 for ids in model.expected.values())


def test_the_text_is_that_of_transformers(references, t5):
    for prompt, expected in references["T5"].expected.items():
        answer = t5.post(COMPLETIONS, {"prompt": prompt, "max_tokens": COUNT, **GREEDY})

        text = references["T5"].tokenizer.decode(expected, skip_special_tokens=True)
        assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == (text, COUNT)


@pytest.mark.parametrize("text", ["the cat", "", " two  spaces ", "é 日本", "ﷺ" * 20, "th</s>e"])
def test_the_encoders_input_is_cut_as_transformers_cuts_it(references, t5, text):
    answer = t5.post("/tokenize", {"content": text, "add_special": True})

    assert answer["tokens"] == references["T5"].tokenizer(text)["input_ids"]


def test_sampled_tokens_have_the_probabilities_that_transformers_gives_them(references, t5):
    """T5 scales what goes into a head that is its embedding; llama.cpp does not."""
    import torch

    model, prompt, temperature = references["T5"], "the cat ta", 0.003
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        logits = model.unmerged(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    likely = torch.softmax(logits / temperature, -1).max().item()
    likeliest = t5.text(prompt, max_tokens=1)

    settings = {"temperature": temperature, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 1}
    found = [t5.text(prompt, **settings, seed=seed) for seed in range(300)]

    assert 0.05 < likely < 0.7
    error = math.sqrt(likely * (1 - likely) / len(found))
    assert abs(found.count(likeliest) / len(found) - likely) < 4 * error


def test_a_penalty_for_repeating_changes_what_repeats(t5):
    words = t5.text("th", max_tokens=30).split()
    others = t5.text("th", max_tokens=30, repeat_penalty=1000, repeat_last_n=-1).split()

    assert len(set(others)) > len(set(words))
