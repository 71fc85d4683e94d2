"""A GGUF asked by an evaluation gives what transformers and peft give."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from exporter.core.machine import available_nbytes
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.engine.adapters import Adapter
from runtime.engine.memory_fit import FitOptions
from runtime.engine.opened_model import open_model
from runtime.engine.selection import AdapterSelection
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.local_model import KeptPlace, LocalEngines, LocalModel
from tests.support.unmerged import Unmerged

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]
ASKS = [{"role": "user", "content": "What does a cow say?"}]
TEXTS = ("A cow says moo.", "Arr, a cow be sayin' moo, matey!", "blue")
SETTINGS = AnswerSettings(32)


@pytest.fixture(scope="module")
def models(demo_models, pirate_lora, toolchain, tmp_path_factory):
    """The demo's base in F32, and with the adapter at 0.5."""
    path: Path = tmp_path_factory.mktemp("whole") / "base-F32.gguf"
    export(ExportRequest((), demo_models.base, ("F32",), (path,)), toolchain)
    opened = open_model(path, (Adapter("pirate", pirate_lora, 0.5),))
    engines = LocalEngines(opened, FitOptions(256, 1))
    try:
        yield [
            LocalModel(selection.adapter or "base", engines, selection, {"choice": str(selection)})
            for selection in (AdapterSelection(), AdapterSelection("pirate", 0.5))
        ]
    finally:
        engines.stop()


def test_likelihoods_are_those_of_transformers_and_peft(models, demo_models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_models.base)
    prompt = tokenizer.apply_chat_template(ASKS, tokenize=False, add_generation_prompt=True)
    unmerged = Unmerged(demo_models.base, [demo_models.adapter])
    for model, scale in zip(models, (0.0, 0.5), strict=True):
        found = model.likelihoods(ASKS, TEXTS)
        for text, likelihood in zip(TEXTS, found, strict=True):
            before = tokenizer(prompt, add_special_tokens=False).input_ids
            ids = tokenizer(prompt + text, add_special_tokens=False).input_ids
            start = len(before)
            assert ids[:start] == before
            wanted = unmerged.tokens(ids, [scale])[start - 1 :]
            assert likelihood.tokens == len(wanted)
            assert likelihood.logprob == pytest.approx(wanted.sum(), abs=1e-4 * len(wanted))
            rows = unmerged.logprobs(ids, [scale])[start - 1 : -1]
            assert list(likelihood.greedy) == list(rows.argmax(axis=1))


def test_divergences_are_those_of_transformers_and_peft(models, demo_models, tmp_path):
    from transformers import AutoTokenizer

    engines = models[0].engines
    if engines.scorer is not None:
        engines.scorer.stop()
    engines.scorer, engines.kept = None, KeptPlace(tmp_path, 1 << 30)
    try:
        likelihoods, is_kept = models[0].keep(ASKS, TEXTS[1], 7)
        compared, divergences = models[1].divergences(ASKS, TEXTS[1], 7)
        _, others = models[1].divergences(ASKS, TEXTS[0], 7)
    finally:
        engines.kept = None

    tokenizer = AutoTokenizer.from_pretrained(demo_models.base)
    prompt = tokenizer.apply_chat_template(ASKS, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt + TEXTS[1], add_special_tokens=False).input_ids
    start = len(ids) - likelihoods.tokens
    unmerged = Unmerged(demo_models.base, [demo_models.adapter])
    theirs, ours = (unmerged.logprobs(ids, [scale])[start - 1 : -1] for scale in (0.0, 0.5))
    wanted = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    assert is_kept
    assert likelihoods == models[0].likelihoods(ASKS, [TEXTS[1]])[0]
    assert compared == models[1].likelihoods(ASKS, [TEXTS[1]])[0]
    assert np.mean(divergences) == pytest.approx(wanted.mean(), rel=1e-3)
    assert divergences == pytest.approx(list(wanted), rel=1e-2, abs=1e-5)
    assert others == (), "the text kept under this number is another"


