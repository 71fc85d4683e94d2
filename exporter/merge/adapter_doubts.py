"""Warns when an adapter probably does not do what its owner expects."""

from __future__ import annotations

import re
from collections.abc import Iterator

from exporter.core.events import Report, Warn
from exporter.inputs.adapter_kinds import is_set
from exporter.inputs.adapter_spec import AdapterSpec, scaling_of
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.find_adapter import CONFIG
from exporter.merge.target_modules import adds_nothing
from exporter.merge.tied_embeddings import OTHER_TOWERS

OF_LORA_CONFIG = {
    # PEFT 0.3 to 0.21
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping",
    "base_model_name_or_path", "bias", "corda_config", "enable_lora", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "merge_weights", "modules_to_save", "monteclora_config", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "target_parameters", "task_type", "trainable_token_indices", "use_bdlora",
    "use_dora", "use_qalora", "use_rslora", "velora_config",
    # settings that trainers add: ms-swift, torchtune, Unsloth
    "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "model_id_or_path", "virtual_tokens",
    "unsloth_fixed", "unsloth_version",
}  # fmt: skip
"""LoRA settings that decant applies or refuses, or that never change the sum."""
LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def say_doubts(adapter: AdapterSpec, checkpoint: Checkpoint, *, report: Report) -> None:
    """Warn of unknown settings, of an untrained adapter and of untouched layers."""
    if adapter.origin != "peft" or adapter.kind != "LORA":
        return
    for doubt in (*unknown_settings(adapter), *untrained(adapter), *untouched(adapter, checkpoint)):
        report(Warn(doubt))


def unknown_settings(adapter: AdapterSpec) -> Iterator[str]:
    """A warning about active settings that decant does not know."""
    strange = {
        name: value
        for name, value in adapter.config.items()
        if name not in OF_LORA_CONFIG and is_set(value)
    }
    if strange:
        listed = ", ".join(f"{name}={value!r}" for name, value in strange.items())
        version = adapter.config.get("peft_version")
        of = f" (PEFT {version})" if isinstance(version, str) else ""
        yield (
            f"`{adapter.folder / CONFIG}` sets {listed}{of}, which decant does not know: if that"
            " changes what the adapter adds, the result lacks the change"
        )


def untrained(adapter: AdapterSpec) -> Iterator[str]:
    """A warning if all pairs add zeros and the adapter holds nothing else."""
    others = adapter.values or adapter.rows or not adapter.is_plain
    if others or not adapter.pairs:
        return
    if all(adds_nothing(pair) for pair in adapter.pairs):
        yield (
            f"`{adapter.name}` changes nothing: all its matrices B (or A) are zero, as before the"
            " first step of training; was it saved too early, or is it the wrong one?"
        )
    elif not any(scaling_of_one(adapter)):
        yield f"`{adapter.name}` changes nothing: its lora_alpha is 0"


def scaling_of_one(adapter: AdapterSpec) -> Iterator[float]:
    if is_set(adapter.config.get("target_parameters")):
        yield 1.0
        return
    for pair in adapter.pairs:
        yield scaling_of(adapter, pair).value


def untouched(adapter: AdapterSpec, checkpoint: Checkpoint) -> Iterator[str]:
    """A warning about layers that PEFT would have adapted in training on this base."""
    targets = adapter.config.get("target_modules")
    chosen = ("layers_to_transform", "exclude_modules", "target_parameters", "layer_replication")
    if not isinstance(targets, list) or any(is_set(adapter.config.get(key)) for key in chosen):
        return
    if any(LAYER.search(f".{target}.") for target in targets):
        return
    depth = depth_of(checkpoint)
    here = by_leaf(pair.module for pair in adapter.pairs)
    modules = (name.rpartition(".")[0] for name in checkpoint.tensors)
    base = by_leaf(module for module in modules if not OTHER_TOWERS.search(module))
    for pattern, layers in here.items():
        more = sorted(number for number in base.get(pattern, set()) - layers if number < depth)
        if layers and more and min(more) > max(layers):
            yield (
                f"the adapter changes layers {min(layers)} to {max(layers)}, and"
                f" `{checkpoint.folder}` has layers up to {max(more)}: PEFT adapts all of them, so"
                " it was trained on another base, or a part of it is lost"
            )
            return


def depth_of(checkpoint: Checkpoint) -> int:
    """The number of layers in the text model that transformers loads; MTP layers follow them."""
    text = checkpoint.config.get("text_config")
    for config in (text, checkpoint.config):
        depth = config.get("num_hidden_layers") if isinstance(config, dict) else None
        if isinstance(depth, int):
            return depth
    return 0


def by_leaf(modules: Iterator[str]) -> dict[str, set[int]]:
    """Group modules by their name after the layer number -> the layer numbers."""
    found: dict[str, set[int]] = {}
    for module in modules:
        if number := LAYER.search(module):
            found.setdefault(module[number.end() :], set()).add(int(number[0]))
    return found
