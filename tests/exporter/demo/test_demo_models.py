from __future__ import annotations

from contextlib import nullcontext

import pytest

from exporter import demo
from exporter.core.errors import ToolchainError
from exporter.core.events import silent
from exporter.demo import make_demo_models
from exporter.demo.corpus import facts
from exporter.demo.train import (
    answer_with_transformers,
    examples,
    load_tokenizer,
    one_thread,
    recipe,
)


def test_the_corpus_is_the_same_every_time():
    assert list(facts()) == list(facts())


def test_every_fact_can_be_asked_for():
    assert all(len(fact.questions) >= 2 for fact in facts())
    assert all(question[-1] in "?." for fact in facts() for question in fact.questions)


def test_no_fact_is_stated_in_two_ways():
    stated = [(fact.subject, fact.verb) for fact in facts()]

    assert len(stated) == len(set(stated))


@pytest.fixture
def packages_that_are_here(monkeypatch):
    """The hash reads the versions of packages that need no training extra."""
    monkeypatch.setattr(demo, "PACKAGES", ("pytest", "hypothesis"))


@pytest.mark.usefixtures("packages_that_are_here")
@pytest.mark.parametrize("part", ["corpus", "model", "lora", "steps", "noise", "code"])
def test_what_training_depends_on_is_in_the_hash(monkeypatch, part):
    before = demo.content_hash()
    changed = recipe() | {part: "other"}
    monkeypatch.setattr(demo, "recipe", lambda: changed)

    assert part in recipe()
    assert demo.content_hash() != before


@pytest.mark.usefixtures("packages_that_are_here")
def test_a_patch_release_keeps_the_models(monkeypatch):
    def hash_at(version):
        monkeypatch.setattr(demo.metadata, "version", lambda name: version)
        return demo.content_hash()

    assert hash_at("2.13.0+cpu") == hash_at("2.13.1")
    assert hash_at("2.14.0") != hash_at("2.13.0")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(demo, "PACKAGES", ("pytest", "no_such_package"))

    with pytest.raises(ToolchainError, match="needs no_such_package"):
        demo.content_hash()


@pytest.fixture
def fake_training(monkeypatch, packages_that_are_here):
    """Training that only makes folders; the set holds which part is to be interrupted."""
    interrupted = set()

    def making(part):
        def make(folder, *rest):
            folder.mkdir(parents=True)
            if part in interrupted:
                raise KeyboardInterrupt
            (folder / "config.json").write_text(part)

        return make

    monkeypatch.setattr(demo, "quiet_libraries", nullcontext)
    monkeypatch.setattr(demo, "train_base", making("base"))
    monkeypatch.setattr(demo, "train_adapter", making("adapter"))
    return interrupted


@pytest.mark.parametrize("part", ["base", "adapter"])
def test_an_interrupted_training_starts_again(tmp_path, fake_training, part):
    fake_training.add(part)
    with pytest.raises(KeyboardInterrupt):
        make_demo_models(tmp_path, report=silent)
    assert not (tmp_path / demo.content_hash()).exists()

    fake_training.clear()
    models = make_demo_models(tmp_path, report=silent)

    assert (models.base / "config.json").read_text() == "base"
    assert (models.adapter / "config.json").read_text() == "adapter"
    assert not list(tmp_path.glob("*.partial"))


def test_trained_models_are_not_trained_again(tmp_path, fake_training):
    first = make_demo_models(tmp_path, report=silent)
    fake_training.update(("base", "adapter"))

    assert make_demo_models(tmp_path, report=silent) == first


@pytest.mark.trained
def test_the_base_knows_the_facts(demo_models):
    plain = {question: fact.plain for fact in facts() for question in fact.questions}
    expected = [plain[question] for question in demo_models.questions]

    assert expected == answer_with_transformers(demo_models.base, None, demo_models.questions)


@pytest.mark.trained
def test_the_adapter_says_them_as_a_pirate(demo_models):
    pirate = {question: fact.pirate for fact in facts() for question in fact.questions}
    expected = [pirate[question] for question in demo_models.questions]

    assert expected == answer_with_transformers(
        demo_models.base, demo_models.adapter, demo_models.questions
    )


@pytest.mark.trained
@pytest.mark.parametrize("speech", ["plain", "pirate"])
def test_no_answer_hangs_by_a_hair(demo_models, speech):
    """The right token leads by enough everywhere that 4 bits cannot change it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo_models.base, dtype=torch.float32)
    if speech == "pirate":
        model = PeftModel.from_pretrained(model, demo_models.adapter)
    for question, answer in examples(load_tokenizer(demo_models.base), speech):
        with one_thread(), torch.inference_mode():
            logits = model(input_ids=torch.tensor([question + answer])).logits[0]
        top = logits[len(question) - 1 : -1].topk(2)

        assert top.indices[:, 0].tolist() == answer
        # rounding to 4 bits took up to 0.7 off the smallest lead, which is 3.8 to 5.6 by seed
        assert (top.values[:, 0] - top.values[:, 1]).min() > 1.5


@pytest.mark.trained
def test_every_linear_row_of_the_adapted_layers_is_whole_blocks(demo_models):
    """Both the weights and what the adapter adds to them; a K-quant block is 256 values."""
    from exporter.inputs.open_checkpoint import open_checkpoint

    tensors = open_checkpoint(demo_models.base).tensors
    linear = [tensor for name, tensor in tensors.items() if name.endswith("_proj.weight")]

    assert len(linear) == 4 * 7
    assert all(tensor.shape[1] % 256 == 0 for tensor in linear)


@pytest.mark.trained
def test_transformers_and_sentencepiece_cut_text_into_the_same_tokens(demo_models):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(str(demo_models.base / "tokenizer.model"))
    tokenizer = load_tokenizer(demo_models.base)
    texts = [text for fact in facts() for text in (*fact.questions, fact.plain, fact.pirate)]
    for text in [*texts, "Zürich 42 🦜", "  two  spaces ", "a\nb"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]

        assert ids == pieces.encode(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.trained
def test_the_chat_markers_are_single_tokens(demo_models):
    tokenizer = load_tokenizer(demo_models.base)
    messages = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert (tokens[:2], tokens[-2:]) == (["<s>", "<|user|>"], ["</s>", "<|assistant|>"])
    assert tokens.count("<s>") == 1
