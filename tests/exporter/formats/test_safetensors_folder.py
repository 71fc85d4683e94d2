"""`--to safetensors`: a folder that transformers loads, which answers as the unmerged model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.cli.app import run
from exporter.core.atomic_file import sha256_file
from exporter.core.errors import AdapterError, OutputError, SpaceError
from exporter.export import export
from exporter.formats.safetensors_folder import plan_shards, save_merged, settled
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from tests.support.architectures import ARCHITECTURES, make_architecture
from tests.support.merged_folders import SIZE, files, names, request
from tests.support.raw import copy, edit_json, write_adapter, write_base, write_safetensors
from tests.support.reference import read_gguf
from tests.support.roads import difference, load_tensors, logits, shake, train_and_merge
from tests.support.tiny import make_adapter, make_base

ALL = {"target_modules": "all-linear"}
FLOAT32 = 1e-5  # how far two orders of the same float32 sums put a logit of about 1 to 10


# What needs no torch: the plan.


def test_shards_are_filled_in_order_and_a_large_tensor_stands_alone(tmp_path):
    base = write_base(tmp_path / "base")
    write_safetensors(
        base / "model.safetensors", {"a": (100,), "b": (100,), "c": (900,), "d": (100,)}
    )
    merged = MergedTensors(plan_merge(open_checkpoint(base)))

    shards = plan_shards(merged, 1000)

    assert [[t.name for t in shard.tensors] for shard in shards] == [["a", "b"], ["c"], ["d"]]
    assert [shard.name for shard in shards][1] == "model-00002-of-00003.safetensors"
    assert [shard.name for shard in plan_shards(merged, 10_000)] == ["model.safetensors"]


@pytest.mark.trained
def test_a_dry_run_writes_nothing_and_a_full_disk_is_known_before(tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    output = tmp_path / "out" / "merged"

    made = save_merged(request(base, adapter), output, dry_run=True)

    assert (made.files, made.tensors, made.merged) == (("model.safetensors",), 2, 1)
    assert not output.parent.exists()
    write_safetensors(base / "model.safetensors", {"huge": (1 << 21, 1 << 20)})
    with pytest.raises(SpaceError, match="the merged model needs 8796"):
        save_merged(request(base), output)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("is_undone", [True, False])
def test_a_quantization_that_was_undone_is_not_in_the_config(tmp_path, is_undone):
    base = write_base(tmp_path / "base")
    edit_json(base / "config.json", quantization_config={"quant_method": "some"})
    plan = plan_merge(open_checkpoint(base))
    if is_undone:
        del plan.checkpoint.config["quantization_config"]

    said = json.loads(settled(base / "config.json", plan))

    assert ("quantization_config" in said) is not is_undone
    assert said["model_type"] == "llama"


@pytest.mark.trained
@pytest.mark.parametrize("name", ["base", "lora", "base/merged"])
def test_what_is_read_is_never_overwritten(tmp_path, name):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    (adapter / "config.json").write_text("{}")
    before = files(base) | files(adapter)

    with pytest.raises(OutputError, match="from which it is made"):
        save_merged(request(base, adapter, force=True), tmp_path / name)

    assert files(base) | files(adapter) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-q", "Q8_0"], "-q is for GGUF"),
        (["--max-shard-size", "lots"], "'lots' is not a size such as 5GB"),
        (["--max-shard-size", "0"], "'0' is not a size"),
        (["-o", "x/model.gguf"], "makes a folder: `-o x/model`"),
    ],
)
@pytest.mark.trained
def test_options_that_make_no_sense_are_named(tmp_path, capsys, arguments, message):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")

    code = run(["export", str(adapter), "--base", str(base), "--to", "safetensors", *arguments])

    assert code == 2
    assert message in capsys.readouterr().err


# What transformers makes of the result.


def saved(base: Path, config: Any, folder: Path, *, auto: str, grow: int = 0) -> tuple[Path, float]:
    """The merged folder, and how far a logit of it is from the unmerged forward."""
    import transformers
    from peft import PeftModel, get_peft_model

    def load(path: Path) -> Any:
        model = getattr(transformers, auto).from_pretrained(path, dtype="auto").eval()
        if grow and path == base:
            model.resize_token_embeddings(grow, mean_resizing=False)
        return model

    model = get_peft_model(load(base), config)
    shake(model)
    model.save_pretrained(folder / "adapter")
    unmerged = PeftModel.from_pretrained(load(base), folder / "adapter").eval()
    expected = logits(unmerged)
    output = folder / "merged"
    save_merged(request(base, folder / "adapter"), output, max_shard=100_000)
    made, info = getattr(transformers, auto).from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert difference(expected, logits(load(base))) > 0.01
    return output, difference(logits(made.eval()), expected)


CASES: dict[str, dict[str, Any]] = {
    "plain": ALL,
    "dora": ALL | {"use_dora": True},
    "tied_head": {"target_modules": ["q_proj", "lm_head"]},
    "grown": ALL | {"modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_it_and_it_answers_as_the_unmerged_model(tmp_path, case):
    from peft import LoraConfig

    tied = case == "tied_head"
    base = make_base(tmp_path / "base", dtype="float32", tie_word_embeddings=tied, **SIZE)
    config = LoraConfig(task_type="CAUSAL_LM", **CASES[case])

    output, error = saved(
        base,
        config,
        tmp_path,
        auto="AutoModelForCausalLM",
        grow=330 if case == "grown" else 0,
    )

    assert error < FLOAT32
    settings = json.loads((output / "config.json").read_text())
    assert settings["vocab_size"] == (330 if case == "grown" else 320)
    assert settings["tie_word_embeddings"] is False
    assert not any(path.is_symlink() or path.name.startswith(".") for path in output.iterdir())


@pytest.mark.parametrize("name", ["mixtral", "t5", "opt", "gpt2", "gemma3_vlm"])
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_other_architectures_too_also_those_llamacpp_lacks(tmp_path, name):
    from peft import LoraConfig

    made = ARCHITECTURES[name]
    base = make_architecture(name, tmp_path / "base", dtype="float32")
    config = LoraConfig(task_type=made.task, target_modules=made.linear)

    output, error = saved(base, config, tmp_path, auto=made.auto)

    # an untied T5, whose head is not scaled, has logits of some 40
    assert error < FLOAT32 * (3 if name == "t5" else 1)
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_tensors(output)) == set(load_tensors(base))


@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_a_sharded_base_may_become_one_file_and_one_file_shards(tmp_path):
    base = make_base(tmp_path / "base", **SIZE)
    adapter = make_adapter(tmp_path / "lora", base)
    sharded, whole = tmp_path / "sharded", tmp_path / "whole"

    save_merged(request(base, adapter), sharded, max_shard=50_000)
    save_merged(request(sharded), whole)

    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert not (whole / "model.safetensors.index.json").exists()
    assert [path.name for path in whole.glob("*.safetensors")] == ["model.safetensors"]
    one, many = load_tensors(whole), load_tensors(sharded)
    assert one.keys() == many.keys()
    assert all((one[name] == many[name]).all() for name in one)


@pytest.mark.parametrize("settings", [ALL, ALL | {"use_dora": True}])
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_merge_dtype_base_writes_pefts_very_file(tmp_path, settings):
    from peft import LoraConfig

    base = make_base(tmp_path / "base", **SIZE)
    train_and_merge(base, LoraConfig(task_type="CAUSAL_LM", **settings), tmp_path, dtype="base")

    save_merged(request(base, tmp_path / "adapter", merge_dtype="base"), tmp_path / "out")

    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("out", "peft"))
    assert sha256_file(ours) == sha256_file(theirs)


@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_the_exact_sum_is_rounded_once(tmp_path):
    base = make_base(tmp_path / "base", **SIZE)
    adapter = make_adapter(tmp_path / "lora", base)

    save_merged(request(base, adapter), tmp_path / "out")

    import torch

    from exporter.inputs.adapter import open_adapter
    from exporter.merge.operations import WeightedAdapter

    exact = MergedTensors(
        plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])
    )
    written = load_tensors(tmp_path / "out")
    for name in exact.names:
        assert torch.equal(written[name], exact.read(name).to(torch.bfloat16)), name


@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_a_sum_too_large_for_float16_is_refused(tmp_path):
    base = make_base(tmp_path / "base", dtype="float16", **SIZE)
    adapter = make_adapter(tmp_path / "lora", base)

    with pytest.raises(AdapterError, match="NaN or infinite"):
        save_merged(
            replace(request(base, adapter), adapters=((adapter, 1e6),)), tmp_path / "out" / "merged"
        )

    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_the_folder_has_the_tokenizer_and_a_card_but_nothing_of_the_bases_own(tmp_path):
    base = make_base(tmp_path / "base", **SIZE)
    adapter = make_adapter(tmp_path / "lora", base)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    (base / "README.md").write_text("---\nlicense: gemma\nlanguage: en\n---\n# The base itself\n")
    (base / "LICENSE").write_text("terms")
    for name in ("pytorch_model.bin", "adapter_config.json", ".gitattributes"):
        (base / name).write_text("{}")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")

    save_merged(request(base, adapter), tmp_path / "out")

    from huggingface_hub import ModelCard
    from transformers import AutoTokenizer

    templates = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}

    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.base_model) == ("gemma", "org/base")
    assert "The base itself" not in card.content
    assert "decant.adapter.sha256" in card.content
    assert str(tmp_path) not in card.content
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert names(tmp_path / "out") == [
        "LICENSE",
        "README.md",
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


@pytest.mark.trained
def test_a_file_of_many_types_is_laid_out_as_safetensors_does(tmp_path):
    import torch
    from safetensors.torch import save_file

    base = write_base(tmp_path / "base")
    tensors = {
        "a": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.tensor(7),
        "é": torch.ones((2, 2)),
        "z": torch.arange(5, dtype=torch.uint8),
        "none": torch.ones((0, 4)),
    }
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    save_merged(request(base), tmp_path / "out")

    assert files(tmp_path / "out")["model.safetensors"] == sha256_file(base / "model.safetensors")


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_the_folder_exports_again_to_the_same_gguf(tmp_path, toolchain, tiny_base, tiny_adapter):
    """In float32 nothing is rounded on the way; with base sums both ways round alike."""
    exact = copy(tiny_base, tmp_path / "exact")
    from safetensors.torch import save_file

    tensors = {name: values.float() for name, values in load_tensors(exact).items()}
    save_file(tensors, exact / "model.safetensors", metadata={"format": "pt"})
    for base, dtype, quant in ((exact, "float32", "F16"), (tiny_base, "base", "BF16")):
        direct, again = (tmp_path / f"{dtype}-{n}.gguf" for n in ("direct", "again"))
        folder = tmp_path / f"merged-{dtype}"
        wanted = request(base, tiny_adapter, merge_dtype=dtype)
        save_merged(wanted, folder)
        export(replace(wanted, quants=(quant,), outputs=(direct,)), toolchain)
        export(replace(request(folder), quants=(quant,), outputs=(again,)), toolchain)

        assert read_gguf(direct)[1] == read_gguf(again)[1]
        shutil.rmtree(folder)
