"""Texts and chats cut into tokens: as transformers does, and as a person or a program reads it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from exporter.cli.app import run
from exporter.core.errors import ModelError
from exporter.demo import make_demo_models
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.toolchain import cache_folder, find_toolchain
from exporter.verify.texts import CONVERSATIONS, PLAIN, RARE, SPECIAL_LOOKALIKES
from runtime.cli.tokens_command import columns, painted, separated, table
from runtime.engine.gguf_tokenizer import (
    Token,
    Tokenization,
    escaped,
    open_tokenizer,
    render_chat,
    tokenize,
    tokenize_chat,
)
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask_json
from tests.support.other_tokenizers import make_bpe
from tests.support.terminal import on_a_terminal, plain
from tests.support.tiny import CHAT_TEMPLATE

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


def pour(base: Path, output: Path, toolchain) -> Path:
    export(ExportRequest((), base, ("F16",), (output,)), toolchain)
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def bpe(folder, tiny_base, toolchain) -> tuple[Path, Path]:
    """A byte-level base, and its GGUF."""
    base = Path(shutil.copytree(tiny_base, folder / "bpe"))
    (base / "tokenizer.model").unlink()
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_bpe(base, toolchain, monkeypatch)
        return base, pour(base, folder / "bpe.gguf", toolchain)


@pytest.fixture(scope="module")
def prefixed(folder, tiny_base, toolchain) -> tuple[Path, Path]:
    """A sentencepiece base that puts a space before texts, and its GGUF."""
    return tiny_base, pour(tiny_base, folder / "prefixed.gguf", toolchain)


@pytest.fixture(scope="module")
def demo(folder, toolchain) -> tuple[Path, Path]:
    """The demo's sentencepiece base, which puts none, and its GGUF."""
    base = make_demo_models(cache_folder() / "demo").base
    return base, pour(base, folder / "demo.gguf", toolchain)


@pytest.fixture(params=["bpe", "demo", "prefixed"])
def either(request) -> tuple[Path, Path]:
    found: tuple[Path, Path] = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def told(capsys):
    """Run a command in this process; gives its exit code and what it printed."""

    def told(*arguments: object) -> subprocess.CompletedProcess[str]:
        argv = [*map(str, arguments)]
        code = run(argv)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(argv, code, printed.out, printed.err)

    return told


