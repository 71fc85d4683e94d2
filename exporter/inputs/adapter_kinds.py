"""The kinds of adapters that can be merged, and the reasons why others cannot."""

from __future__ import annotations

from pathlib import Path

from exporter.core.errors import UnsupportedError

MERGED_BY_PEFT = {
    "ADALORA": "lora_", "BOFT": "boft_", "C3A": "c3a_", "DEFT": "deft_", "DELORA": "delora_",
    "FOURIERFT": "fourierft_", "GLORA": "glora_", "GRALORA": "gralora_", "HIRA": "hira_",
    "HRA": "hra_", "IA3": "ia3_", "LOHA": "hada_", "LOKR": "lokr_", "MISS": "miss_", "OFT": "oft_",
    "PEANUT": "peanut_", "PVERA": "pvera_", "RANDLORA": "randlora_", "ROAD": "road_",
    "SUPERTUNING": "supertuning_", "TINYLORA": "tinylora_", "VBLORA": "vblora_", "VERA": "vera_",
    "WAVEFT": "waveft_",
}  # fmt: skip
"""Tuners whose layers merge one module at a time, and how their tensors' names begin."""
BY_REPLACEMENT = ("TRAINABLE_TOKENS", "LN_TUNING")
"""Tuners that only store new values of the base's tensors."""

PROMPTS = "it adds to the prompt or to the attention's keys, not to the weights"
REFUSED = {
    "PROMPT_TUNING": PROMPTS, "MULTITASK_PROMPT_TUNING": PROMPTS, "P_TUNING": PROMPTS,
    "PREFIX_TUNING": PROMPTS, "CPT": PROMPTS, "CARTRIDGE": PROMPTS,
    "ADAPTION_PROMPT": PROMPTS,
    "XLORA": "it mixes several adapters differently for every token",
    "POLY": "it mixes several adapters by the task",
    "LILY": "it shares its matrices between layers in a way that no weight can hold",
    "SHADOW": "it runs a second, smaller model beside the base",
    "BEFT": "peft merges it only into layers that have a bias",
    "UNILORA": "peft cannot rebuild its shared vector one module at a time",
    "OSF": "it starts from a decomposition of the base that is not saved with it",
    "PSOFT": "it starts from a decomposition of the base that is not saved with it",
    "FROD": "it starts from a decomposition of all layers together that is not saved with it",
    "SHIRA": "its sparse positions can only be rebuilt with the whole model in memory",
    "ADAMSS": "it clusters the base's weights with scikit-learn before it trains",
}  # fmt: skip

# LoRA settings whose merge needs PEFT's layer
VARIANTS = (
    "use_dora", "lora_bias", "use_bdlora", "velora_config", "monteclora_config", "kasa_config",
)  # fmt: skip
UNMERGEABLE = {
    "alora_invocation_tokens": "it acts only after certain tokens, which a weight cannot express;"
    " `decant export --to lora` keeps that",
    "arrow_config": "it routes between adapters for every token",
    "use_qalora": "it belongs to a GPTQ base",
    "layer_replication": "it grows the base by repeating layers",
    "megatron_config": "its layers are split over several processes",
}
"""LoRA settings that cannot be merged, with the reason."""

PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
REPLAYED_INITS = ("pissa", "olora", "mica")
"""Initializations reproducible from the base (PiSSA, OLoRA, MiCA)."""
CONVERT = "convert it first: save_pretrained(…, path_initial_model_for_weight_conversion=…)"
KEEP_BASE = (
    "where it was trained, save the base as LoftQ changed it (model.unload().save_pretrained(DIR)),"
    ' set "init_lora_weights": true in adapter_config.json, and pass --base DIR'
)
LOST_INITS = {
    "corda": "it changes the base by data that is not saved with it",
    "loftq": "it changes the base in a way that peft repeats only on a GPU",
    "lora_ga": "it changes the base by gradients that are not saved with it",
}


