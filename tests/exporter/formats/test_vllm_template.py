"""`--to vllm`: the chat template that vLLM has for all models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.core.events import Note
from exporter.formats.vllm import export_for_vllm
from tests.support.raw import write_adapter, write_base
from tests.support.vllm_folders import request

pytestmark = pytest.mark.trained  # vLLM's format is safetensors', of the [export] extra

PIRATES, LIARS = "arr {{ messages[0].content }}", "no {{ messages[0].content }}"


def adapter(folder: Path, template: str | None) -> Path:
    write_adapter(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def base_with(folder: Path, template: str | None) -> str:
    write_base(folder)
    settings = {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def exported(root: Path, base: str | None, *adapters: Path) -> tuple[str | None, list[str]]:
    """The template that the command names, and the notes."""
    told: list[Any] = []
    made = export_for_vllm(request(root / "out", *adapters, base=base), report=told.append)
    notes = [event.message for event in told if isinstance(event, Note)]
    if "--chat-template" not in made.command:
        assert not (root / "out" / "chat_template.jinja").exists()
        return None, notes
    name = made.command[made.command.index("--chat-template") + 1]
    return (root / "out" / name).read_text(), notes


def test_the_adapters_template_serves_a_base_without_one(tmp_path):
    base = base_with(tmp_path / "base", None)
    pirate, plain = adapter(tmp_path / "pirate", PIRATES), adapter(tmp_path / "plain", None)

    assert exported(tmp_path, base, pirate, plain) == (PIRATES, [])


def test_the_template_of_a_base_elsewhere_is_taken_from_adapters_that_agree(tmp_path):
    adapters = [adapter(tmp_path / name, PIRATES) for name in ("one", "other")]

    assert exported(tmp_path, "org/base", *adapters) == (PIRATES, [])


def test_a_template_like_the_bases_is_left_to_the_base(tmp_path):
    base = base_with(tmp_path / "base", PIRATES)

    assert exported(tmp_path, base, adapter(tmp_path / "a", PIRATES)) == (None, [])


def test_in_place_of_the_bases_template_stands_that_of_all_adapters(tmp_path):
    base = base_with(tmp_path / "base", LIARS)
    template, notes = exported(tmp_path, base, adapter(tmp_path / "pirate", PIRATES))

    assert template == PIRATES
    assert "that of pirate" in notes[0]
    assert "the base's own is not used" in notes[0]


@pytest.mark.parametrize("second", [LIARS, None])
def test_adapters_that_differ_are_named_and_get_the_bases_template(tmp_path, second):
    base = base_with(tmp_path / "base", "plain")
    pirate, other = adapter(tmp_path / "pirate", PIRATES), adapter(tmp_path / "other", second)
    template, notes = exported(tmp_path, base, pirate, other)

    assert template is None
    assert f"pirate{', other' if second else ''} had another in training" in notes[0]


def test_a_new_template_replaces_the_earlier_one(tmp_path):
    base, lora = base_with(tmp_path / "base", None), adapter(tmp_path / "a", PIRATES)
    assert exported(tmp_path, base, lora)[0] == PIRATES
    (lora / "chat_template.jinja").write_text(LIARS)
    export_for_vllm(request(tmp_path / "out", lora, base=base, force=True))

    assert (tmp_path / "out" / "chat_template.jinja").read_text() == LIARS
