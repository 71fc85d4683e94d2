"""Tensors that are stored as they are, read in blocks of rows."""

from __future__ import annotations

import pytest

from exporter.core.errors import CheckpointError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge import apply
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.tiny import make_base

pytestmark = pytest.mark.trained


@pytest.fixture
def tensors(tiny_base, tiny_adapter) -> MergedTensors:
    adapter = WeightedAdapter(open_adapter(tiny_adapter), 1.0)
    return MergedTensors(plan_merge(open_checkpoint(tiny_base), [adapter]))


@pytest.mark.parametrize("nbytes", [1, 5000, 1 << 30])
def test_blocks_are_the_tensor(tensors, monkeypatch, nbytes):
    import torch

    monkeypatch.setattr(apply, "BLOCK_NBYTES", nbytes)
    counts = {}
    for name in tensors.names:
        blocks = list(tensors.row_blocks(name))
        assert torch.equal(torch.cat(blocks), tensors.read(name)), name
        counts[name] = len(blocks)

    changed = {name for name in tensors.names if name in tensors.plan.changes}
    assert changed
    assert all(counts[name] == 1 for name in changed)  # merged as a whole
    embedding = "model.embed_tokens.weight"
    rows, row_nbytes = tensors.shape(embedding)[0], tensors.shape(embedding)[1] * 2
    if nbytes < rows * row_nbytes:
        assert counts[embedding] == -(-rows // max(1, nbytes // row_nbytes))
    else:
        assert counts[embedding] == 1


@pytest.mark.llamacpp
def test_a_file_is_the_same_however_its_tensors_are_read(
    toolchain, tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    written = []
    for nbytes in (3000, 1 << 30):
        monkeypatch.setattr(apply, "BLOCK_NBYTES", nbytes)
        path = tmp_path / f"{nbytes}" / "x.gguf"
        path.parent.mkdir()
        request = ExportRequest(((tiny_adapter, 1.0),), tiny_base, ("Q4_K_M", "F16"), (
            path, path.with_name("f.gguf"),
        ))  # fmt: skip
        export(request, toolchain)
        written.append([made.read_bytes() for made in sorted(path.parent.iterdir())])

    assert written[0] == written[1]


def test_a_value_that_is_no_number_is_counted_over_the_whole_tensor(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", num_hidden_layers=1)
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] = torch.nan
    weights["model.embed_tokens.weight"][-1, 0] = torch.inf
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(apply, "BLOCK_NBYTES", 4096)
    tensors = MergedTensors(plan_merge(open_checkpoint(base)))

    with pytest.raises(CheckpointError, match=r"2 of .* values of `model\.embed_tokens\.weight`"):
        list(tensors.row_blocks("model.embed_tokens.weight"))
