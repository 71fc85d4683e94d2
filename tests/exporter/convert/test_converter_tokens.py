"""Tokenizers as they are saved today: llama.cpp cuts texts as transformers does."""

from __future__ import annotations

import json
import re

import pytest

from exporter.convert.pretokenizer_patterns import GPT2, NAMES
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.events import Note
from exporter.llamacpp.normalizer import NORMALIZER, SPACE_PREFIX
from exporter.verify.texts import CONVERSATIONS, PLAIN, RARE
from tests.support.tiny import CHAT_TEMPLATE
from tests.support.vocabularies import (
    converted,
    edit,
    make_model,
    save_bytes,
    save_llama2,
    save_llama2_pieces,
    save_neox,
    save_pieces,
    save_unigram,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

TEXTS = (*PLAIN, *RARE)
SPECIALS_FIRST = "{% for m in messages %}{{ '<|user|>' + m['content'] + eos_token }}{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "base"


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


def add_token(folder, content, **flags):
    """One more token at the end of tokenizer.json."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    number = max(*whole["model"]["vocab"].values(), *(t["id"] for t in whole["added_tokens"])) + 1
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": number, "content": content, "special": True} | plain | flags
    edit(folder / "tokenizer.json", added_tokens=[*whole["added_tokens"], token])


@pytest.mark.parametrize("save", [save_pieces, lambda folder: save_bytes(folder, byte_level())])
def test_a_token_that_has_no_row_and_no_use_is_left_out(toolchain, folder, save):
    rows = save(folder)
    add_token(folder, "[PAD]")
    edit(folder / "tokenizer_config.json", pad_token="[PAD]")
    make_model(folder, rows)
    edit(folder / "config.json", pad_token_id=rows)

    with converted(folder, toolchain) as made:
        assert made.loaded.size == rows
        assert made.unlike(TEXTS) == []
        note = next(event for event in made.events if isinstance(event, Note))
    assert f"{rows + 1} tokens and the embedding {rows} rows: `[PAD]` is left out" in note.message


@pytest.mark.parametrize(
    ("flags", "settings", "why"),
    [
        ({}, {"eos_token": "<end>"}, "it is the eos token"),
        ({}, {"template": "{{ messages[0]['content'] }}<end>"}, "the chat template uses it"),
        ({"special": False}, {}, "it is a word that texts may hold"),
    ],
)
def test_a_token_that_has_no_row_and_is_needed_is_refused_with_both_numbers(
    toolchain, folder, flags, settings, why
):
    settings = dict(settings)
    rows = save_pieces(folder, template=settings.pop("template", CHAT_TEMPLATE))
    add_token(folder, "<end>", **flags)
    edit(folder / "tokenizer_config.json", **settings)
    make_model(folder, rows)

    with pytest.raises(CheckpointError) as refused, converted(folder, toolchain):
        pass

    expected = f"{rows + 1} tokens and the embedding {rows} rows: token {rows} `<end>` has none"
    assert expected in refused.value.message
    assert why in refused.value.message
    assert refused.value.hint


def test_an_embedding_with_more_rows_than_tokens_is_filled_up(toolchain, folder):
    rows = save_pieces(folder)
    make_model(folder, rows + 7)

    with converted(folder, toolchain) as made:
        assert made.loaded.size == rows + 7
        assert made.unlike(TEXTS) == []


def byte_level(**options):
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)


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


@pytest.mark.parametrize("save", ["pieces", "bytes"])
def test_words_that_were_added_are_cut_out_as_transformers_does(toolchain, folder, save):
    from transformers import AutoTokenizer

    words = ["decant", "told", "normal", "Ünï"]
    rows = save_pieces(folder) if save == "pieces" else save_bytes(folder, byte_level())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(words)
    tokenizer.save_pretrained(folder)
    make_model(folder, rows + 8)

    with converted(folder, toolchain) as made:
        texts = ["I decant wine", "told you, undecanted", "normal Ünï x", "decantdecant", *TEXTS]
        assert made.unlike(texts) == []
        assert all(len(made.loaded.encode(word, parse=False)) <= 2 for word in words)


def test_added_words_do_not_hide_which_published_tokenizer_it_is(toolchain, folder):
    """The converter knows it by the ids of a text that holds some of them."""
    from transformers import AutoTokenizer

    rows = save_neox(folder, toolchain)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["apple", "normal", "told"])
    tokenizer.save_pretrained(folder)
    make_model(folder, rows + 3)

    with converted(folder, toolchain) as made:
        assert made.value("pre") == "olmo"
        assert made.unlike(["an apple", "told you, pineapple", *TEXTS]) == []


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


def test_every_token_that_ends_an_answer_is_one_in_the_file(toolchain, folder):
    rows = save_bytes(
        folder, byte_level(), additional_special_tokens=["<stop>", "<halt>", "<|end|>"]
    )
    numbers = {token: at for at, token in enumerate(("<stop>", "<halt>", "<|end|>"), rows - 3)}
    make_model(folder, rows, eos_token_id=numbers["<stop>"])
    said = {"eos_token_id": [2, numbers["<halt>"], numbers["<|end|>"]]}
    (folder / "generation_config.json").write_text(json.dumps(said))

    with converted(folder, toolchain) as made:
        ends = made.loaded.bindings.llama_vocab_is_eog
        assert {at for at in range(rows) if ends(made.loaded.handle, at)} == {2, *numbers.values()}
        assert made.value("eos_token_id") == 2


def test_what_a_text_ends_with_is_kept_beside_the_end_of_an_answer(toolchain, folder):
    """As in Qwen3-Embedding, whose vectors are those of another token than eos."""
    rows = save_bytes(folder, byte_level())
    last = {"SpecialToken": {"id": "<|user|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    tokens = {"<|user|>": {"id": "<|user|>", "ids": [3], "tokens": ["<|user|>"]}}
    processor = {"type": "TemplateProcessing", "single": [text, last], "pair": [text, last]}
    edit(folder / "tokenizer.json", post_processor=processor | {"special_tokens": tokens})
    make_model(folder, rows)

    with converted(folder, toolchain) as made:
        assert made.unlike(TEXTS, special=True) == []
        assert made.loaded.bindings.llama_vocab_is_eog(made.loaded.handle, 2)


def test_the_tokenizers_padding_goes_before_the_configs(toolchain, folder):
    rows = save_pieces(folder)
    add_token(folder, "<pad>")
    edit(folder / "tokenizer_config.json", pad_token="<pad>")
    make_model(folder, rows + 8, pad_token_id=rows + 3)

    with converted(folder, toolchain) as made:
        assert made.value("padding_token_id") == made.tokenizer.pad_token_id == rows


def test_a_config_that_names_a_plain_token_as_the_end_is_not_believed(toolchain, folder):
    rows = save_bytes(folder, byte_level())
    make_model(folder, rows, eos_token_id=100)

    with converted(folder, toolchain) as made:
        assert not made.loaded.bindings.llama_vocab_is_eog(made.loaded.handle, 100)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_a_model_without_a_template_is_said_to_be_a_base_model(toolchain, folder, template):
    make_model(folder, save_pieces(folder, template=template))

    with converted(folder, toolchain) as made:
        notes = [event.message for event in made.events if isinstance(event, Note)]
    assert [("a base model" in note, "--chat-template" in note) for note in notes] == (
        [] if template else [(True, True)]
    )


@pytest.mark.parametrize("takes_all", [True, False])
def test_tokens_that_take_the_spaces_behind_them_do_so_or_it_is_said(toolchain, folder, takes_all):
    """As Phi-3's: llama.cpp knows it by the model's name."""
    rows = save_pieces(
        folder, template="{% for m in messages %}<|user|>\n{{ m['content'] }}</s>\n{% endfor %}"
    )
    add_token(folder, "<|endoftext|>")
    whole = json.loads((folder / "tokenizer.json").read_text())
    keep = {"<unk>", "<s>", "<|endoftext|>"} if takes_all else {"<unk>", "<s>", "</s>"}
    for token in whole["added_tokens"]:
        token["rstrip"] = token["content"] not in keep
    edit(folder / "tokenizer.json", added_tokens=whole["added_tokens"])
    # its class would make them anew
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    make_model(folder, rows + 1)

    with converted(folder, toolchain) as made:
        told = [event.message for event in made.events if isinstance(event, Note)]
        if takes_all:
            assert made.unlike_chats(CONVERSATIONS) == []
            assert not told
        else:
            assert "takes the spaces beside it" in told[0]


@pytest.mark.parametrize("name", ["Phi-3-tuned", "my-phi3"])
def test_a_name_like_phi_3s_does_not_make_other_tokens_take_spaces(toolchain, folder, name):
    template = "{% for m in messages %}</s>\n{{ m['content'] }}</s>\n{% endfor %}"
    make_model(folder, save_pieces(folder, template=template))

    with converted(folder, toolchain, name) as made:
        assert made.unlike_chats(CONVERSATIONS) == []


def test_a_byte_level_tokenizer_is_taken_where_the_class_looks_for_pieces(toolchain, folder):
    """Phi-4-mini's class does, unless the settings name a class of an older transformers."""
    make_model(folder, save_bytes(folder, byte_level()), "Phi3", pad_token_id=0)

    with converted(folder, toolchain) as made:
        assert made.value("model") == "gpt2"
        assert made.unlike(TEXTS) == []


def test_all_templates_are_in_the_file_under_their_names(toolchain, folder):
    rows = save_pieces(folder)
    named = folder / "additional_chat_templates"
    named.mkdir()
    for name in ("tool_use", "rag"):
        (named / f"{name}.jinja").write_text(f"{name} {{{{ messages }}}}")
    make_model(folder, rows)

    with converted(folder, toolchain) as made:
        keys = made.file.metadata
    assert keys["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert keys["tokenizer.chat_template.tool_use"] == "tool_use {{ messages }}"
    assert keys["tokenizer.chat_templates"].items == ("rag", "tool_use")


def test_a_template_file_goes_before_the_settings_as_in_transformers(toolchain, folder):
    rows = save_pieces(folder)
    (folder / "chat_template.jinja").write_text("file's {{ messages }}")
    edit(folder / "tokenizer_config.json", chat_template="setting's {{ messages }}")
    make_model(folder, rows)

    with converted(folder, toolchain) as made:
        assert made.file.text("tokenizer.chat_template") == made.tokenizer.chat_template


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
