"""Special and added tokens, and chat templates: kept, left out, or refused, as they are used."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import CheckpointError
from exporter.core.events import Note
from exporter.verify.texts import CONVERSATIONS
from tests.support.tiny import CHAT_TEMPLATE
from tests.support.vocabularies import (
    TEXTS,
    add_token,
    byte_level,
    converted,
    edit,
    make_model,
    save_bytes,
    save_neox,
    save_pieces,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


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
