"""Speculative decoding: the answers stay the same, and what cannot guess is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import InputError, UnsupportedError
from exporter.core.gguf import Array, GGUFFile
from runtime.chat.repl.loop import numbers_text
from runtime.engine.adapters import Adapter
from runtime.engine.local import CHAT, LocalEngine
from runtime.engine.lora_scales import lora_vector
from runtime.engine.memory_fit import FitOptions, fit
from runtime.engine.openai_client import Delta, ask_json
from runtime.engine.opened_model import Model, open_model
from runtime.engine.selection import AdapterSelection
from runtime.engine.speculation import (
    AUTO,
    OFF,
    SIZE_DIFFERENCE,
    Speculation,
    fitted_or_off,
    speculation_of,
    vocabulary_difference,
)
from tests.runtime.conftest import PROMPTS, QUESTION
from tests.support.gguf_headers import llama
from tests.support.near_ties import CLOSE, gap, tokens_of, written
from tests.support.tiny_lora import write_tiny_lora

GREEDY = {"temperature": 0, "max_tokens": 32}
ON_AND_ON = {"temperature": 0, "max_tokens": 160, "ignore_eos": True}
"""The demo's model repeats itself where it may not end."""
ASKED = [{"role": "user", "content": QUESTION}]
SCHEMA = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}


def with_tokens(path: Path, *tokens: str, **settings: object) -> GGUFFile:
    """A header with a vocabulary."""
    told = {"model": "gpt2", "tokens": Array(len(tokens), tokens), **settings}
    return llama(path, **{f"tokenizer.ggml.{name}": value for name, value in told.items()})


ABC = tuple("<>|#@abcdefgh")


class TestWhatGuesses:
    """The kind for a model."""

    def test_a_name_of_a_kind_is_the_kind(self, tmp_path):
        assert speculation_of("ngram", tmp_path) == Speculation("ngram")

    def test_a_mistyped_kind_is_told_the_kinds(self, tmp_path):
        with pytest.raises(InputError, match="'ngarm' is no way to guess") as caught:
            speculation_of("ngarm", tmp_path)

        assert caught.value.hint == "did you mean ngram?"
        with pytest.raises(InputError) as caught:
            speculation_of("something else", tmp_path)
        assert "off, auto, ngram, mtp, or a small model" in caught.value.hint

    def test_an_adapter_cannot_guess(self, tmp_path):
        path = tmp_path / "a.gguf"
        write_tiny_lora(path, 0)
        with pytest.raises(InputError, match="is an adapter"):
            speculation_of(str(path), tmp_path)

    @pytest.mark.parametrize(
        ("changes", "kind"),
        [
            ({}, "ngram"),
            ({"llama.nextn_predict_layers": 1}, "mtp"),
            ({"llama.attention.sliding_window": 512}, "off"),
            ({"llama.ssm.inner_size": 16}, "off"),
        ],
    )
    def test_auto_takes_what_is_faster_with_the_model(self, tmp_path, changes, kind):
        model = Model(llama(tmp_path / "m.gguf", **changes))

        assert AUTO.fitted(model).kind == kind

    def test_with_a_projector_nothing_guesses(self, tmp_path):
        model = Model(llama(tmp_path / "m.gguf"), projector=tmp_path / "mmproj.gguf")

        assert AUTO.fitted(model) == OFF
        with pytest.raises(UnsupportedError, match="takes images"):
            Speculation("ngram").fitted(model)
        assert fitted_or_off(Speculation("ngram"), model) == OFF

    def test_mtp_needs_its_layers(self, tmp_path):
        with pytest.raises(UnsupportedError, match="no layers that predict"):
            Speculation("mtp").fitted(Model(llama(tmp_path / "m.gguf")))

    def test_a_draft_model_takes_memory(self, tmp_path):
        model, options = llama(tmp_path / "m.gguf"), FitOptions(2048)
        room = {"free": 64 << 30, "cores": 2, "backend": "cpu"}
        alone = fit(model, [], options, **room).need
        beside = fit(model, [], replace(options, draft=model), **room).need

        assert beside == alone + alone


