from __future__ import annotations

from dataclasses import replace

import pytest

from exporter.calibrate import count_tokens, refuse_short, with_matrix
from exporter.core.errors import InputError
from exporter.core.events import Progress
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.quantize.type_recipe import Recipe
from tests.support.reference import read_gguf
from tests.support.tiny import TEXT


def test_a_text_shorter_than_its_tokens_is_refused_with_the_numbers(tmp_path):
    refuse_short(tmp_path / "x", 1023, 512)
    with pytest.raises(InputError, match=r"it has 1022 bytes.* and 1024 are needed"):
        refuse_short(tmp_path / "x", 1022, 512)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_text_makes_a_matrix_that_is_kept_and_used(toolchain, tiny_base, tiny_adapter, tmp_path):
    text, kept = tmp_path / "my text.txt", tmp_path / "kept"
    text.write_text(TEXT)
    request = ExportRequest(
        ((tiny_adapter, 1.0),), tiny_base, ("IQ2_XXS",), (tmp_path / "x.gguf",),
        recipe=Recipe(calibrate=text),
    )  # fmt: skip
    with pytest.raises(InputError, match="a dry run measures nothing"):
        with_matrix(request, toolchain, folder=kept, dry_run=True)

    first, again, other = [], [], []
    made = with_matrix(request, toolchain, folder=kept, report=first.append)
    same = with_matrix(request, toolchain, folder=kept, report=again.append)
    weaker = replace(request, adapters=((tiny_adapter, 0.5),))
    with_matrix(weaker, toolchain, folder=kept, report=other.append)
    export(made, toolchain)

    steps = [
        [event for event in events if isinstance(event, Progress) and event.task == "measuring"]
        for events in (first, again, other)
    ]
    assert steps[0][-1].done == steps[0][-1].total > 1
    assert (steps[1], bool(steps[2])) == ([], True)
    assert made.recipe.imatrix.sha256 == same.recipe.imatrix.sha256
    assert [path.suffix for path in kept.iterdir()] == [".gguf", ".gguf"]
    text.write_text("</s>\\n")  # read as text, not as an end and a line feed
    assert count_tokens(tmp_path / "x.gguf", text, toolchain) == 7
    with imported(toolchain):
        told = read_gguf(tmp_path / "x.gguf")[0]
    assert told["quantize.imatrix.dataset"][1] == "my text.txt"
    assert str(tmp_path) not in str(told)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_text_of_too_few_tokens_is_refused_and_nothing_kept(toolchain, tiny_base, tmp_path):
    text, kept = tmp_path / "x.txt", tmp_path / "kept"
    text.write_text(" the" * 130)  # 520 bytes, 130 tokens; a context of 256
    request = ExportRequest(
        (), tiny_base, ("IQ2_XXS",), (tmp_path / "x.gguf",), recipe=Recipe(calibrate=text)
    )

    with pytest.raises(InputError, match=r"it has \d+ tokens, and 512 are needed"):
        with_matrix(request, toolchain, folder=kept)
    assert list(kept.iterdir()) == []