def refuse_unmergeable(config: dict[str, object], folder: Path) -> None:
    """Raise UnsupportedError, with the reason, for an adapter that cannot be merged."""
    kind = config.get("peft_type")
    known = ("LORA", *BY_REPLACEMENT, *MERGED_BY_PEFT)
    if kind not in known:
        reason = REFUSED.get(str(kind), "decant does not know this kind")
        raise UnsupportedError(
            f"`{folder}` is a {kind} adapter, which cannot be merged: {reason}",
            hint=f"adapters that can: {', '.join(known)}",
        )
    if kind != "LORA":
        return
    for setting, reason in UNMERGEABLE.items():
        if is_set(config.get(setting)):
            raise UnsupportedError(
                f"`{folder}` uses {setting}={config[setting]!r} and cannot be merged: {reason}",
                hint="use it with peft itself, on the unmerged base",
            )
    refuse_lost_init(config.get("init_lora_weights"), folder)


IN_NO_ADAPTER_FILE = {
    "use_dora": "DoRA rescales every row of the merged weight",
    "kasa_config": "KaSA cuts the base's weights down",
    "lora_bias": "it changes biases, too",
    "use_bdlora": "BD-LoRA keeps only blocks of A and B",
    "velora_config": "VeLoRA is not known to be a plain pair of A and B",
    "monteclora_config": "MonteCLoRA samples its matrices",
    "arrow_config": UNMERGEABLE["arrow_config"],
    "use_qalora": UNMERGEABLE["use_qalora"],
    "layer_replication": UNMERGEABLE["layer_replication"],
    "megatron_config": UNMERGEABLE["megatron_config"],
}
"""LoRA settings beyond a GGUF adapter, which holds A, B and a scale."""
KEEPS_BASE = "mica"
"""The reproducible initialization that leaves the base unchanged."""


def refuse_for_adapter_file(config: dict[str, object], folder: Path) -> None:
    """Raise UnsupportedError, with the reason, for an adapter that is more than A and B."""
    kind, init = config.get("peft_type"), config.get("init_lora_weights")
    merge = "leave out `--to lora`: the merged model can hold it"
    if kind != "LORA":
        reason = REFUSED.get(str(kind), "a GGUF adapter holds nothing but LoRA's A and B")
        raise UnsupportedError(
            f"`{folder}` is a {kind} adapter: {reason}",
            hint=merge if kind in (*BY_REPLACEMENT, *MERGED_BY_PEFT) else "use it with peft itself",
        )
    for setting, reason in IN_NO_ADAPTER_FILE.items():
        if is_set(config.get(setting)):
            raise UnsupportedError(
                f"`{folder}` uses {setting}={config[setting]!r}, which no GGUF adapter can hold:"
                f" {reason}",
                hint="use it with peft itself" if setting in UNMERGEABLE else merge,
            )
    refuse_lost_init(init, folder)
    if init in REPLAYED_INITS and init != KEEPS_BASE:
        raise UnsupportedError(
            f"`{folder}` was started with init_lora_weights={init!r}: it begins by changing the"
            " base, which a GGUF adapter leaves as it is",
            hint=f"{merge}; or {CONVERT}",
        )


def refuse_lost_init(init: object, folder: Path) -> None:
    """Raise UnsupportedError if training began with a change of the base that cannot be
    repeated.
    """
    if init in PLAIN_INITS or init in REPLAYED_INITS:
        return
    text = str(init)
    reason = (
        "its fast decomposition is random and gives another base every time"
        if text.startswith("pissa_niter")
        else LOST_INITS.get(text, "decant does not know this way to start")
    )
    raise UnsupportedError(
        f"`{folder}` was started with init_lora_weights={init!r}: {reason}",
        hint=KEEP_BASE if text == "loftq" else CONVERT,
    )


def needs_peft_layer(config: dict[str, object]) -> bool:
    """Whether a LoRA is more than a sum of scaled products."""
    return config.get("init_lora_weights") in REPLAYED_INITS or any(
        is_set(config.get(setting)) for setting in VARIANTS
    )


def changes_base(config: dict[str, object]) -> bool:
    """Whether training changed the base's weight first, by cutting a part out of it."""
    init = config.get("init_lora_weights")
    return (init in REPLAYED_INITS and init != KEEPS_BASE) or is_set(config.get("kasa_config"))


def is_set(value: object) -> bool:
    return value is not None and value is not False and value not in ({}, [])
