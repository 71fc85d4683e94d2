"""What llama.cpp leaves out of a tokenizer's normalization, done by tokenizers' own code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from exporter.core.errors import ModelError
from exporter.llamacpp.normalizer import FIRST, ONCE, missing_normalizer, normalizer, spaced

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
STRIP, PRECOMPILED = (
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
)
MERGE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
TEXTS = ("e\u0301 ﬁ ½", "ÅNGSTRÖM  İ", "각 가나다", " x ", "")


def chain(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def bert(*, lowercase, strip_accents=None):
    return {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": strip_accents, "lowercase": lowercase,
    }  # fmt: skip


def missing(step, model):
    return missing_normalizer({"normalizer": step}, model)


@pytest.mark.parametrize(
    "step",
    [
        {"type": "NFC"},
        {"type": "Lowercase"},
        chain({"type": "NFKC"}, chain({"type": "Lowercase"}, {"type": "StripAccents"})),
        {"type": "Replace", "pattern": {"Regex": "\\d"}, "content": "#"},
        chain(PREPEND, SPACES),
    ],
)
def test_a_bpe_model_lacks_every_step(step):
    whole = Tokenizer.from_str(json.dumps(bare(step))).normalizer

    prepare = normalizer(missing(step, "gpt2"))

    assert [prepare(text) for text in TEXTS] == [whole.normalize_str(text) for text in TEXTS]


def bare(step):
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": step, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("step", "model"),
    [
        (None, "gpt2"),
        (chain(), "gpt2"),
        ({"type": "ByteLevel"}, "gpt2"),
        (chain(PREPEND, SPACES), "llama"),
        (SPACES, "gemma4"),
        (chain(PRECOMPILED, STRIP, MERGE), "t5"),
        (bert(lowercase=False), "bert"),
        ({"type": "Lowercase"}, "whitespace"),
    ],
)
def test_what_llama_cpp_does_itself_is_not_done_before(step, model):
    assert missing(step, model) is None


@pytest.mark.parametrize(
    ("step", "model", "left"),
    [
        (chain({"type": "NFKC"}, PREPEND, SPACES), "llama", {"type": "NFKC"}),
        (chain(PRECOMPILED, {"type": "Lowercase"}, MERGE), "t5", {"type": "Lowercase"}),
        (bert(lowercase=True), "bert", {"type": "NFD"}),
        (bert(lowercase=False, strip_accents=True), "bert", {"type": "NFD"}),
        (
            chain({"type": "NFC"}, SPACES, {"type": "Lowercase"}),
            "llama",
            chain({"type": "NFC"}, {"type": "Lowercase"}),
        ),
    ],
)
def test_only_the_other_steps_are_left(step, model, left):
    assert json.loads(missing(step, model)) == left


def test_no_steps_change_nothing():
    assert [normalizer(None)(text) for text in TEXTS] == list(TEXTS)


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        (None, ("", "x", " x", " ")),
        (FIRST, ("", " x", " x", " ")),
        (ONCE, ("", "x", "x", " ")),
        ("of a later version", ("", "x", " x", " ")),
    ],
)
def test_the_first_space_of_a_raw_text_is_given_as_the_tokenizer_has_it(written, texts):
    assert tuple(spaced(text, written) for text in ("", "x", " x", " ")) == texts


@pytest.mark.parametrize("written", ["{", "5", '{"type": "Unheard"}', '{"NFC": 1}'])
def test_damaged_steps_are_an_error_with_a_hint(written):
    with pytest.raises(ModelError) as caught:
        normalizer(written)

    assert "decant.tokenizer.normalizer" in caught.value.message
    assert caught.value.hint


def test_torch_and_transformers_are_not_needed():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from exporter.llamacpp.normalizer import normalizer\n"
        "print(ascii(normalizer('{\"type\": \"NFC\"}')('e\\u0301')))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ascii("é")
