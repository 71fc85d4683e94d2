"""A LoRA out of a full fine-tune, against transformers' forward and the best that SVD can do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporter.core.errors import CheckpointError, OutputError, UnsupportedError
from exporter.core.events import Warn
from exporter.extract import Extracted, ExtractRequest, extract, low_rank
from exporter.extract_plan import in_short
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.architectures import SIZE, make_architecture

pytestmark = [pytest.mark.trained]
TRUE_RANK = 4
KINDS = {
    "llama": lambda t: t.LlamaConfig(**SIZE),
    "tied": lambda t: t.LlamaConfig(**SIZE, tie_word_embeddings=True),
    "biased": lambda t: t.Qwen2Config(**SIZE),
    "conv1d": lambda t: t.GPT2Config(
        vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=1,
        eos_token_id=2,
    ),
}  # fmt: skip


def make_pair(config, folder: Path, *, rank: int = TRUE_RANK) -> SimpleNamespace:
    """A base and a fine-tune of it, whose matrices differ by `rank` and whose vectors differ."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(transformers))
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                rows, columns = parameter.shape
                parameter.add_(torch.randn(rows, rank) @ torch.randn(rank, columns) * 0.01)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "tuned")
    return SimpleNamespace(base=folder / "base", tuned=folder / "tuned", folder=folder)


def logits(model):
    import torch

    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[3, 5, 8, 13]])).logits


def run(pair: SimpleNamespace, rank: int, **options) -> Extracted:
    return extract(ExtractRequest(pair.tuned, pair.base, pair.folder / "lora", rank, **options))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")  # settled by PEFT, layer by layer
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_changes_own_rank_peft_gives_the_fine_tune(tmp_path, kind):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    pair = make_pair(KINDS[kind], tmp_path)
    made = run(pair, TRUE_RANK)
    base = AutoModelForCausalLM.from_pretrained(pair.base)
    before = logits(base)
    expected = logits(AutoModelForCausalLM.from_pretrained(pair.tuned))
    found = logits(PeftModel.from_pretrained(base, made.folder))

    assert (before - expected).abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-4
    assert made.kept > 1 - 1e-6
    assert made.left_out == ()
    merge = plan_merge(open_checkpoint(pair.base), [WeightedAdapter(open_adapter(made.folder))])
    assert "tie_word_embeddings" not in merge.config  # what was tied stays so
    after = AutoModelForCausalLM.from_pretrained(pair.tuned).state_dict()
    for name, values in ((name, MergedTensors(merge).read(name)) for name in merge.names):
        assert (values - after[name]).abs().max() < 1e-5, name


def test_a_smaller_rank_keeps_what_the_largest_singular_values_hold(tmp_path):
    import torch
    from safetensors.torch import load_file

    pair = make_pair(KINDS["llama"], tmp_path, rank=16)
    made = run(pair, 3)
    before, after = (load_file(f / "model.safetensors") for f in (pair.base, pair.tuned))
    for kept in made.matrices:
        values = torch.linalg.svdvals((after[kept.name] - before[kept.name]).double())
        best = float((values[:3] ** 2).sum() / (values**2).sum())
        assert kept.share == pytest.approx(best, abs=1e-4)
    assert 0.2 < made.kept < 0.9


def test_the_quick_way_for_large_matrices_loses_hardly_more_than_the_exact_one():
    import torch

    torch.manual_seed(0)
    change = torch.randn(900, 200) @ torch.diag(0.9 ** torch.arange(200.0)) @ torch.randn(200, 1000)
    a, b = low_rank(change, 8)
    values = torch.linalg.svdvals(change)
    best = float((values[8:] ** 2).sum().sqrt())

    assert float((change - b @ a).norm()) <= 1.005 * best
    assert [half.shape for half in (a, b)] == [(8, 1000), (900, 8)]
    assert all(torch.equal(*halves) for halves in zip((a, b), low_rank(change, 8), strict=True))