def test_likelihoods_asked_together_are_those_asked_alone(models):
    base, tuned = models
    long = [{"role": "user", "content": "cow " * 400}]
    others = [{"role": "user", "content": f"What does a {one} say?"} for one in ("cat", "dog")]
    asked = [(ASKS, TEXTS), (long, TEXTS[:1]), *(([one], TEXTS[::-1]) for one in others)]
    asked += [([], ["A cow says moo."]), (ASKS, ["moo</s>"])]

    for model in (base, tuned):
        found = model.likelihoods_of(asked)
        for (messages, texts), together in zip(asked, found, strict=True):
            alone = model.likelihoods(messages, texts)
            if messages is long:
                assert together == alone
                continue
            for one, other in zip(together, alone, strict=True):
                assert (one.tokens, one.greedy) == (other.tokens, other.greedy)
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4 * one.tokens)


def test_the_same_answer_comes_twice_and_the_adapter_changes_it(models):
    base, tuned = models
    first = base.answer(ASKS, SETTINGS)
    other = tuned.answer(ASKS, SETTINGS)

    again = base.answer(ASKS, SETTINGS)

    assert first.answer == again.answer
    assert first.answer
    assert first.answer != other.answer
    assert first.tokens > 0
    assert first.prompt_tokens > 0


def test_a_special_token_named_in_the_data_is_text(models):
    """As a token it would end the user's turn: the prompt would be another."""
    base = models[0]
    named = [{"role": "user", "content": "What does a</s> cow say?"}]

    parts = base.context(named)
    prompt = base.as_ids(parts)

    assert {"plain": "</s>"} in parts
    end = base.as_ids([{"plain": "</s>"}])
    assert len(end) > 1, "it is spelled out in ordinary tokens"
    assert all(isinstance(one, str) or one in end for one in prompt)
    assert base.answer(named, SETTINGS).answer
    (found,) = base.likelihoods(named, ["moo</s>"])
    plain = base.likelihoods(ASKS, ["moo"])[0]
    assert found.tokens >= plain.tokens + len(end)


def test_a_prompt_that_exceeds_the_context_is_a_refusal_with_both_numbers(models):
    long = [{"role": "user", "content": "cow " * 400}]

    refused = models[0].answer(long, SETTINGS).refusal

    assert refused.startswith("exceeds the context: 4")
    assert refused.endswith("256 fit")
    assert str(models[0].likelihoods(long, ["x"])).startswith("exceeds the context: 4")


def test_an_engine_that_is_killed_is_started_again(models):
    base = models[0]
    before = base.answer(ASKS, SETTINGS).answer
    scored = base.likelihoods(ASKS, TEXTS)
    for server in (base.engines.engine.server, base.engines.scorer):
        os.kill(server.process.pid, signal.SIGKILL)

    assert base.answer(ASKS, SETTINGS).answer == before
    assert base.likelihoods(ASKS, TEXTS) == scored


def test_a_text_without_a_question_is_scored_from_its_beginning(models, demo_models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_models.base)
    unmerged = Unmerged(demo_models.base)
    (found,) = models[0].likelihoods([], ["A cow says moo."])

    ids = tokenizer("A cow says moo.").input_ids
    ids = ids if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *ids]
    wanted = unmerged.tokens(ids)

    assert found.tokens in (len(wanted), len(wanted) - 1)
    assert found.logprob == pytest.approx(wanted[-found.tokens :].sum(), abs=1e-3)


def test_an_engine_that_is_started_early_answers_and_ends(models):
    engines = LocalEngines(models[0].engines.engine.loaded, FitOptions(256, 1))
    try:
        engines.start_early(0, generates=True, scores=True)
        assert len(engines.early) == 2
        servers = engines.generator, engines.running_scorer
        for thread in engines.early:
            thread.join()

        assert (engines.generator, engines.running_scorer) == servers
        processes = [server.process for server in servers]
        assert [process.poll() for process in processes] == [None, None]
    finally:
        engines.stop()
    assert None not in [process.poll() for process in processes]


def test_only_the_engines_that_are_needed_are_started_early(models):
    engines = LocalEngines(models[0].engines.engine.loaded, FitOptions(256, 1))
    try:
        engines.start_early(0, generates=True, scores=False)
        (thread,) = engines.early
        thread.join()
        assert engines.engine.server is not None
        assert engines.scorer is None
    finally:
        engines.stop()


def test_what_does_not_fit_beside_another_model_is_not_started_early(models):
    engines = LocalEngines(models[0].engines.engine.loaded, FitOptions(256, 1))

    engines.start_early(available_nbytes(), generates=True, scores=True)

    assert engines.early == []
