"""`decant tokens` as a program reads it: lines, JSON, standard input, and what is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.cli.app import run
from exporter.core.errors import ModelError
from exporter.core.gguf import read_gguf
from runtime.engine.gguf_tokenizer import open_tokenizer, render_chat
from tests.support.gguf_texts import edited
from tests.support.raw import write_tiny_gguf
from tests.support.tiny import CHAT_TEMPLATE

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


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
        ("text", b"once upon a time, there was no GGUF", "holds a line of text"),
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


def test_a_vocabulary_that_llama_cpp_aborts_over_is_an_error_of_the_file(decant, tmp_path):
    """Two tokens of one text, which ggml asserts there are not."""
    path = write_tiny_gguf(tmp_path / "m.gguf")
    tokens = read_gguf(path, keep_items=9999).metadata["tokenizer.ggml.tokens"].items
    one, other = [text.encode() for text in tokens if text.startswith("<0x")][:2]
    path.write_bytes(path.read_bytes().replace(other, one, 1))
    done = decant("tokens", path, "hi")

    assert done.returncode == 3, done.stderr
    assert "ended by SIGABRT with the vocabulary of" in done.stderr
    assert done.stdout == ""


def test_the_exit_code_of_an_error_comes_through(decant, tmp_path):
    path = write_tiny_gguf(tmp_path / "m.gguf")

    assert decant("tokens", path, "--chat", "hi").returncode == 3
    assert decant("tokens", path, "hi").returncode == 0


def test_a_template_that_does_not_end_is_an_error_of_the_file(tmp_path, monkeypatch, toolchain):
    monkeypatch.setattr("exporter.inputs.template_process.WALL_S", 1)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with open_tokenizer(write_tiny_gguf(tmp_path / "m.gguf"), toolchain) as tokenizer:
        tokenizer.header.metadata["tokenizer.chat_template"] = endless
        with pytest.raises(ModelError, match="cannot be used for a short conversation"):
            render_chat(tokenizer, [])
