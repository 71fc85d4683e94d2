"""Texts and chats cut into tokens as transformers does, whatever is in them."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from exporter.core.errors import ModelError
from exporter.llamacpp.toolchain import find_toolchain
from exporter.verify.texts import CONVERSATIONS, PLAIN, RARE, SPECIAL_LOOKALIKES
from runtime.cli.tokens_command import separated
from runtime.engine.gguf_tokenizer import (
    Token,
    Tokenization,
    open_tokenizer,
    render_chat,
    tokenize,
    tokenize_chat,
)
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask_json
from tests.support.gguf_texts import edited, with_template

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

OWN = ("", " ", "\0a\0", "</s>", "a</s>b <s>", " x </s> y", "<|user|>hi<|assistant|> yes", "ﷺ")
MARKS = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
SPACE = "\u2581"  # sentencepiece takes it for a space
CORPUS = (*PLAIN, *RARE, *SPECIAL_LOOKALIKES, *OWN)
# ours, and how transformers' tokenizer is called for the same
WAYS = (
    ({}, {}),
    ({"special": False}, {"add_special_tokens": False}),
    (
        {"special": False, "parse": False},
        {"add_special_tokens": False, "split_special_tokens": True},
    ),
)


@pytest.fixture(params=["bpe", "demo", "prefixed"])
def either(request) -> tuple[Path, Path]:
    found: tuple[Path, Path] = request.getfixturevalue(request.param)
    return found


def reference(base: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def ids(found: Tokenization) -> list[int]:
    return [token.id for token in found.tokens]


def spelled(found: Tokenization) -> bytes:
    return b"".join(token.bytes for token in found.tokens if not token.added)


def test_texts_are_cut_as_transformers_cuts_them(either, toolchain):
    base, path = either
    theirs = reference(base)
    with open_tokenizer(path, toolchain) as tokenizer:
        for text in CORPUS:
            for ours, call in WAYS:
                assert ids(tokenize(tokenizer, text, **ours)) == theirs(text, **call)["input_ids"]


def test_joined_tokens_are_the_texts_bytes(either, toolchain):
    with open_tokenizer(either[1], toolchain) as tokenizer:
        for text in CORPUS:
            found = tokenize(tokenizer, text)
            told = text if "bpe" in either[1].name else text.replace(SPACE, " ")
            if "prefixed" in either[1].name and not told.startswith((" ", *MARKS)):
                told = told and f" {told}"
            assert (spelled(found), found.is_exact) == (told.encode(), told == text)


def test_chats_are_rendered_and_cut_as_transformers_does(either, toolchain):
    base, path = either
    theirs = reference(base)
    chats = [*CONVERSATIONS, *([{"role": "user", "content": text}] for text in CORPUS)]
    with open_tokenizer(path, toolchain) as tokenizer:
        for chat in chats:
            expected = theirs.apply_chat_template(list(chat), add_generation_prompt=True)
            found = tokenize_chat(tokenizer, chat)
            assert ids(found) == expected["input_ids"]
            assert found.added == ()


def test_what_the_tokenizer_adds_is_told_from_what_the_text_says(model, toolchain):
    with open_tokenizer(model, toolchain) as tokenizer:
        first, own, *_ = tokenize(tokenizer, "<s>hi").tokens

    assert first == Token(1, b"<s>", special=True, added=True)
    assert own == Token(1, b"<s>", special=True, added=False)


def test_a_split_character_has_bytes_and_no_text(model, toolchain):
    with open_tokenizer(model, toolchain) as tokenizer:
        found = tokenize(tokenizer, "你", special=False)

    assert [token.bytes for token in found.tokens] == [b"\xe4", b"\xbd", b"\xa0"]
    assert [token.text for token in found.tokens] == [None] * 3
    assert separated(found.tokens) == r"\xe4|\xbd|\xa0"


def test_a_long_piece_is_whole(model, tmp_path, toolchain):
    """Longer than the room that most need."""
    from exporter.core.gguf import read_gguf

    texts = read_gguf(model, keep_items=1000).metadata["tokenizer.ggml.tokens"].items
    old = max(texts, key=len).encode()
    new = b"x" * (len(old) + 320)  # longer by a multiple of the alignment
    content = model.read_bytes()
    at = content.index(len(old).to_bytes(8, "little") + old)
    longer = content[:at] + len(new).to_bytes(8, "little") + new + content[at + 8 + len(old) :]
    (tmp_path / "long.gguf").write_bytes(longer)
    with open_tokenizer(tmp_path / "long.gguf", toolchain) as tokenizer:
        found = {tokenizer.vocabulary.piece(id_) for id_ in range(tokenizer.vocabulary.size)}

    assert new in found


def test_a_template_knows_the_date(model, tmp_path, toolchain):
    path = with_template(model, tmp_path / "dated.gguf", "{{ strftime_now('%d %b %Y') }}")
    with open_tokenizer(path, toolchain) as tokenizer:
        day = datetime(2031, 5, 7)  # noqa: DTZ001 - a template has no zones
        assert render_chat(tokenizer, [], clock=lambda: day).strip() == "07 May 2031"


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ raise_exception('no \x1b[31msystem') }}", "no .*system"),
        ("{% for m in messages %}", "cannot be read: .*end of template"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages[7].x.y }}", "no element 7"),
        ("{{ [1] | first.x }}", "cannot be"),
        ("{{ ().__class__.__base__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_an_error_with_its_words(
    template, named, model, tmp_path, toolchain
):
    path = with_template(model, tmp_path / "odd.gguf", template)
    with open_tokenizer(path, toolchain) as tokenizer:
        with pytest.raises(ModelError, match=named) as raised:
            tokenize_chat(tokenizer, CONVERSATIONS[0])

    assert "\x1b" not in raised.value.message


def test_a_long_word_does_not_end_the_process(bpe, tmp_path):
    """Bloom's pattern, unlike GPT-2's, is left to std::regex, which recurses."""
    key = b"tokenizer.ggml.pre" + (8).to_bytes(4, "little") + (5).to_bytes(8, "little")
    path = edited(bpe[1], tmp_path / "bloom.gguf", key + b"gpt-2", key + b"bloom")
    argv = [sys.executable, "-m", "exporter", "tokens", str(path), "--ids"]
    done = subprocess.run(argv, input=b"e" * 100_000, capture_output=True, check=False)

    assert done.returncode == 0
    assert len(done.stdout.split()) == 100_000
    with Server(ServerSpec(path, 512, 2), find_toolchain()) as server:  # nor the engine's
        found = ask_json(server, "/tokenize", {"content": "é" * 100_000})
        assert len(found["tokens"]) == 200_000