def test_a_grown_vocabulary_stands_whole(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    pair = make_pair(KINDS["llama"], tmp_path)
    tuned = AutoModelForCausalLM.from_pretrained(pair.tuned)
    tuned.resize_token_embeddings(328, mean_resizing=False)
    tuned.save_pretrained(pair.tuned)
    made = run(pair, TRUE_RANK)
    base = AutoModelForCausalLM.from_pretrained(pair.base)
    base.resize_token_embeddings(328, mean_resizing=False)
    settings = json.loads((made.folder / "adapter_config.json").read_text())

    assert {"lm_head", "model.embed_tokens"} <= set(settings["modules_to_save"])
    found = logits(PeftModel.from_pretrained(base, made.folder))
    assert (found - logits(tuned)).abs().max() < 1e-4


def test_only_pairs_leave_norms_out_and_say_so(tmp_path):
    pair = make_pair(KINDS["llama"], tmp_path)
    said = []
    request = ExtractRequest(pair.tuned, pair.base, tmp_path / "lora", 4, only_pairs=True)
    made = extract(request, report=said.append)

    assert "model.norm.weight" in made.left_out
    assert "5 changed tensors" in next(e.message for e in said if isinstance(e, Warn))


def test_what_is_no_pair_of_base_and_fine_tune_is_refused(tmp_path):
    pair = make_pair(KINDS["llama"], tmp_path)
    with pytest.raises(CheckpointError, match="hold the same weights"):
        extract(ExtractRequest(pair.base, pair.base, tmp_path / "a"))
    other = make_architecture("qwen2", tmp_path / "qwen2")
    with pytest.raises(CheckpointError, match="is a Qwen2ForCausalLM, and"):
        extract(ExtractRequest(other, pair.base, tmp_path / "a"))
    wide = make_pair(lambda t: t.LlamaConfig(**SIZE | {"intermediate_size": 64}), tmp_path / "w")
    with pytest.raises(CheckpointError, match="in the fine-tune and"):
        extract(ExtractRequest(wide.tuned, pair.base, tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_base_in_four_bits_is_refused_with_what_to_use(tmp_path):
    pair = make_pair(KINDS["llama"], tmp_path)
    config = json.loads((pair.base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (pair.base / "config.json").write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    weights = load_file(pair.base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].int()
    save_file(weights, pair.base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedError, match="is quantized"):
        run(pair, 4)


def test_a_folder_that_exists_is_kept(tmp_path):
    pair = make_pair(KINDS["llama"], tmp_path)
    run(pair, 4)
    with pytest.raises(OutputError, match="exists"):
        run(pair, 4)
    assert run(pair, 4, force=True).rank == 4


def test_modules_are_named_in_short_where_all_of_a_name_are_meant():
    all_of_them = ("a.0.q", "a.1.q", "a.0.o", "a.1.o", "lm_head")

    assert in_short(["a.0.q", "a.1.q", "a.0.o"], all_of_them) == ["a.0.o", "q"]


@pytest.mark.llamacpp
def test_the_command_makes_a_gguf_adapter_that_llamacpp_adds(warm_decant, toolchain, tmp_path):
    """The base with the adapter, in llama.cpp, against the fine-tune without its norms."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.support.logits import Loaded
    from tests.support.tiny import make_base

    base = make_base(tmp_path / "base", dtype="float32")
    tuned = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("_proj.weight"):
                rows, columns = parameter.shape
                parameter.add_(torch.randn(rows, 4) @ torch.randn(4, columns) * 0.01)
    shutil.copytree(base, tmp_path / "tuned")
    tuned.save_pretrained(tmp_path / "tuned")
    adapter, plain = tmp_path / "a.gguf", tmp_path / "base.gguf"

    done = warm_decant(
        "extract", tmp_path / "tuned", "--base", base, "--rank", 4, "--to", "lora",
        "-o", adapter, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] > 0.999
    made = warm_decant("export", "--base", base, "-q", "F32", "-o", plain, "--no-verify")
    assert made.returncode == 0, made.stderr
    loaded = Loaded(toolchain, plain)
    try:
        found = loaded.logits([3, 5, 8, 13], adapter=loaded.adapter(adapter))
    finally:
        loaded.close()

    assert abs(found - logits(tuned)[0].numpy()).max() < 1e-3
