"""What llama.cpp's converter reads of a config, against every config that transformers writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.convert.to_gguf import delegate, find_class
from exporter.convert.upstream_fixes import patch_settings
from exporter.core.errors import UnsupportedError
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain

pytestmark = [pytest.mark.llamacpp, pytest.mark.filterwarnings("ignore")]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 30,
        }
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
}
"""Of kinds whose config without any is of no model."""
IN_ROPE_PARAMETERS = (
    "global_rope_theta", "local_rope_theta", "original_max_position_embeddings",
    "partial_rotary_factor", "rope_theta",
)  # fmt: skip
NO_EXPERTS = "num_local_experts|num_experts|n_routed_experts"
SCORES = "score_function|scoring_func|score_func"
SOFTMAX_IN_THE_GRAPH = (
    "ernie4_5_moe", "gemma4", "gemma4_assistant", "gemma4_text", "gpt_oss", "granitemoe",
    "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "mellum",
    "mixtral", "olmoe", "qwen2_moe", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next",
    "qwen3_omni_moe", "qwen3_vl_moe", "qwen4_exp", "qwen4_exp_text",
)  # fmt: skip
"""Kinds whose experts src/models/*.cpp of llama.cpp chooses as transformers does, by no setting."""
ANYWHERE = {
    "classifier_pooling": "only classifiers have it",
    "draft_vocab_size": "only draft models have it",
    "head_dim": "hidden_size / num_attention_heads, which the converter takes as well",
    "is_causal": "only encoders made of decoders have it",
    "layer_norm_eps|": "the norms are by RMS",
    "llm_config": "another name of text_config",
    "n_group": "experts without groups",
    NO_EXPERTS: "a model without experts",
    "num_experts_per_tok|": "a model without experts, or one that calls it otherwise (moe_topk …)",
    "num_key_value_heads|": "as many as heads",
    "num_nextn_predict_layers": "transformers has no class for such layers, and saves none",
    "rms_norm_eps|": "the norms are not by RMS",
    "rope_parameters": "no rotary positions",
    "rope_scaling": "another name of rope_parameters, which is asked for first",
    "shared_expert_intermediate_size": "no shared experts",
    "text_config": "only of models that see or hear",
    "thinker_config": "another place of text_config",
    "topk_group": "experts without groups",
    "transformer_layer_config": "only draft models have it",
    "vision_config": "only of models that see",
}
"""Names that a config may lack: the converter goes on as transformers does."""
GEMMA_4 = ("attn_logit_softcapping", "global_head_dim", "hidden_size_per_layer_input",
           "num_global_key_value_heads", "sliding_window_pattern")  # fmt: skip
GRANITE = ("deepstack_layer_map", "spatial_target_layers", "shared_intermediate_size")
GRANITE_SCALES = ("attention_multiplier", "embedding_multiplier", "logits_scaling",
                  "residual_multiplier")  # fmt: skip
OF_KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "bamba": ((*GRANITE, *GRANITE_SCALES, "layer_types"), "Granite's own; attn_layer_indices"),
    "bloom": (("n_embed", "num_attention_heads"), "other names of hidden_size and n_head"),
    "deepseek_v4": (("prefix_dense",), "no dense layers"),
    "exaone_moe": (("first_last_k_dense_replace",), "another name of first_k_dense_replace"),
    "gemma3": (("sliding_window_pattern",), "layer_types says it (windows.py)"),
    "gemma3_text": (("sliding_window_pattern",), "layer_types says it (windows.py)"),
    "gemma3n": (GEMMA_4, "not of Gemma 3n; layer_types says which layers have a window"),
    "gemma3n_text": (GEMMA_4, "not of Gemma 3n; layer_types says which layers have a window"),
    "gemma4": (GEMMA_4, "per_layer_config and layer_types say it"),
    "gemma4_assistant": (GEMMA_4, "per_layer_config and layer_types say it"),
    "gemma4_text": (GEMMA_4, "per_layer_config and layer_types say it"),
    "gemma4_unified": (GEMMA_4, "per_layer_config and layer_types say it"),
    "gemma4_unified_assistant": (GEMMA_4, "per_layer_config and layer_types say it"),
    "glm": (("ffn_hidden_size", "multi_query_group_num", "n_embed", "n_head"),
            "other names of intermediate_size, num_key_value_heads, hidden_size and heads"),
    "glm5_next": (("mhc",), "hc_mult and the like say it"),
    "granite": (GRANITE, "only of Granite that sees"),
    "granite_swa": ((*GRANITE, "no_rope_layers"), "all layers have positions"),
    "granitemoe": (GRANITE, "no shared experts"),
    "granitemoe_swa": ((*GRANITE, "no_rope_layers"), "all layers have positions"),
    "granitemoehybrid": ((*GRANITE, "attn_rotary_emb"), "all of a head turns"),
    "granitemoeshared": (GRANITE, "only of Granite that sees"),
    "kimi_linear": (("n_embd_head_k_mla", "n_embd_head_v_mla"), "qk_nope_head_dim, v_head_dim"),
    "laguna": (("gating_types",), "gating says it"),
    "mamba2": (("mamba_d_ssm",), "expand says it"),
    "mellum": (("use_sliding_window",), "layer_types says it"),
    "minicpmv4_6": (("full_attention_interval", "moe_intermediate_size"), "layer_types says it"),
    "modernbert": (("global_attn_every_n_layers",), "layer_types says it (windows.py)"),
    "nemotron": (("factor",), "no scaling of positions"),
    "nemotron_h": ((*GRANITE, *GRANITE_SCALES, "attention_head_dim", "attn_rotary_emb", "d_head",
                    "hidden_act"), "Granite's own; head_dim and mamba_head_dim say it"),
    "olmo2": (("sliding_window",), "OLMo 2 has none"),
    "shieldgemma2": (("sliding_window_pattern",), "layer_types says it (windows.py)"),
    "solar_open": (("first_k_dense_replace", "prefix_dense"), "no dense layers"),
    "xlm-roberta": (("lora_alpha", "task_instructions"), "only of Jina's"),
    "youtu": (("first_k_dense_replace", "n_routed_experts", "n_shared_experts", "norm_topk_prob",
               "routed_scaling_factor"), "no experts"),
}  # fmt: skip
"""By kind: names, or how groups of names begin, and why it lacks them."""
QWEN_HYBRIDS = (
    "qwen3_5",
    "qwen3_next",
    "qwen4_exp",
)  # full_attention_interval: layer_types says it
REFUSED = {
    "dots3_note": "the published config is flat, and that of transformers has a text_config",
    "dots3_note_text": "swa_qk_nope_head_dim and the like are in per_layer_config",
    "granite_speech": "the converter names a class for its text that it does not have",
    "granite_speech_plus": "the converter names a class for its text that it does not have",
    "nomic_bert": "it looks into tokenizer.json, which is not there",
    "step3p7": "num_attention_groups and the like are in per_layer_config",
}
"""Kinds that the converter stops at, as the error says to the user."""


class Watched(dict[str, Any]):
    """Settings that note what is looked for in them and is not there."""

    def __init__(self, values: dict[str, Any], lacking: set[str]) -> None:
        super().__init__(values)
        self.lacking = lacking

    def note(self, name: str) -> None:
        if not super().__contains__(name):
            self.lacking.add(name)

    def __getitem__(self, name: str) -> Any:
        self.note(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.note(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.note(str(name))
        return super().__contains__(name)


class AlwaysWatched:
    """A model's `hparams`, which its class replaces with plain dictionaries."""

    def __init__(self) -> None:
        self.lacking: set[str] = set()

    def __get__(self, model: Any, kind: type) -> Any:
        return self if model is None else vars(model)["settings"]

    def __set__(self, model: Any, values: dict[str, Any]) -> None:
        vars(model)["settings"] = Watched(values, self.lacking)


@pytest.fixture
def lacking(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """What the converter's classes look for and do not find; groups of names joined by |."""
    with imported(toolchain):
        from conversion import ModelBase

        watched = AlwaysWatched()

        def find(model: Any, keys: Any, optional: bool = False) -> Any:
            names = list(keys)
            found = next((name for name in names if dict.__contains__(model.hparams, name)), None)
            if found is not None:
                return dict.__getitem__(model.hparams, found)
            watched.lacking.add("|".join(names))
            if optional:
                return None
            raise KeyError(f"could not find any of: {names}")

        monkeypatch.setattr(ModelBase, "hparams", watched, raising=False)
        monkeypatch.setattr(ModelBase, "find_hparam", find)
        monkeypatch.setattr(ModelBase, "index_tensors", lambda *_, **__: {})
        logging.disable(logging.CRITICAL)
        yield watched.lacking
        logging.disable(logging.NOTSET)


def known_to_both() -> Iterator[tuple[str, str]]:
    """Kinds of transformers, with the names of their classes that llama.cpp's converter knows."""
    from conversion import TEXT_MODEL_MAP
    from transformers.models.auto import configuration_auto, modeling_auto

    tables = [
        table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")
    ]
    for kind in configuration_auto.CONFIG_MAPPING_NAMES:
        classes: set[str] = set()
        for table in tables:
            named = table.get(kind) or ()
            classes |= {named} if isinstance(named, str) else set(named)
        for architecture in sorted(classes & TEXT_MODEL_MAP.keys()):
            yield kind, architecture


def read_by_the_converter(kind: str, architecture: str, folder: Path) -> str:
    """Have the converter read a default config of one kind; what stopped it, or nothing."""
    import gguf
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**ARGUMENTS.get(kind, {}))
    config.architectures = [architecture]
    config.to_json_file(folder / "config.json", use_diff=False)  # some classes open it again
    hparams = config.to_dict()
    if "thinker_config" in hparams:  # as the converter's load_hparams does
        hparams["text_config"] = hparams["thinker_config"]["text_config"]
    try:
        kept, _ = find_class(patch_settings(hparams, folder), "text", ())
        ftype = gguf.LlamaFileType.ALL_F32
        model = kept(folder, ftype, folder / "x.gguf", model_name="x", hparams=hparams)
        delegate(model).set_gguf_parameters()
    except (ValueError, KeyError, TypeError, AssertionError, OSError, UnsupportedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def is_explained(kind: str, name: str, lacking: set[str]) -> bool:
    """Whether a table above says why the config lacks a name, or all names of a group."""
    if name.startswith(IN_ROPE_PARAMETERS) or name in ANYWHERE:
        return True
    if name.startswith(SCORES):
        no_experts = any(other.startswith(NO_EXPERTS) for other in lacking)
        return no_experts or kind in (*SOFTMAX_IN_THE_GRAPH, "laguna", "step3p7")
    of_kind, _ = OF_KINDS.get(kind, ((), ""))
    hybrid = kind.startswith(QWEN_HYBRIDS) and name != "layer_types"
    beginnings = (*of_kind, *(begin for begin in ANYWHERE if begin.endswith("|")), NO_EXPERTS)
    return hybrid or name.startswith(tuple(beginnings))


@pytest.mark.slow
def test_what_the_converter_reads_is_given_mended_or_explained(lacking, tmp_path):
    unexplained, stopped = set(), {}
    for kind, architecture in known_to_both():
        lacking.clear()
        if error := read_by_the_converter(kind, architecture, tmp_path):
            stopped[kind] = error
            continue
        unexplained |= {(kind, name) for name in lacking if not is_explained(kind, name, lacking)}

    assert unexplained == set()
    assert {kind: error for kind, error in stopped.items() if kind not in REFUSED} == {}
    assert REFUSED.keys() == stopped.keys()
