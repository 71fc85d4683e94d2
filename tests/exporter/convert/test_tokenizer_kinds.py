"""Each kind of tokenizer as it is saved today: llama.cpp cuts texts as transformers does."""

from __future__ import annotations

import json
import re

import pytest

from exporter.convert.pretokenizer_patterns import GPT2, NAMES
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.llamacpp.normalizer import NORMALIZER, SPACE_PREFIX
from exporter.verify.texts import CONVERSATIONS, PLAIN, RARE
from tests.support.tiny import CHAT_TEMPLATE
from tests.support.vocabularies import (
    TEXTS,
    byte_level,
    converted,
    edit,
    make_model,
    save_bytes,
    save_llama2,
    save_llama2_pieces,
    save_pieces,
    save_unigram,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

SPECIALS_FIRST = "{% for m in messages %}{{ '<|user|>' + m['content'] + eos_token }}{% endfor %}"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, SPECIALS_FIRST, None])
@pytest.mark.parametrize("legacy", [True, False])
def test_tokenizer_json_alone_gives_a_llamas_tokens(toolchain, folder, legacy, template):
    make_model(folder, save_pieces(folder, legacy=legacy, template=template))

    with converted(folder, toolchain) as made:
        assert made.value("model") == "llama"
        assert made.unlike(TEXTS) == made.unlike(TEXTS, special=True) == []
        if template:
            # llama.cpp puts a space before any text behind a special token, or before none
            chats = CONVERSATIONS[:1] + CONVERSATIONS[2:] if legacy else CONVERSATIONS
            assert made.unlike_chats(chats) == []


def test_a_gemmas_tokens_are_given_without_a_space_before_them(toolchain, folder):
    rows = save_pieces(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    edit(folder / "tokenizer.json", normalizer=escape, pre_tokenizer=None)
    assert whole["model"]["byte_fallback"]
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    make_model(folder, rows, "Gemma3", query_pre_attn_scalar=16)

    with converted(folder, toolchain) as made:
        assert made.value("model") == "llama"
        assert made.value("add_space_prefix") is False
        assert SPACE_PREFIX not in made.file.metadata
        assert made.unlike(TEXTS) == []


def split(pattern):
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), "isolated")


SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pattern", "pre"),
    [
        (None, "gpt-2"),
        (LLAMA3, "dbrx"),
        (LLAMA3.replace("{1,3}", ""), "qwen2"),
        (LLAMA3.replace(r"\p{L}+|\p{N}{1,3}| ?[^\s", r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{M}").replace(
            r"\s\p{M}\p{L}", r"\s\p{L}\p{M}"), "qwen35"),
    ],
)  # fmt: skip
def test_a_tokenizer_trained_anew_is_known_by_its_pattern(toolchain, folder, pattern, pre):
    cuts = [split(pattern), byte_level(use_regex=False)] if pattern else [byte_level()]
    make_model(folder, save_bytes(folder, *cuts))

    with converted(folder, toolchain) as made:
        assert made.value("pre") == pre
        assert made.unlike(TEXTS) == made.unlike(TEXTS, special=True) == []


@pytest.mark.parametrize("cuts", NAMES, ids=lambda cuts: NAMES[cuts][0])
def test_llama_cpp_cuts_by_each_pattern_that_is_known(toolchain, folder, cuts):
    from tokenizers import pre_tokenizers

    steps = [
        byte_level() if cut == GPT2
        else pre_tokenizers.Punctuation("contiguous") if cut.startswith("punctuation")
        else split(cut)
        for cut in cuts
    ]  # fmt: skip
    if GPT2 not in cuts:
        steps.append(byte_level(use_regex=False))
    make_model(folder, save_bytes(folder, *steps))

    with converted(folder, toolchain) as made:
        assert made.value("pre") == NAMES[cuts][0]
        assert made.unlike(PLAIN) == []


def test_a_pattern_that_llama_cpp_has_not_is_refused_with_the_pattern(toolchain, folder):
    make_model(folder, save_bytes(folder, split("[aeiou]+"), byte_level(use_regex=False)))

    with pytest.raises(UnsupportedError) as refused, converted(folder, toolchain):
        pass

    assert "[aeiou]+" in refused.value.message
    assert "--to safetensors" in refused.value.hint


