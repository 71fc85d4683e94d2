"""`decant tokens` as a person sees it: colours, a table, remarks, and nothing that steers."""

from __future__ import annotations

import re

import pytest

from runtime.cli.tokens_command import columns, painted, table
from runtime.engine.gguf_tokenizer import Token, escaped
from tests.support.gguf_texts import with_template
from tests.support.terminal import on_a_terminal, plain

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


def shown(*arguments: object, **env: str) -> str:
    """What a person sees at a terminal."""
    argv = ["tokens", *map(str, arguments)]
    return on_a_terminal(f"from exporter.cli.app import main; main({argv!r})", **env)


def test_on_a_terminal_tokens_have_colours_and_the_text_cannot_steer_it(model):
    seen = shown(model, "Hi \x1b[2J\x9b1m\u202e</s>\nyou")

    assert "\x1b[38;5;16m\x1b[48;5;223mH\x1b[0m" in seen
    assert "\x1b[38;5;231m\x1b[48;5;124m<s>\x1b[0m" in seen
    assert "\x1b[2J" not in seen
    assert "\x9b" not in seen
    assert "\u202e" not in seen
    text, _, rest = plain(seen).replace("\r", "").partition("\n\n")
    assert text == r"<s>Hi \x1b[2J\xc2\x9b1m\xe2\x80\xae</s>↵" + "\nyou"
    assert re.search(r"^ *1 +1  '<s>' +3c 73 3e  bos, added$", rest, re.MULTILINE)
    assert "(1 added), 19 characters, 22 bytes" in rest


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_tokens_stand_between_bars(env, model):
    seen = shown(model, "Hi </s>", **env)

    assert "\x1b" not in seen
    assert seen.splitlines()[0] == "<s>|H|i| |</s>"
    assert "(1 added), 7 characters" in seen


def test_json_on_a_terminal_cannot_steer_it(model):
    assert "\x9b" not in shown(model, "\x9b2J", "--chat", "--json")


def test_of_a_long_text_a_terminal_lists_the_first_tokens(model):
    seen = plain(shown(model, "a" * 3000))

    assert "\r\n1000 " in seen
    assert "\r\n1001 " not in seen
    assert re.search(r"… and \d+ more: --ids", seen)


def test_a_chat_on_a_terminal_lists_the_special_tokens(model):
    seen = plain(shown(model, "Hi", "--chat"))

    assert seen.startswith("<s><|user|>Hi</s><|assistant|>\r\n")
    assert "special tokens: bos 1 <s>, eos 2 </s>, pad 3 <pad>" in seen


def test_a_template_without_bos_is_remarked(model, tmp_path):
    path = with_template(model, tmp_path / "m.gguf", "{{ messages[0].content }}")

    assert "the template writes no <s>: llama.cpp alone would" in shown(path, "Hi", "--chat")
    assert "by itself" not in shown(model, "Hi", "--chat")


def test_spaces_that_were_put_there_are_remarked(prefixed, model):
    seen = plain(shown(prefixed[1], "the </s>"))

    assert "do not spell the text exactly: the tokenizer puts a space before texts" in seen
    assert "after each special token" not in seen
    assert "exactly" not in shown(model, "the </s>")


def test_nothing_to_cut_is_said(model):
    code = (
        "import sys; from exporter.cli.app import run;"
        f"sys.exit(run(['tokens', {str(model)!r}]) - 2)"
    )

    assert "nothing to tokenize: pass TEXT" in on_a_terminal(code)


def test_a_table_stays_aligned_with_wide_characters():
    lines = table([Token(7, "日本".encode()), Token(10, b"a")], {})

    assert lines == [
        "#  ID  PIECE   BYTES",
        "1   7  '日本'  e6 97 a5 e6 9c ac",
        "2  10  'a'     61",
    ]
    assert columns("e\u0301") == 1


def test_a_lines_end_has_no_background():
    seen = painted([Token(5, b"a\n\nb")])

    assert seen.split("\n") == [
        "\x1b[38;5;16m\x1b[48;5;153ma↵\x1b[0m", "\x1b[38;5;16m\x1b[48;5;153m↵\x1b[0m",
        "\x1b[38;5;16m\x1b[48;5;153mb\x1b[0m",
    ]  # fmt: skip


def test_what_a_terminal_would_obey_is_written_out():
    assert escaped("a\x1b[0m\x9b\u2028\u202e\n", keep="\n") == "a\\x1b[0m\\x9b\\u2028\\u202e\n"
    assert escaped("e\u0301 👩\u200d👧 日本\xa0") == "e\u0301 👩\u200d👧 日本\xa0"
