"""Names are those that Ollama allows, and lead nowhere else."""

from __future__ import annotations

import pytest

from exporter.core.errors import ModelError
from exporter.stores.ollama_names import name_at, parse_ollama_name, speakable


@pytest.mark.parametrize(
    ("text", "shown", "place"),
    [
        ("llama3.2", "llama3.2:latest", "registry.ollama.ai/library/llama3.2/latest"),
        ("llama3.2:1b", "llama3.2:1b", "registry.ollama.ai/library/llama3.2/1b"),
        ("me/cat:v1", "me/cat:v1", "registry.ollama.ai/me/cat/v1"),
        ("hf.co/Org/Re.po:Q4_K_M", "hf.co/Org/Re.po:Q4_K_M", "hf.co/Org/Re.po/Q4_K_M"),
        ("localhost:5000/u/m", "localhost:5000/u/m:latest", "localhost:5000/u/m/latest"),
        ("a..b", "a..b:latest", "registry.ollama.ai/library/a..b/latest"),
        ("_a", "_a:latest", "registry.ollama.ai/library/_a/latest"),
    ],
)
def test_a_name_is_completed_as_ollama_does(text, shown, place):
    name = parse_ollama_name(text)

    assert (str(name), name.place.as_posix()) == (shown, place)
    assert name_at(name.place) == name


@pytest.mark.parametrize(
    "text",
    ["", "../x", "..", "a/../b", "a/..:b", "../../../etc/passwd", "/etc/passwd", "a//b", "a/b/c/d",
     ".x", "-a", "a:", ":b", "a:../b", "a:..", "u.s/m", "é", "a b", "a\n", "a\0", "x" * 81,
     "a:" + "x" * 81, "\\..\\x"],
)  # fmt: skip
def test_a_name_that_ollama_does_not_allow_is_refused(text):
    with pytest.raises(ModelError, match="is no name of a model of Ollama's") as refused:
        parse_ollama_name(text)

    assert "llama3.2:1b" in (refused.value.hint or "")
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("text", ["my lora", "..", "é", "-x", "a/b", "x" * 200, ""])
def test_any_text_becomes_a_name(text):
    assert parse_ollama_name(speakable(text)).model
