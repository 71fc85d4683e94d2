"""The models of a command line: sizes and hashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.core.events import silent
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.cli.eval_models import local_group, quant_in
from runtime.engine.memory_fit import FitOptions
from runtime.engine.opened_model import open_model
from runtime.evaluation.outcome_cache import OutcomeCache


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_split_model_is_all_of_its_files(toolchain, tiny_base, tmp_path):
    output = tmp_path / "whole-Q4_K_M.gguf"
    request = ExportRequest((), tiny_base, ("Q4_K_M",), (output,), split_max=300_000)
    shards = export(request, toolchain).files[0].shards
    assert len(shards) > 1

    def model():
        with OutcomeCache(tmp_path / "outcomes.sqlite") as cache:
            (found,) = local_group(open_model(shards[0]), FitOptions(256, 1), cache, silent).models
        return found

    first = model()
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1] + b"\xff")
    second = model()

    assert first.facts()["nbytes"] == sum(path.stat().st_size for path in shards)
    assert first.facts()["quant"] == "Q4_K_M"
    assert first.identity != second.identity, "its last file changed"
    assert first.facts()["sha256"] != second.facts()["sha256"]


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("a-Q8_0.gguf", "Q8_0"),
        ("a-Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("a.gguf", ""),
        ("a-00001-of-00003.gguf", ""),
        ("a-chat.gguf", ""),
    ],
)
def test_a_type_is_read_from_the_name(name, quant):
    assert quant_in(Path(name)) == quant
