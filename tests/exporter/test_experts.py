"""Adapters of experts, as transformers 4 and 5, old and new PEFT and Unsloth save them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.adapter import open_adapter
from exporter.checkpoint import open_checkpoint
from exporter.core.errors import AdapterError
from exporter.merge import MergedTensors
from exporter.plan import plan_merge
from exporter.steps import WeightedAdapter

pytestmark = pytest.mark.trained

EXPERTS, WIDTH, INNER, RANK, ALPHA = 3, 8, 6, 2, 5
MODULE = "model.layers.0.mlp.experts"
TARGETS = ["experts.gate_up_proj", "experts.down_proj"]


def random(*shape):
    import torch

    return torch.randn(*shape, dtype=torch.float32)


@pytest.fixture
def base(tmp_path):
    """Each expert's weights by themselves, as published."""
    return write_base(tmp_path / "base", INNER)


def write_base(folder: Path, inner: int) -> Path:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"})
    )
    tensors = {}
    for expert in range(EXPERTS):
        for part in ("gate_proj", "up_proj"):
            tensors[f"{MODULE}.{expert}.{part}.weight"] = random(inner, WIDTH)
        tensors[f"{MODULE}.{expert}.down_proj.weight"] = random(WIDTH, inner)
    save_file(tensors, folder / "model.safetensors")
    return folder


def save_adapter(folder: Path, tensors, **config) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": True} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {f"base_model.model.{name}": values.contiguous() for name, values in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def merged(base: Path, adapter: Path):
    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])
    tensors = MergedTensors(plan)
    return {name: tensors.read(name) for name in tensors.names}


def stored(base: Path):
    from safetensors.torch import load_file

    return load_file(base / "model.safetensors")


SCALE = ALPHA / RANK**0.5


def test_experts_adapted_one_by_one_are_merged_by_their_own_names(base, tmp_path):
    """transformers 4's modules; PEFT itself scales these wrongly with rsLoRA."""
    import torch

    torch.manual_seed(1)
    name = f"{MODULE}.1.gate_proj"
    a, b = random(RANK, WIDTH), random(INNER, RANK)
    adapter = save_adapter(
        tmp_path / "lora", {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    )

    found, before = merged(base, adapter), stored(base)

    expected = before[f"{name}.weight"].double() + SCALE * (b.double() @ a.double())
    torch.testing.assert_close(found[f"{name}.weight"].double(), expected, atol=1e-5, rtol=0)
    others = [key for key in before if key != f"{name}.weight"]
    assert all(torch.equal(found[key], before[key]) for key in others)


def stacked_pair(n_out: int, n_in: int):
    return random(EXPERTS * RANK, n_in), random(n_out, RANK * EXPERTS)


def update(a, b, expert: int):
    """By the definition: expert e's matrices cut out, in float64."""
    a = a.double().reshape(EXPERTS, RANK, -1)[expert]
    b = b.double().reshape(b.shape[0], RANK, EXPERTS)[:, :, expert]
    return SCALE * (b @ a)


def test_stacked_experts_are_cut_into_each_experts_rows(base, tmp_path):
    import torch

    torch.manual_seed(1)
    up_a, up_b = stacked_pair(2 * INNER, WIDTH)
    down_a, down_b = stacked_pair(WIDTH, INNER)
    adapter = save_adapter(
        tmp_path / "lora",
        {  # the second parameter's wrapper lies around the first one's
            f"{MODULE}.base_layer.lora_A.weight": up_a,
            f"{MODULE}.base_layer.lora_B.weight": up_b,
            f"{MODULE}.lora_A.weight": down_a,
            f"{MODULE}.lora_B.weight": down_b,
        },
        target_parameters=TARGETS,
    )

    found, before = merged(base, adapter), stored(base)

    for expert in range(EXPERTS):
        rows = update(up_a, up_b, expert)
        expected = {"gate_proj": rows[:INNER], "up_proj": rows[INNER:]}
        expected["down_proj"] = update(down_a, down_b, expert)
        for part, change in expected.items():
            name = f"{MODULE}.{expert}.{part}.weight"
            torch.testing.assert_close(
                found[name].double(), before[name].double() + change, atol=1e-5, rtol=0
            )


def test_an_older_pefts_turned_matrices_are_known_by_their_shape(base, tmp_path):
    import torch

    torch.manual_seed(1)
    a, b = stacked_pair(INNER, WIDTH)  # (in, out) of the update, for down_proj (out, in)
    adapter = save_adapter(
        tmp_path / "lora",
        {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b},
        target_parameters=TARGETS[1:],
    )

    found, before = merged(base, adapter), stored(base)

    name = f"{MODULE}.2.down_proj.weight"
    expected = before[name].double() + update(a, b, 2).T
    torch.testing.assert_close(found[name].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("version", "turned"), [("0.18.1", True), ("0.19.0", False), ("0.21.2", False)]
)
def test_of_square_experts_the_version_decides(tmp_path, version, turned):
    import torch

    square = write_base(tmp_path / "square", WIDTH)
    torch.manual_seed(1)
    a, b = stacked_pair(WIDTH, WIDTH)
    adapter = save_adapter(
        tmp_path / "lora",
        {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b},
        target_parameters=TARGETS[1:],
        peft_version=version,
    )

    found, before = merged(square, adapter), stored(square)

    name, change = f"{MODULE}.0.down_proj.weight", update(a, b, 0)
    expected = before[name].double() + (change.T if turned else change)
    torch.testing.assert_close(found[name].double(), expected, atol=1e-5, rtol=0)


def test_square_experts_of_an_unknown_version_are_refused(tmp_path):
    square = write_base(tmp_path / "square", WIDTH)
    a, b = stacked_pair(WIDTH, WIDTH)
    adapter = save_adapter(
        tmp_path / "lora",
        {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b},
        target_parameters=TARGETS[1:],
    )

    with pytest.raises(AdapterError, match="by which version of PEFT"):
        merged(square, adapter)


def test_unsloths_order_of_b_is_followed_where_it_is_marked(base, tmp_path):
    import torch

    torch.manual_seed(1)
    a, b = stacked_pair(WIDTH, INNER)
    adapter = save_adapter(
        tmp_path / "lora",
        {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b},
        target_parameters=TARGETS[1:],
        lora_B_layout="expert_major",
    )

    found, before = merged(base, adapter), stored(base)

    name = f"{MODULE}.1.down_proj.weight"
    cut = b.double().reshape(WIDTH, EXPERTS, RANK)[:, 1, :]
    change = SCALE * cut @ a.double().reshape(EXPERTS, RANK, -1)[1]
    torch.testing.assert_close(
        found[name].double(), before[name].double() + change, atol=1e-5, rtol=0
    )


def test_experts_of_another_shape_are_refused_with_both_shapes(base, tmp_path):
    a, b = stacked_pair(WIDTH, INNER + 1)
    adapter = save_adapter(
        tmp_path / "lora",
        {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b},
        target_parameters=TARGETS[1:],
    )

    with pytest.raises(AdapterError, match=r"down_proj` is \[3, 8, 6\] in the base"):
        merged(base, adapter)