@pytest.fixture
def fed(told, monkeypatch):
    """The same for `decant tokens`, with bytes on its standard input."""

    def fed(raw: bytes, *arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return told("tokens", *arguments)

    return fed


@pytest.fixture
def model(demo) -> Path:
    path: Path = demo[1]
    return path


def reference(base: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def ids(found: Tokenization) -> list[int]:
    return [token.id for token in found.tokens]


def spelled(found: Tokenization) -> bytes:
    return b"".join(token.bytes for token in found.tokens if not token.added)


def edited(source: Path, output: Path, old: bytes, new: bytes) -> Path:
    """A copy of a GGUF with a text in it replaced by one of the same length."""
    assert len(old) == len(new)
    content = source.read_bytes()
    assert content.count(old) == 1
    output.write_bytes(content.replace(old, new))
    return output


def with_template(source: Path, output: Path, template: str) -> Path:
    return edited(
        source, output, CHAT_TEMPLATE.encode(), template.encode().ljust(len(CHAT_TEMPLATE))
    )


def shown(*arguments: object, **env: str) -> str:
    """What a person sees at a terminal."""
    argv = ["tokens", *map(str, arguments)]
    return on_a_terminal(f"from exporter.cli.app import main; main({argv!r})", **env)


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


def test_a_pipe_gets_one_token_a_line(told, model):
    done = told("tokens", model, "Hi\t你")

    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(json.loads(piece), raw) for _, piece, raw in rows] == [
        ("<s>", "3c 73 3e"), ("H", "48"), ("i", "69"), ("\t", "09"),
        (None, "e4"), (None, "bd"), (None, "a0"),
    ]  # fmt: skip


def test_ids_alone_are_one_line(told, model):
    assert told("tokens", model, "Hi", "--ids").stdout == "1 78 728\n"
    assert told("tokens", model, "Hi", "--ids", "--no-special").stdout == "78 728\n"
    assert told("tokens", model, "</s>", "--ids").stdout == "1 2\n"
    assert told("tokens", model, "</s>", "--ids", "--plain").stdout != "1 2\n"


def test_json_has_all_there_is_to_say(told, model):
    found = json.loads(told("tokens", model, "Hi", "--json").stdout)

    assert found["model"] == str(model)
    assert found["tokens"][0] == {
        "id": 1, "text": "<s>", "bytes": "3c733e", "special": True, "added": True,
    }  # fmt: skip
    assert (found["count"], found["characters"], found["nbytes"], found["exact"]) == (3, 2, 2, True)
    assert found["special_tokens"]["eos"] == {"id": 2, "text": "</s>"}
    assert "prompt" not in found


def test_a_chats_json_has_the_prompt_and_the_template(told, model):
    done = told("tokens", model, "Hi", "--chat", "--system", "Be kind", "--json")
    found = json.loads(done.stdout)

    assert found["prompt"] == "<s><|system|>Be kind</s><|user|>Hi</s><|assistant|>"
    assert found["template"] == CHAT_TEMPLATE
    assert told("tokens", model, "--template").stdout == f"{CHAT_TEMPLATE}\n"


def test_torch_and_transformers_are_not_loaded(model):
    code = (
        "import sys; from exporter.cli.app import run;"
        f"run(['tokens', {str(model)!r}, 'Hi', '--chat', '--ids']);"
        "print([m for m in ('torch', 'transformers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[1] == "[]"


def test_standard_input_is_cut_as_it_is(fed, model):
    assert fed(b"Hi\n", model, "--ids").stdout == fed(b"Hi\n", model, "-", "--ids").stdout
    assert json.loads(fed(b"Hi\n", model, "--json").stdout)["characters"] == 3
    assert fed(b"a\0", model, "--no-special").stdout.splitlines()[1] == '6\t"\\u0000"\t00'
    assert fed(b"", model, "--no-special").stdout == ""
    assert fed(b"", model, "--ids").stdout == "1\n"


def test_bytes_that_are_no_text_are_named_with_their_place(fed, model):
    for done in (fed(b"abc\xff", model), fed(b"", model, os.fsdecode(b"abc\xff"))):
        assert done.returncode == 3
        assert "is not UTF-8: byte 0xff at 3" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unit", ["a", " ", "the capital of 日本, x=1;\n"])
def test_a_megabyte_takes_seconds(unit, fed, model):
    raw = (unit.encode() * 1_000_000)[:1_000_000].decode(errors="ignore").encode()
    started = time.monotonic()
    done = fed(raw, model)

    assert time.monotonic() - started < 8
    pieces = [line.rpartition("\t")[2] for line in done.stdout.splitlines()[1:]]
    assert bytes.fromhex(" ".join(pieces)) == raw


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

    assert "the template writes no <s>: llama.cpp by itself would" in shown(path, "Hi", "--chat")
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

    assert "nothing to cut: pass TEXT" in on_a_terminal(code)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--chat", "--plain"], "from the template"),
        (["--chat", "--special"], "from the template"),
        (["--system", "x"], "add --chat"),
        (["--ids", "--json"], "exclude each other"),
        (["--template"], "leave TEXT out"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, named, told, model):
    done = told("tokens", model, "Hi", *options)

    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


def cases(model: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    content = model.read_bytes()
    for name, raw, named in (
        ("empty", b"", "not a whole GGUF"),
        ("text", b"once upon a time, there was no GGUF", "does not begin with GGUF"),
        ("half", content[: len(content) // 2], "not a whole GGUF"),
        ("header", content[:3000], "in its header"),
    ):
        (folder / f"{name}.gguf").write_bytes(raw)
        yield folder / f"{name}.gguf", named
    yield folder / "missing.gguf", "there is no GGUF"
    key = b"tokenizer.ggml.model"
    yield edited(model, folder / "other.gguf", key, b"tokenizer.ggml.mode_"), "holds no vocabulary"
    old = key + (8).to_bytes(4, "little") + (5).to_bytes(8, "little") + b"llama"
    unknown = old[:-5] + b"lorem"
    yield edited(model, folder / "unknown.gguf", old, unknown), "cannot load the vocabulary"
    none = content.replace(old, old[:-13] + (4).to_bytes(8, "little") + b"none")
    (folder / "none.gguf").write_bytes(none + b"\0")
    yield folder / "none.gguf", "holds no vocabulary"


def test_files_without_a_vocabulary_are_told_apart(told, model, tmp_path):
    for path, named in cases(model, tmp_path):
        done = told("tokens", path, "Hi")
        assert (done.returncode, done.stdout) == (3, ""), path
        assert named in done.stderr
        assert "hint: " in done.stderr
        assert "Traceback" not in done.stderr


def test_an_adapter_is_refused(told, tiny_adapter, tiny_base, tmp_path):
    made = told(
        "export", tiny_adapter, "--base", tiny_base, "--to", "lora", "-o", tmp_path / "a.gguf"
    )
    assert made.returncode == 0, made.stderr
    done = told("tokens", tmp_path / "a.gguf", "Hi")

    assert (done.returncode, "is a LoRA adapter for" in done.stderr) == (3, True)


def test_a_model_without_a_template_is_told(told, model, tmp_path):
    path = edited(
        model, tmp_path / "m.gguf", b"tokenizer.chat_template", b"tokenizer.chat_templatX"
    )

    for options in (["Hi", "--chat"], ["--template"]):
        done = told("tokens", path, *options)
        assert (done.returncode, done.stdout) == (3, "")
        assert "has no chat template" in done.stderr
        assert "hint: " in done.stderr


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
