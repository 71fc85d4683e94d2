"""Merged models against the unmerged forward, which is right by definition, and PEFT's merge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import AdapterError
from exporter.merge.apply import is_finite
from tests.support.roads import train_and_merge
from tests.support.tiny import make_base

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

ALL = {"target_modules": "all-linear"}
Q = {"target_modules": ["q_proj"]}
FLOAT32 = 1e-5  # how far two orders of the same float32 sums put a logit of about 1 to 10

# name: (which base, LoraConfig's settings)
RIGHT_IN_PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("untied", ALL),
    "rslora": ("untied", ALL | {"use_rslora": True}),
    "patterns": (
        "untied",
        ALL | {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"self_attn.k_proj": 3}},
    ),
    "dora": ("untied", ALL | {"use_dora": True}),
    "modules_to_save": ("untied", ALL | {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "embedding": ("untied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding_dora": ("untied", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head": ("untied", {"target_modules": ["lm_head"]}),
    "lora_bias": ("biased", Q | {"lora_bias": True}),
    "bias_all": ("biased", Q | {"bias": "all"}),
    "bias_lora_only": ("biased", Q | {"bias": "lora_only"}),
    "tokens": ("untied", Q | {"trainable_token_indices": [3, 5]}),
    "one_layer": ("untied", Q | {"layers_to_transform": [1]}),
    "pissa": ("untied", Q | {"init_lora_weights": "pissa"}),
    "olora": ("untied", Q | {"init_lora_weights": "olora"}),
    "mica": ("untied", Q | {"init_lora_weights": "mica"}),
    "pissa_head": ("untied", {"target_modules": ["lm_head"], "init_lora_weights": "pissa"}),
    "olora_head": ("untied", {"target_modules": ["lm_head"], "init_lora_weights": "olora"}),
    "kasa": ("untied", Q | {"kasa_config": {}}),
    "bdlora": ("untied", {"target_modules": ["q_proj", "o_proj"], "use_bdlora": {}}),
    "tied_modules_to_save": ("tied", Q | {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied_embedding_saved": ("tied", Q | {"modules_to_save": ["embed_tokens"]}),
    "tied_head_saved": ("tied", Q | {"modules_to_save": ["lm_head"]}),
    "tied_saved_as_one": (
        "tied",
        Q | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied_tokens": ("tied", Q | {"trainable_token_indices": {"embed_tokens": [3, 5]}}),
}
WRONG_IN_PEFT: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "as_one": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "pissa_head": {"target_modules": ["lm_head"], "init_lora_weights": "pissa"},
    "olora_both": {"target_modules": ["embed_tokens", "lm_head"], "init_lora_weights": "olora"},
    "kasa_head": {"target_modules": ["lm_head"], "kasa_config": {}},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    size = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    return {
        "untied": make_base(folder / "untied", **size),
        "tied": make_base(folder / "tied", tie_word_embeddings=True, **size),
        "biased": make_base(folder / "biased", attention_bias=True, **size),
    }


def lora(settings: dict[str, Any]) -> Any:
    import peft

    settings = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | settings
    if "kasa_config" in settings:
        settings["kasa_config"] = peft.KasaConfig()
    if "use_bdlora" in settings:
        settings["use_bdlora"] = peft.BdLoraConfig(
            target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2
        )
    return peft.LoraConfig(**settings)


@pytest.mark.parametrize("case", RIGHT_IN_PEFT)
def test_a_merged_model_answers_as_the_unmerged_one(bases, tmp_path, case):
    base, settings = RIGHT_IN_PEFT[case]

    found = train_and_merge(bases[base], lora(settings), tmp_path)

    assert found.error < FLOAT32
    assert found.error < found.effect / 1000


@pytest.mark.parametrize("case", RIGHT_IN_PEFT)
def test_merge_dtype_base_gives_pefts_tensors_byte_for_byte(bases, tmp_path, case):
    base, settings = RIGHT_IN_PEFT[case]

    found = train_and_merge(bases[base], lora(settings), tmp_path, dtype="base")

    assert found.differing == []


@pytest.mark.parametrize("case", WRONG_IN_PEFT)
def test_tied_embeddings_are_right_where_peft_is_wrong(bases, tmp_path, case):
    found = train_and_merge(bases["tied"], lora(WRONG_IN_PEFT[case]), tmp_path)

    assert found.error < FLOAT32
    assert found.peft_error > 0.1, "PEFT has mended this: move the case up"


def test_a_tie_is_kept_where_both_ends_changed_alike(bases, tmp_path):
    alike = train_and_merge(bases["tied"], lora(WRONG_IN_PEFT["as_one"]), tmp_path / "alike")
    apart = train_and_merge(bases["tied"], lora(WRONG_IN_PEFT["head"]), tmp_path / "apart")

    assert "lm_head.weight" not in alike.tensors
    assert "tie_word_embeddings" not in alike.plan.config
    assert "lm_head.weight" in apart.tensors
    assert apart.plan.config["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("untied", ALL | {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("tied", Q),
        ("tied", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("untied", Q | {"trainable_token_indices": [5, 320, 321]}),
        ("tied", Q | {"trainable_token_indices": [5, 320, 321]}),
        (
            "tied",
            Q | {"trainable_token_indices": {"embed_tokens": [320, 321], "lm_head": [320]}},
        ),
    ],
)
def test_a_grown_vocabulary_comes_from_the_adapter(bases, tmp_path, base, settings):
    def grow(model):
        return model.resize_token_embeddings(330, mean_resizing=False)

    found = train_and_merge(bases[base], lora(settings), tmp_path, prepare=grow)

    assert found.error < FLOAT32
    assert found.plan.config["vocab_size"] == 330


def grown_to(rows):
    return lambda model: model.resize_token_embeddings(rows, mean_resizing=False)


def without_saved_base(adapter: Path) -> None:
    """As save_embedding_layers=False leaves the file: nothing of the base's own in it."""
    from safetensors.torch import load_file, save_file

    weights = adapter / "adapter_model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if ".base_layer." not in name}
    kept = {name: t for name, t in kept.items() if not name.endswith("lm_head.weight")}
    save_file(kept, weights)


