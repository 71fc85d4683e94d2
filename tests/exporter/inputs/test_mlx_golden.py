"""MLX's own numbers (tests/golden/make_mlx.py): quantized bases, and adapters as it fuses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.safetensors import read_header
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.adapter import open_adapter
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.quantized import mlx_affine
from exporter.inputs.quantized.mlx_float import MODES
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.raw import CONFIG, edit_json
from tests.support.reference import read_gguf

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

GOLDEN = Path(__file__).parents[2] / "golden" / "mlx.safetensors"
FLOATS = GOLDEN.with_name("mlx_float.safetensors")
BITS = (2, 3, 4, 5, 6, 8)
TYPES = ("float32", "float16", "bfloat16")
# in 16 bits MLX rounds the product and the sum
STEP = {"float32": 0, "float16": 2**-9, "bfloat16": 2**-6}
ROLES = ("lora_a", "lora_b", "m")


def golden():
    return read_header(GOLDEN, error=CheckpointError)


def settings():
    own = {f"w{bits}.{kind}": {"group_size": 32, "bits": bits} for bits in BITS for kind in TYPES}
    return {"quantization": {"group_size": 64, "bits": 4, **own}}


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_quantized_weights_are_dequantized_as_mlx_does(monkeypatch, chunk):
    monkeypatch.setattr("exporter.inputs.quantized.mlx_affine.CHUNK", chunk)
    stored = {name: tensor for name, tensor in golden().items() if name.startswith("w")}

    plain = mlx_affine.dequantized(stored, settings())

    assert len(plain) == len(BITS) * len(TYPES)
    for name, tensor in plain.items():
        stem = name.removesuffix(".weight")
        expected = read_tensor(golden()[f"expected.{stem}"]).float()
        found = read_tensor(tensor)
        assert found.shape == tensor.shape
        assert (found - expected).abs().max() <= STEP[stem.partition(".")[2]], name


@pytest.mark.parametrize("chunk", [300, 1 << 20])
@pytest.mark.parametrize("stem", [*MODES, "affine1"])
def test_floats_and_single_bits_are_dequantized_as_mlx_does(monkeypatch, stem, chunk):
    monkeypatch.setattr("exporter.inputs.quantized.mlx_float.CHUNK", chunk)
    held = read_header(FLOATS, error=CheckpointError)
    stored = {name: tensor for name, tensor in held.items() if name.startswith(stem)}
    kind = {"mode": stem} if stem in MODES else {"group_size": 32, "bits": 1}

    plain = mlx_affine.dequantized(
        stored, {"quantization": {"group_size": 16, "bits": 4, stem: kind}}
    )

    expected = read_tensor(held[f"expected.{stem}"])
    assert plain.keys() == {f"{stem}.weight"}
    assert plain[f"{stem}.weight"].shape == tuple(expected.shape)
    assert expected.isfinite().all()
    assert expected.std() > 0
    assert read_tensor(plain[f"{stem}.weight"]).equal(expected)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"mode": "mxfp2"}, UnsupportedError, "as mxfp2"),
        ({"mode": "mxfp4"}, CheckpointError, "its scales are F32"),
        ({"mode": "nvfp4"}, CheckpointError, "of 4 bits"),
        ({"bits": 5}, CheckpointError, "of 5 bits"),
        ({"group_size": 48}, CheckpointError, "is no"),
        ({"group_size": "64"}, CheckpointError, "in groups of '64'"),
    ],
)
def test_what_does_not_fit_its_settings_is_refused_by_name(changes, kind, said):
    stem = "w4.float32"
    stored = {name: tensor for name, tensor in golden().items() if name.startswith(stem)}
    config = {"quantization": {"group_size": 32, "bits": 4, **changes}}

    with pytest.raises(kind, match=said) as caught:
        mlx_affine.dequantized(stored, config)

    assert stem in caught.value.message


@pytest.mark.parametrize("name", ["linear", "dora", "embed_tokens", "switch_mlp.up_proj"])
def test_an_adapter_is_merged_as_mlx_fuses_it(tmp_path, name):
    import torch
    from safetensors.torch import save_file

    held = {key: read_tensor(tensor) for key, tensor in golden().items() if key.startswith(name)}
    before, after = held[f"{name}.base"], held[f"{name}.fused"]
    stem = f"model.layers.0.mlp.{name}"
    apart = (
        f"{stem}.weight" if before.dim() == 2 else "model.layers.0.mlp.experts.{}.up_proj.weight"
    )
    stacks = [before] if before.dim() == 2 else before.unbind()
    base, adapter = tmp_path / "base", tmp_path / "lora"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG))
    weights = {apart.format(place): part.clone() for place, part in enumerate(stacks)}
    save_file(weights, base / "model.safetensors")
    save_file(
        {f"{stem}.{role}": held[f"{name}.{role}"] for role in ROLES if f"{name}.{role}" in held},
        adapter / "adapters.safetensors",
    )
    kind = "dora" if name == "dora" else "lora"
    trained = {"fine_tune_type": kind, "lora_parameters": {"rank": 2, "scale": 3.0}}
    (adapter / "adapter_config.json").write_text(json.dumps(trained))

    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])

    tensors = MergedTensors(plan)
    merged = torch.stack([tensors.read(key) for key in weights]).reshape(after.shape)
    torch.testing.assert_close(merged, after, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(merged, before, atol=1e-2)


def quantized_base(folder, base):
    """A copy of a base with its linear layers' weights in 4 bits, as mlx_lm.convert -q has them.

    Gives the weights that MLX would make of it, too.
    """
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(base, folder)
    plain, packed = {}, {}
    for name, values in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            plain[name] = packed[name] = values
            continue
        groups = values.float().reshape(len(values), -1, 64)
        lowest = groups.min(-1, keepdim=True).values
        steps = ((groups.max(-1, keepdim=True).values - lowest) / 15).half()
        lowest = lowest.half()
        codes = ((groups - lowest) / steps).round().clamp(0, 15)
        plain[name] = (codes * steps.float() + lowest.float()).reshape(values.shape)
        nibbles = codes.reshape(len(values), -1, 2).to(torch.uint8)
        stem = name.removesuffix("weight")
        words = (nibbles[..., 0] | (nibbles[..., 1] << 4)).contiguous().view(torch.uint32)
        packed |= {name: words, f"{stem}scales": steps[..., 0], f"{stem}biases": lowest[..., 0]}
    save_file(packed, folder / "model.safetensors", {"format": "mlx"})
    quantization = {"group_size": 64, "bits": 4}
    edit_json(folder / "config.json", quantization=quantization, quantization_config=quantization)
    return folder, plain


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_base_in_mlxs_4_bits_is_exported_as_its_plain_twin(
    tmp_path, tiny_base, tiny_adapter, toolchain, with_adapter
):
    from safetensors.torch import save_file

    base, plain = quantized_base(tmp_path / "base", tiny_base)
    twin = shutil.copytree(tiny_base, tmp_path / "twin")
    save_file({name: values.clone() for name, values in plain.items()}, twin / "model.safetensors")
    adapters, made = ((tiny_adapter, 1.0),) if with_adapter else (), []
    for folder in (base, twin):
        output = tmp_path / f"{folder.name}.gguf"
        export(ExportRequest(adapters, folder, ("Q8_0",), (output,), verify=True), toolchain)
        made.append(read_gguf(output)[1])

    assert made[0] == made[1]


def test_a_base_whose_values_mlx_changes_is_refused(tmp_path, tiny_base):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny_base, tmp_path / "base")
    edit_json(base / "config.json", model_type="qwen3_next")
    open_checkpoint(base)  # as the hub has it
    held = load_file(base / "model.safetensors")
    save_file(held, base / "model.safetensors", {"format": "mlx"})

    with pytest.raises(UnsupportedError, match="another form") as caught:
        open_checkpoint(base)

    assert "original release" in caught.value.hint
