"""Models that are none: told by what is wrong with them, never by a traceback."""

from __future__ import annotations

import pytest

from tests.support.terminal import chat

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def said(done) -> str:
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_an_empty_file(decant, tmp_path):
    (tmp_path / "empty.gguf").touch()
    done = decant("chat", tmp_path / "empty.gguf", "-p", "hi")

    assert done.returncode == 3
    assert "not a whole GGUF" in said(done)


def test_a_gguf_without_a_tensor(decant, tmp_path):
    """A header and nothing else."""
    (tmp_path / "none.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(16))
    done = decant("chat", tmp_path / "none.gguf", "-p", "hi")

    assert done.returncode == 3
    assert "holds no tensor" in said(done)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_a_gguf_that_is_cut(decant, pirate, tmp_path, part):
    whole = pirate.read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: int(len(whole) * part)])
    done = decant("chat", tmp_path / "half.gguf", "-p", "hi")

    assert done.returncode == 3
    assert "not a whole GGUF" in said(done)


def test_a_text_that_is_called_gguf(decant, tmp_path):
    (tmp_path / "text.gguf").write_text("Once upon a time, in a land far away, there was a file.\n")
    done = decant("chat", tmp_path / "text.gguf", "-p", "hi")

    assert done.returncode == 3
    assert "holds a line of text: 'Once upon a time" in said(done)


def test_at_the_terminal_too(tmp_path):
    (tmp_path / "empty.gguf").touch()
    with chat(tmp_path / "empty.gguf") as terminal:
        assert terminal.wait() == 3

    assert "not a whole GGUF" in terminal.text.replace("\n", "")  # a long path wraps it


def test_a_model_too_large_for_the_memory_is_refused_with_sizes(decant, pirate, tmp_path):
    """A file with holes, as large as no machine."""
    from exporter.core.gguf import read_gguf

    content = bytearray(pirate.read_bytes())
    tensor = next(t for t in read_gguf(pirate).tensors if t.name == "output_norm.weight")
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight")
    assert int.from_bytes(content[at : at + 4], "little") == len(tensor.shape) == 1
    content[at + 4 : at + 12] = (1 << 40).to_bytes(8, "little")
    path = tmp_path / "huge.gguf"
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(tensor.offset + (4 << 40) + 4096)
    done = decant("chat", path, "-p", "hi")

    assert done.returncode == 5
    assert "does not fit" in said(done)
    assert "4398.05 GB weights" in done.stderr
