"""Adapters of experts, as transformers 4 and 5, old and new PEFT and Unsloth save them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.core.errors import AdapterError
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.architectures import SIZE

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


def write_stacks(folder: Path, kind: str) -> Path:
    """Stacks as gpt-oss has them, (experts, in, out), or other models: (experts, out, in)."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["SomeForCausalLM"], "model_type": kind})
    )
    shapes = {"gate_up_proj": (2 * INNER, WIDTH), "down_proj": (WIDTH, INNER)}
    stacks = {
        f"{MODULE}.{name}": random(EXPERTS, *(shape[::-1] if kind == "gpt_oss" else shape))
        for name, shape in shapes.items()
    }
    save_file(stacks | {"model.layers.0.mlp.router.weight": random(EXPERTS, WIDTH)},
              folder / "model.safetensors")  # fmt: skip
    return folder


def pairs_of(*modules: str):
    """Random pairs by their place in a stack: the part decides the shape."""
    shapes = {"gate_up": (2 * INNER, WIDTH), "gate": (INNER, WIDTH), "up": (INNER, WIDTH),
              "down": (WIDTH, INNER)}  # fmt: skip
    found = {}
    for module in modules:
        part = next(part for part in shapes if f"{part}_proj" in module)
        n_out, n_in = shapes[part]
        found[module] = random(RANK, n_in), random(n_out, RANK)
    return found


def keys(pairs):
    return {
        f"{module}.lora_{half}.weight": matrix
        for module, halves in pairs.items()
        for half, matrix in zip("AB", halves, strict=True)
    }


def test_gpt_oss_pairs_of_single_experts_are_folded_into_the_stacks_transposed(tmp_path):
    """As training on bitsandbytes' 4 bits saves them: a linear layer for each expert."""
    import torch

    from exporter.verify.rows import Reference

    torch.manual_seed(4)
    base = write_stacks(tmp_path / "base", "gpt_oss")
    pairs = pairs_of(
        f"{MODULE}.gate_up_projs.2", f"{MODULE}.down_projs.0", f"{MODULE}.gate_up_projs.0"
    )
    router = random(RANK, WIDTH), random(EXPERTS, RANK)
    adapter = save_adapter(
        tmp_path / "lora", keys(pairs | {"model.layers.0.mlp.router.linear": router})
    )

    found, before = merged(base, adapter), stored(base)

    for module, (a, b) in pairs.items():
        stack, _, expert = module.rpartition(".")
        name = stack.removesuffix("s")
        before[name] = before[name].double()
        before[name][int(expert)] += (SCALE * b.double() @ a.double()).T
    before["model.layers.0.mlp.router.weight"] += (SCALE * router[1] @ router[0]).float()
    for name, values in before.items():
        torch.testing.assert_close(found[name].double(), values.double(), atol=1e-5, rtol=0)
    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])
    for name in (f"{MODULE}.gate_up_proj", f"{MODULE}.down_proj"):
        rows = found[name].reshape(-1, found[name].shape[-1])
        checked = Reference(plan).rows(name, np.arange(len(rows)))
        assert np.abs(checked.after - rows.double().numpy()).max() < 1e-5
        assert checked.before is not None


# gpt-oss has gate and up in turns, others one after the other
ROWS = {
    "other": {"gate_proj": slice(0, INNER), "up_proj": slice(INNER, 2 * INNER)},
    "gpt_oss": {"gate_proj": slice(0, 2 * INNER, 2), "up_proj": slice(1, 2 * INNER, 2)},
}


@pytest.mark.parametrize("tool", ["peft", "mlx"])
@pytest.mark.parametrize("kind", ROWS)
def test_parts_of_single_experts_find_their_rows_in_a_stack(tmp_path, kind, tool):
    import torch

    from exporter.verify.rows import Reference

    torch.manual_seed(4)
    base = write_stacks(tmp_path / "base", kind)
    modules = [
        f"{MODULE}.{e}.{part}_proj" for part in ("up", "gate", "down") for e in range(EXPERTS)
    ]
    pairs = pairs_of(*modules)
    save = save_adapter if tool == "peft" else save_mlx
    adapter = save(tmp_path / "lora", keys(pairs))

    found, before = merged(base, adapter), stored(base)

    for module, (a, b) in pairs.items():
        parent, _, part = module.rpartition(".")
        expert, change = int(parent.rpartition(".")[2]), SCALE * b @ a
        stack = before[f"{MODULE}.down_proj" if part == "down_proj" else f"{MODULE}.gate_up_proj"]
        weight = stack[expert].T if kind == "gpt_oss" else stack[expert]
        weight[ROWS[kind].get(part, slice(None))] += change
    for name, values in before.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=0)
    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])
    for name in (f"{MODULE}.gate_up_proj", f"{MODULE}.down_proj"):
        rows = found[name].reshape(-1, found[name].shape[-1])
        checked = Reference(plan).rows(name, np.arange(len(rows)))
        assert np.abs(checked.after - rows.double().numpy()).max() < 1e-5


def save_mlx(folder: Path, tensors) -> Path:
    """The same pairs as mlx-lm stacks them: A (experts, rank, in), B (experts, out, rank)."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    stacks: dict[str, list[torch.Tensor]] = {}
    for name, matrix in tensors.items():  # the experts come in order
        experts, _, rest = name.rpartition(".experts.")
        part, half = rest.split(".")[1:3]
        stacks.setdefault(f"{experts}.experts.{part}.{half.lower()}", []).append(matrix)
    save_file(
        {name: torch.stack(parts) for name, parts in stacks.items()},
        folder / "adapters.safetensors",
    )
    settings = {"rank": RANK, "scale": SCALE, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "lora_parameters": settings, "num_layers": 1}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_expert_that_the_stack_does_not_have_is_refused_with_both_shapes(tmp_path):
    base = write_stacks(tmp_path / "base", "gpt_oss")
    adapter = save_adapter(tmp_path / "lora", keys(pairs_of(f"{MODULE}.down_projs.{EXPERTS}")))

    with pytest.raises(AdapterError, match=r"expert 3 of `.+down_proj`, which is \[3, 6, 8\]"):
        merged(base, adapter)


@pytest.mark.filterwarnings("ignore")
def test_a_shared_expert_that_the_checkpoint_calls_otherwise_is_merged(tmp_path):
    """Laguna's, which PEFT drops with a warning when it loads the adapter again."""
    import torch
    import transformers

    config = transformers.LagunaConfig(
        **SIZE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48
    )
    torch.manual_seed(0)
    base = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    before = stored(base)
    name = next(key for key in before if "shared_expert.up_proj" in key)
    n_out, n_in = before[name].shape
    a, b = random(RANK, n_in), random(n_out, RANK)
    module = name.removesuffix(".weight").replace("shared_expert.", "shared_experts.")
    adapter = save_adapter(tmp_path / "lora", keys({module: (a, b)}))

    found = merged(base, adapter)

    expected = before[name].double() + SCALE * b.double() @ a.double()
    torch.testing.assert_close(found[name].double(), expected, atol=1e-4, rtol=0)
    assert all(torch.equal(found[key], before[key]) for key in before if key != name)