def test_llama_2s_own_tokens_are_given_by_tokenizer_json_alone(toolchain, folder):
    make_model(folder, save_llama2(folder, toolchain))

    with converted(folder, toolchain) as made:
        assert made.unlike(TEXTS) == made.unlike(TEXTS, special=True) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"model": 5},
        {"model": {"type": "Unheard"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    ],
)
def test_a_damaged_tokenizer_is_an_error_with_a_hint(toolchain, folder, damage, capfd):
    make_model(folder, save_bytes(folder, byte_level()))
    edit(folder / "tokenizer.json", **damage)

    with pytest.raises(CheckpointError) as refused, converted(folder, toolchain):
        pass

    assert str(folder) in refused.value.message
    assert refused.value.hint


def test_a_tokenizer_model_alone_gives_sentencepieces_tokens(toolchain, folder):
    """transformers 5 merges its runs of spaces first, sentencepiece last."""
    from sentencepiece import SentencePieceProcessor

    make_model(folder, save_llama2_pieces(folder, toolchain))
    held = SentencePieceProcessor(str(folder / "tokenizer.model"))

    with converted(folder, toolchain) as made:
        assert made.loaded.encode("x\n    return 1") == held.encode("x\n    return 1")
        assert [made.loaded.encode(text) for text in PLAIN] == held.encode(list(PLAIN))
        assert (
            held.encode(PLAIN[4]) != made.tokenizer(PLAIN[4], add_special_tokens=False)["input_ids"]
        )


def test_what_llama_cpp_does_not_normalize_is_said_in_the_file(toolchain, folder):
    from tokenizers import normalizers

    make_model(folder, save_bytes(folder, byte_level(), normalizer=normalizers.NFC()))

    with converted(folder, toolchain) as made:
        assert json.loads(made.file.text(NORMALIZER)) == {"type": "NFC"}
        assert made.unlike(TEXTS) == []
        raw = [made.loaded.encode(text) for text in TEXTS]
        assert raw != [made.ids(text) for text in TEXTS]


def test_a_space_that_a_byte_level_tokenizer_puts_first_is_said_in_the_file(toolchain, folder):
    make_model(folder, save_bytes(folder, byte_level(add_prefix_space=True)))

    with converted(folder, toolchain) as made:
        assert made.file.text(SPACE_PREFIX) == "first"
        assert made.unlike(TEXTS) == []


def test_a_byte_level_tokenizer_is_taken_where_the_class_looks_for_pieces(toolchain, folder):
    """Phi-4-mini's class does, unless the settings name a class of an older transformers."""
    make_model(folder, save_bytes(folder, byte_level()), "Phi3", pad_token_id=0)

    with converted(folder, toolchain) as made:
        assert made.value("model") == "gpt2"
        assert made.unlike(TEXTS) == []


@pytest.mark.parametrize("charsmap", [True, False])
def test_tokenizer_json_alone_gives_a_t5s_tokens(toolchain, folder, charsmap):
    from transformers import T5Config, T5ForConditionalGeneration

    rows = save_unigram(folder)
    if not charsmap:
        edit(folder / "tokenizer.json", normalizer=None)
    size = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2,
            "decoder_start_token_id": 0}  # fmt: skip
    T5ForConditionalGeneration(T5Config(vocab_size=rows, **size)).save_pretrained(folder)

    with converted(folder, toolchain) as made:
        assert made.value("model") == "t5"
        assert ("precompiled_charsmap" in str(made.file.metadata.keys())) == charsmap
        assert made.unlike(PLAIN) == made.unlike(PLAIN, special=True) == []


def test_tokenizer_json_alone_gives_an_xlm_robertas_tokens(toolchain, folder):
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

    save_unigram(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [tuple(item) for item in whole["model"]["vocab"][3:]]
    vocabulary = [*((token, 0.0) for token in first), *pieces, ("<mask>", 0.0)]
    XLMRobertaTokenizer(vocab=vocabulary).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)

    with converted(folder, toolchain) as made:
        assert made.value("model") == "t5"
        assert made.unlike(PLAIN) == made.unlike(PLAIN, special=True) == []


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_wordpiece_tokenizer_that_was_trained_anew_is_taken(toolchain, folder, lowercase):
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [chr(n) for n in (*range(33, 127), *range(0xC0, 0x180), *range(0x1100, 0x1200))]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##ing", "fox", *letters]
    words += [f"##{letter}" for letter in letters if letter.isalnum()]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=lowercase)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)

    with converted(folder, toolchain) as made:
        assert made.value("model") == "bert"
        korean = [text for text in RARE if re.search("[가-힣]", text)]
        assert korean
        assert made.unlike([*PLAIN, *korean], special=True) == []