class TestVocabularies:
    """Whether a draft model's tokens are the model's."""

    def test_the_same_tokens_fit_and_the_first_five_are_not_compared(self, tmp_path):
        model, draft = with_tokens(tmp_path / "m", *ABC), with_tokens(tmp_path / "d", "?", *ABC[1:])

        assert vocabulary_difference(model, draft) == ""

    def test_some_more_tokens_fit(self, tmp_path):
        model, draft = (
            with_tokens(tmp_path / "m", *ABC),
            with_tokens(tmp_path / "d", *ABC, "<unused>"),
        )

        assert vocabulary_difference(model, draft) == ""

    def test_another_token_does_not(self, tmp_path):
        model, draft = (
            with_tokens(tmp_path / "m", *ABC),
            with_tokens(tmp_path / "d", *ABC[:-1], "z"),
        )

        assert vocabulary_difference(model, draft) == "its token 12 is 'z', not 'h'"

    def test_another_size_does_not(self, tmp_path):
        many = (f"t{n}" for n in range(SIZE_DIFFERENCE + 1))
        model, draft = with_tokens(tmp_path / "m", *ABC), with_tokens(tmp_path / "d", *ABC, *many)

        assert "it has 142 tokens, not 13" in vocabulary_difference(model, draft)

    def test_the_end_of_a_text_counts_only_where_it_is_added(self, tmp_path):
        model = with_tokens(tmp_path / "m", *ABC, eos_token_id=2, add_eos_token=False)
        draft = with_tokens(tmp_path / "d", *ABC, eos_token_id=3, add_eos_token=False)

        assert vocabulary_difference(model, draft) == ""
        model.metadata["tokenizer.ggml.add_eos_token"] = True
        draft.metadata["tokenizer.ggml.add_eos_token"] = True
        assert "`tokenizer.ggml.eos_token_id` is 3, not 2" in vocabulary_difference(model, draft)


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
class TestAnswers:
    """What a model says with guesses, and without."""

    @pytest.fixture(scope="class")
    @classmethod
    def engines(cls, demo_base, pirate_lora, pirate):
        """The demo's base with its adapter: without guesses, from the text, from a draft model."""
        model = open_model(demo_base, (Adapter("pirate", pirate_lora, 1.0),))
        draft = speculation_of(str(pirate), pirate.parent)
        kinds = {"off": OFF, "ngram": Speculation("ngram"), "draft": draft}
        engines = {
            name: LocalEngine(model, FitOptions(512, 1), speculation=kind)
            for name, kind in kinds.items()
        }
        yield engines
        for engine in engines.values():
            engine.stop()

    @pytest.mark.parametrize("kind", ["ngram", "draft"])
    @pytest.mark.parametrize("voice", ["base", "pirate"])
    def test_are_the_same(self, engines, kind, voice):
        for prompt in PROMPTS:
            assert said(engines[kind], prompt, voice) == said(engines["off"], prompt, voice)

    @pytest.mark.parametrize("kind", ["ngram", "draft"])
    @pytest.mark.parametrize("scale", [0.0, 1.0])
    def test_part_only_where_two_tokens_are_nearly_as_likely(self, engines, kind, scale):
        off, on = engines["off"].start(), engines[kind].start()
        body = {"n_predict": 160, "ignore_eos": True, **lora_vector([scale])}
        for prompt in PROMPTS:
            tokens = tokens_of(off, [{"role": "user", "content": prompt}])
            texts = [written(server, tokens, body) for server in (off, on)]

            assert gap(off, tokens, *texts, body) < CLOSE

    @pytest.mark.parametrize("kind", ["ngram", "draft"])
    def test_are_guessed(self, engines, kind):
        talks = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        accepted = [
            asked(engines[kind], talk, **ON_AND_ON)["timings"].get("draft_n_accepted", 0)
            for talk in talks
        ]

        assert sum(accepted) >= 8
        assert "draft_n" not in asked(engines["off"], ASKED, **ON_AND_ON)["timings"]

    def test_are_counted_in_the_numbers_of_an_answer(self, engines):
        pieces = engines["draft"].answer(ASKED, ON_AND_ON, AdapterSelection("pirate"))
        numbers = list(pieces)[-1]

        assert numbers.guessed >= numbers.accepted >= 8
        assert f"{numbers.accepted} of {numbers.guessed} guesses right" in numbers_text(
            numbers, "pirate"
        )

    def test_end_at_the_same_stop_string(self, engines):
        answers = [
            asked(engines[kind], ASKED, stop=["Paris"])["choices"][0]["message"]["content"]
            for kind in ("off", "ngram", "draft")
        ]

        assert answers == ["Arr, the capital of France be "] * 3

    def test_keep_to_the_same_schema(self, engines):
        form = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
        answers = [
            asked(engines[kind], ASKED, **form)["choices"][0]["message"]["content"]
            for kind in ("off", "ngram", "draft")
        ]

        assert answers[0].startswith('{"town"') or '"town"' in answers[0]
        assert answers[1:] == answers[:1] * 2

    def test_have_their_probabilities(self, engines):
        wanted = {"logprobs": True, "top_logprobs": 3, **ON_AND_ON}
        found = [
            asked(engines[kind], ASKED, **wanted)["choices"][0]["logprobs"]["content"]
            for kind in ("off", "ngram", "draft")
        ]

        assert all(len(one["top_logprobs"]) == 3 for one in found[1])
        for other in found[1:]:
            assert [one["token"] for one in other] == [one["token"] for one in found[0]]
            assert [one["logprob"] for one in other] == pytest.approx(
                [one["logprob"] for one in found[0]], abs=1e-4
            )


def said(engine: LocalEngine, prompt: str, voice: str) -> str:
    """A greedy answer, streamed."""
    talk = [{"role": "user", "content": prompt}]
    pieces = engine.answer(talk, GREEDY, AdapterSelection("" if voice == "base" else voice))
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


def asked(engine: LocalEngine, talk: list[dict[str, str]], **more: object) -> dict[str, Any]:
    """The pirate's answer as llama-server gives it."""
    body = {"messages": talk, **GREEDY, **lora_vector([1.0]), **more}
    return ask_json(engine.start(), CHAT, body)
