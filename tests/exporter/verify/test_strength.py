"""A change that a type cannot hold is the type's doing; one that is not there is an error."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter.core.ggml_types import GGMLType
from exporter.llamacpp.converter_import import imported
from exporter.quantize.quantizer import Quantizer
from exporter.verify.full import verify_full
from exporter.verify.strength import Requantizer
from tests.support.tiny import make_adapter
from tests.support.verified import CHUNKS, check, plan_of, weakened

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def coarse_base(tiny_base: Path, toolchain, tmp_path_factory) -> Path:
    """A base whose matrices lie on the grid of Q4_0, as one trained for 4 bits or dequantized."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("coarse") / "base"))
    path = folder / "model.safetensors"
    requantizer = Requantizer(Quantizer.load(toolchain))
    kind = GGMLType.by_name("Q4_0")
    tensors = {}
    with imported(toolchain):
        for name, values in load_file(path).items():
            whole = values.float().numpy()
            if values.ndim == 2 and "layers" in name:
                whole = requantizer.make(whole, kind, None).astype(np.float32)
            tensors[name] = torch.from_numpy(whole)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def faint_adapter(coarse_base: Path) -> Path:
    """An adapter whose change is mostly smaller than half a step of that grid."""
    return weakened(make_adapter(coarse_base.parent / "lora", coarse_base), 0.1)


def test_a_change_that_four_bits_cannot_hold_is_a_note_with_what_holds_it(
    pour, verify, coarse_base, faint_adapter, tmp_path
):
    def poured(quant: str):
        file = pour(coarse_base, faint_adapter, tmp_path / f"{quant}.gguf", quant)
        found = verify(file, coarse_base, faint_adapter)
        found.refuse()
        return check(found, "weights")

    coarse, kept = poured("Q4_0"), poured("Q8_0")

    assert 0.3 < coarse.numbers["strength"] < 0.8
    (note,) = coarse.notes
    share = round(100 * coarse.numbers["strength"])
    assert note.startswith(f"{share}% of the adapter's change survives in this file")
    assert "`blk." in note
    assert "`-q Q8_0` 100% would hold" in note
    assert "--to lora" in note
    least = min(value for key, value in coarse.numbers.items() if key.startswith("survives in"))
    assert f" Q4_0 {least:.0%}" in note
    assert kept.notes == ()
    assert kept.numbers["strength"] == pytest.approx(1, abs=0.01)


def test_against_such_a_base_which_loses_nothing_a_right_file_is_right_and_a_wrong_one_is_not(
    pour, toolchain, coarse_base, tmp_path
):
    adapter = make_adapter(tmp_path / "lora", coarse_base)
    plan = plan_of(coarse_base, adapter)
    right = pour(coarse_base, adapter, tmp_path / "right.gguf", "Q4_0")
    wrong = pour(coarse_base, adapter, tmp_path / "wrong.gguf", "Q4_0", 2.0)

    found = verify_full(right, plan, CHUNKS, toolchain, against_base=True)
    other = verify_full(wrong, plan, CHUNKS, toolchain, against_base=True)

    assert found.problems == ()
    assert "on the base's grid" in found.notes[0]
    assert found.numbers["kl_of_base"] < 0.5 * found.numbers["kl"]
    assert "as the same values requantized are" in other.problems[0]


@pytest.mark.parametrize(
    ("quant", "scale"), [("Q4_K_M", None), ("Q4_0", None), ("Q4_0", 2.0), ("Q4_K_M", 0.5)]
)
def test_on_such_a_base_a_missing_or_wrongly_scaled_merge_is_still_an_error(
    pour, verify, coarse_base, faint_adapter, tmp_path, quant, scale
):
    adapter = None if scale is None else faint_adapter
    wrong = pour(coarse_base, adapter, tmp_path / "m.gguf", quant, scale or 1.0)

    weights = check(verify(wrong, coarse_base, faint_adapter), "weights")

    times = "-?0.0" if scale is None else "[23]." if scale > 1 else "0.[0-6]"
    together = rf"the merged tensors together hold {times}\d* times the adapter's change"
    assert re.search(together, weights.problems[-1])
    assert weights.notes == ()


def test_a_change_that_is_rounded_away_whole_leaves_the_same_bytes_and_is_no_error(
    pour, verify, coarse_base, tmp_path
):
    adapter = weakened(make_adapter(tmp_path / "lora", coarse_base), 0.001)
    with_it = pour(coarse_base, adapter, tmp_path / "with.gguf", "Q4_0")

    found = verify(with_it, coarse_base, adapter)

    found.refuse()
    assert check(found, "weights").numbers["strength"] < 0.05
    assert "of the adapter's change survives" in check(found, "weights").notes[0]
