"""Pictures for a model that sees: a tiny one of random weights, exported with its projector."""

from __future__ import annotations

import json
import shutil

import pytest

from exporter.core.errors import InputError
from exporter.core.gguf import read_gguf
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.chat.repl.attachments import read_image, read_text
from runtime.engine.opened_model import find_projector
from tests.support.architectures import make_architecture
from tests.support.png import make_png
from tests.support.terminal import chat
from tests.support.tiny import make_tokenizer


def test_a_picture_is_known_by_how_it_begins(tmp_path):
    path = make_png(tmp_path / "not-a-name-for-a-picture.txt")

    assert read_image(path).url.startswith("data:image/png;base64,iVBOR")


def test_what_is_no_picture_and_what_is_no_text_is_told(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(InputError, match="is not a PNG"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="is not text in UTF-8: byte 0"):
        read_text(make_png(tmp_path / "b.txt"))
    with pytest.raises(InputError, match="cannot read"):
        read_text(tmp_path / "nothing")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match="more than"):
        read_text(tmp_path / "huge")


def test_a_text_is_fenced_whatever_it_holds(tmp_path):
    (tmp_path / "a.md").write_text("```\ncode\n```\n")

    assert read_text(tmp_path / "a.md") == "a.md:\n````\n```\ncode\n```\n````"


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_a_picture_goes_with_its_message_and_stays_in_the_conversation(
    toolchain, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    base = make_architecture("gemma3_vlm", tmp_path / "base")
    make_tokenizer(base)
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (base / "preprocessor_config.json").write_text(json.dumps(pictures))
    model = tmp_path / "vlm-F16.gguf"
    export(ExportRequest((), base, ("F16",), (model,)), toolchain)
    picture = make_png(tmp_path / "a.png")

    assert find_projector(read_gguf(model)) == tmp_path / "mmproj-base.gguf"
    with chat(model, "--temperature", "0", "-n", "4", "--stats") as terminal:
        terminal.ready()
        without = prompt_tokens(terminal.enter("what is it?"))
        terminal.enter("/clear")
        terminal.enter(f"/attach {picture}")
        shown = terminal.enter("what is it?")
        assert prompt_tokens(shown) > without + 4  # two by two patches and what encloses them
    picture.unlink()
    with chat(model, "--continue", "--temperature", "0", "-n", "4", "--stats") as terminal:
        terminal.ready()
        assert prompt_tokens(terminal.enter("/regen")) == prompt_tokens(shown)
    shutil.copy(tmp_path / "mmproj-base.gguf", tmp_path / "mmproj-other.gguf")
    assert find_projector(read_gguf(model)) is None  # of two nobody knows which


def prompt_tokens(shown: str) -> int:
    line = next(line for line in shown.splitlines() if line.startswith("prompt "))
    return int(line.split()[1])
