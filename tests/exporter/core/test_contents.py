from __future__ import annotations

import json
import subprocess

import pytest

from exporter.core.atomic_file import read_json_object
from exporter.core.contents import foreign_contents
from exporter.core.errors import AdapterError, ModelError
from exporter.core.gguf import read_gguf
from exporter.core.safetensors import read_header
from exporter.inputs.torch_pickle import read_pickled
from tests.support.raw import write_safetensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 9942981696\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Access denied</title></head>" + b"<p>x</p>" * 999
XML = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>'


@pytest.mark.parametrize(
    ("content", "said", "helps"),
    [
        (b"", "is empty", "again"),
        (POINTER, "is a git-lfs pointer", "lfs pull"),
        (PAGE, "is a web page", "again"),
        (XML, "error in XML", "again"),
        (b"Entry not found", "'Entry not found'", "again"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF", "mv "),
        (bytes(4096), "begins with zeros", "again"),
        (b"PK\x03\x04" + bytes(400), "torch.save", "mv "),
    ],
)
def test_weights_that_are_something_else_are_called_what_they_are(tmp_path, content, said, helps):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)

    with pytest.raises(AdapterError, match=said) as caught:
        read_header(path, error=AdapterError)

    assert str(path) in caught.value.message
    assert helps in str(caught.value.hint)
    assert "cut short" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [(POINTER, "is a git-lfs pointer"), (PAGE, "is a web page"), (b"", "is empty")],
)
def test_a_pickle_and_json_that_are_something_else_are_called_what_they_are(
    tmp_path, content, said
):
    pickled, config = tmp_path / "pytorch_model.bin", tmp_path / "config.json"
    for path in (pickled, config):
        path.write_bytes(content)

    with pytest.raises(AdapterError, match=said):
        read_pickled(pickled, error=AdapterError)
    with pytest.raises(AdapterError, match=said):
        read_json_object(config, error=AdapterError, hint="")


@pytest.mark.parametrize(("content", "said"), [(POINTER, "git-lfs pointer"), (PAGE, "web page")])
def test_a_gguf_that_is_something_else_is_called_what_it_is(tmp_path, content, said):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=f"is not a whole GGUF: it is a {said}"):
        read_gguf(path)


def test_safetensors_under_a_pickles_name_is_told_its_name(tmp_path):
    path = write_safetensors(tmp_path / "adapter_model.bin", {"a": (4,)})

    with pytest.raises(AdapterError, match="is safetensors under another name") as caught:
        read_pickled(path, error=AdapterError)

    assert str(caught.value.hint) == f"`mv {path} {path.with_suffix('.safetensors')}`"


def test_damaged_weights_and_json_stay_what_they_are(tmp_path):
    whole = write_safetensors(tmp_path / "m.safetensors", {"a": (4, 400)})
    whole.write_bytes(whole.read_bytes()[:200])
    broken = tmp_path / "config.json"
    broken.write_text(json.dumps({"a": 1})[:-1])

    assert foreign_contents(whole) is None
    assert foreign_contents(broken) is None


@pytest.mark.parametrize(
    ("encoding", "said"), [("utf-8-sig", "byte order mark"), ("utf-16", "UTF-16")]
)
def test_json_as_windows_writes_it_is_told_the_command_that_mends_it(tmp_path, encoding, said):
    path = tmp_path / "it's config.json"
    path.write_text('{"a": 1}\n', encoding=encoding)

    with pytest.raises(AdapterError, match=said) as caught:
        read_json_object(path, error=AdapterError, hint="")

    command = str(caught.value.hint).split("`")[1]
    subprocess.run(["bash", "-c", command], check=True)
    assert read_json_object(path, error=AdapterError, hint="") == {"a": 1}