@pytest.mark.parametrize("how", ["pissa", "olora", "kasa"])
def test_what_an_init_leaves_is_in_both_ends_though_it_was_not_saved(bases, tmp_path, how):
    more = {"kasa_config": {}} if how == "kasa" else {"init_lora_weights": how}
    settings = {"target_modules": ["q_proj", "lm_head"]} | more

    found = train_and_merge(bases["tied"], lora(settings), tmp_path, rename=without_saved_base)

    assert found.error < FLOAT32
    assert found.error < found.effect / 1000


def test_new_tokens_of_tied_ends_need_nothing_but_their_trained_rows(bases, tmp_path):
    settings = Q | {"trainable_token_indices": [5, 320, 321]}

    found = train_and_merge(
        bases["tied"], lora(settings), tmp_path, prepare=grown_to(322), rename=without_saved_base
    )

    assert found.error < FLOAT32
    assert found.plan.config == {"vocab_size": 322}
    assert found.plan.notes == ()


def test_new_tokens_that_were_never_trained_get_the_mean_and_a_word(bases, tmp_path):
    settings = {
        "target_modules": ["q_proj", "lm_head"],
        "trainable_token_indices": {"embed_tokens": [320, 321]},
    }

    found = train_and_merge(bases["untied"], lora(settings), tmp_path, prepare=grown_to(330))

    assert found.error < FLOAT32
    assert "no values of 8 new tokens of `model.embed_tokens.weight`" in found.plan.notes[0]
    embedding = found.tensors["model.embed_tokens.weight"]
    assert embedding.shape[0] == 330
    assert abs(embedding[329] - embedding[:320].mean(dim=0)).max() < FLOAT32


@pytest.mark.parametrize("rows", [322, 330])
def test_the_rows_of_a_frozen_head_that_no_file_holds_are_refused(bases, tmp_path, rows):
    settings = Q | {"trainable_token_indices": [320, 321]}

    with pytest.raises(AdapterError, match=r"322 tokens in `lm_head.weight`, and the base has 320"):
        train_and_merge(
            bases["untied"], lora(settings), tmp_path, prepare=grown_to(rows),
            rename=without_saved_base,
        )  # fmt: skip


def test_two_adapters_that_saved_the_same_head_of_the_base_go_together(bases, tmp_path):
    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.open_checkpoint import open_checkpoint
    from exporter.merge.merge_plan import plan_merge
    from exporter.merge.operations import LoraSum, WeightedAdapter

    head = {"target_modules": ["lm_head"]}
    for name in ("a", "b"):
        train_and_merge(bases["untied"], lora(head), tmp_path / name)
    adapters = [WeightedAdapter(open_adapter(tmp_path / name / "adapter")) for name in ("a", "b")]

    steps = plan_merge(open_checkpoint(bases["untied"]), adapters).changes["lm_head.weight"].steps

    assert sum(isinstance(step, LoraSum) for step in steps) == 2


def test_two_adapters_in_turn_are_both_there(bases, tmp_path):
    import torch

    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.open_checkpoint import open_checkpoint
    from exporter.merge.apply import MergedTensors
    from exporter.merge.merge_plan import plan_merge
    from exporter.merge.operations import WeightedAdapter

    for name, settings in (("a", ALL), ("b", Q | {"use_dora": True})):
        train_and_merge(bases["untied"], lora(settings), tmp_path / name)
    adapters = [
        WeightedAdapter(open_adapter(tmp_path / name / "adapter"), scale)
        for name, scale in (("a", 0.5), ("b", 1.0))
    ]
    plan = plan_merge(open_checkpoint(bases["untied"]), adapters)
    ours = MergedTensors(plan)

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bases["untied"], dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path / "a" / "adapter")
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    model = PeftModel.from_pretrained(model.merge_and_unload(), tmp_path / "b" / "adapter")
    expected = model.merge_and_unload().state_dict()
    for name in ours.names:
        torch.testing.assert_close(ours.read(name), expected[name].to(ours.dtype(name)))


@pytest.mark.parametrize(
    "how", ["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
)
def test_combined_adapters_are_pefts_weighted_adapter(bases, tmp_path, how):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.open_checkpoint import open_checkpoint
    from exporter.merge.apply import MergedTensors
    from exporter.merge.merge_plan import plan_merge
    from exporter.merge.operations import WeightedAdapter
    from exporter.merge.peft_layers import DENSITY, SEED

    one = {"target_modules": ["q_proj"], "layers_to_transform": [0]}
    for name, alpha in (("a", 16), ("b", 4)):
        train_and_merge(bases["untied"], lora(one | {"lora_alpha": alpha}), tmp_path / name)
    folders = [tmp_path / name / "adapter" for name in "ab"]
    weighted = [
        WeightedAdapter(open_adapter(folder), scale)
        for folder, scale in zip(folders, (0.7, 0.3), strict=True)
    ]
    plan = plan_merge(open_checkpoint(bases["untied"]), weighted, combine=how)

    model = AutoModelForCausalLM.from_pretrained(bases["untied"], dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    torch.manual_seed(SEED)
    options = {} if how in ("linear", "cat", "svd") else {"density": DENSITY}
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "c", combination_type=how, **options)
    model.set_adapter("c")
    expected = model.merge_and_unload().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert list(plan.changes) == [name]
    torch.testing.assert_close(MergedTensors(plan).read(name), expected[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value_anywhere_is_seen(dtype, bad):
    """At each place of a vector register, and in the rest that fills none."""
    import torch

    values = torch.randn(3, 45).to(getattr(torch, dtype))
    assert is_finite(values)
    assert is_finite(values[:0])
    assert is_finite(torch.tensor(1e38 if dtype != "float16" else 6e4).to(values.dtype).repeat(99))
    for place in range(values.numel()):
        broken = values.clone()
        broken.view(-1)[place] = bad
        assert not is_finite(broken)
        assert not is_finite(broken.t())
