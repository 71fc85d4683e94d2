"""Recognizes adapters trained on an NF4 base (QLoRA), and provides that base."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.events import Note, Report, Warn, silent
from exporter.core.paths import is_checkpoint
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.module_names import model_without_weights
from exporter.inputs.quantized import bitsandbytes
from exporter.inputs.quantized.nf4_fake_quant import fake_quantized

BaseRoundtrip = Literal["auto", "none", "nf4"]

# Files that trainers write: PEFT's and axolotl's cards, LLaMA-Factory's settings. A trainer's
# training_args.bin is a pickle of its classes and is never read.
NOTES = ("README.md", "training_args.yaml", "llamaboard_config.yaml", "axolotl_config.yaml")
NOTE_MAX = 1 << 18  # characters; a card's settings come before its results
FOUR_BITS = re.compile(
    r"^[\s\-*]*load_in_4bit:\s*true\s*$|quantization_bit:\s*['\"]?4\b", re.MULTILINE | re.IGNORECASE
)
KIND = re.compile(r"bnb_4bit_quant_type:\s*['\"]?(\w+)", re.IGNORECASE)
NESTED = re.compile(
    r"(?:bnb_4bit_use_double_quant|double_quantization):\s*['\"]?(true|false)", re.IGNORECASE
)
SUFFIX = "-bnb-4bit"


@dataclass(frozen=True, slots=True)
class Trained:
    """The base's quantization during an adapter's training."""

    kind: str
    """The 4-bit type, nf4 or fp4."""
    double_quant: bool
    because: str
    skipped: tuple[str, ...] | None = None
    """Modules kept in 16 bits, if the user chose them."""


def as_trained_on(
    checkpoint: Checkpoint,
    adapters: list[AdapterSpec],
    *,
    mode: BaseRoundtrip = "auto",
    report: Report = silent,
) -> Checkpoint:
    """The base as the adapters saw it in training, if that is known.

    auto applies NF4 if the adapters' folders record it, nf4 applies it always. A base that is
    already quantized, by bitsandbytes or otherwise, stays as it is: training saw it so.
    """
    if mode == "none" or (mode == "auto" and not adapters):
        return checkpoint
    if checkpoint.quantized_as or checkpoint.config.get("quantization_config"):
        report(Note("the base is quantized already: merged onto its dequantized weights"))
        return checkpoint
    found = next((trained for spec in adapters if (trained := trained_on(spec))), None)
    if mode == "auto" and found is None:
        return checkpoint
    if mode == "auto" and found and found.kind != "nf4":
        report(Warn(f"{found.because}: trained on {found.kind}, but merged onto the 16-bit base"))
        return checkpoint
    nested = found.double_quant if found else True
    weights = linear_weights(checkpoint, found.skipped if found else None)
    why = f"because {found.because}" if found and mode == "auto" else "as asked for"
    scales = " with nested scales" if nested else ""
    undo = "; --base-roundtrip none merges onto the 16-bit base" if mode == "auto" else ""
    report(
        Note(
            f"{len(weights)} weights of the base as NF4{scales} gave them in training, {why}{undo}"
        )
    )
    made = fake_quantized(checkpoint, weights, double_quant=nested)
    return replace(made, fake_quantized_as="nf4 nested" if nested else "nf4")


def trained_on(adapter: AdapterSpec) -> Trained | None:
    """The recorded quantization of the base in training; None without a record of 4 bits."""
    named = adapter.base or ""
    for folder in (Path(named), adapter.folder / named) if named else ():
        if (folder / "config.json").is_file() and (found := trained_on_folder(folder)):
            return found
    for path in notes(adapter.folder) if adapter.origin != "gguf" else ():
        if found := trained_by_note(path):
            return found
    if named.rstrip("/").lower().endswith(SUFFIX):
        return Trained("nf4", double_quant=True, because=f"it was trained on {named!r}")
    return None


def trained_on_folder(folder: Path) -> Trained | None:
    config = read_json_object(
        folder / "config.json", error=CheckpointError, hint="download or copy the file again"
    )
    settings = config.get("quantization_config")
    if not bitsandbytes.is_quantized(config) or not isinstance(settings, dict):
        return None
    if not settings.get("load_in_4bit"):
        return None
    skipped = settings.get("llm_int8_skip_modules")
    return Trained(
        str(settings.get("bnb_4bit_quant_type", "fp4")),
        double_quant=settings.get("bnb_4bit_use_double_quant") is True,
        because=f"it was trained on `{folder}`, which is quantized so",
        skipped=tuple(map(str, skipped)) if isinstance(skipped, list) else None,
    )


def notes(folder: Path) -> Iterator[Path]:
    """The trainers' notes on an adapter, also in the run's folder above a checkpoint-N."""
    above = (folder.resolve().parent,) if is_checkpoint(folder) else ()
    for place in (folder, *above):
        yield from (place / name for name in NOTES if (place / name).is_file())


def trained_by_note(path: Path) -> Trained | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(NOTE_MAX)
    except OSError:
        return None  # an unreadable note records nothing
    if not FOUR_BITS.search(text):
        return None
    kind, nested = KIND.search(text), NESTED.search(text)
    # by default axolotl and LLaMA-Factory quantize the scales, too
    return Trained(
        kind[1].lower() if kind else "nf4",
        double_quant=nested is None or nested[1].lower() == "true",
        because=f"`{path}` says it was trained in 4 bits",
    )


def linear_weights(checkpoint: Checkpoint, skipped: tuple[str, ...] | None) -> dict[str, bool]:
    """The weights that bitsandbytes quantizes in transformers -> whether it transposes them.

    They are plain linear layers, without the output layer and tensors tied to it. Stacks of experts
    are not quantized, so their slices are not either. Raises UnsupportedError if there are none.
    """
    import torch
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    model = model_without_weights(checkpoint)
    if model is None:
        raise UnsupportedError(
            f"transformers has no {checkpoint.architecture}, so that it is not known which of its"
            " weights are quantized in training",
            hint="--base-roundtrip none merges onto the base as it is",
        )
    kept = HfQuantizer.get_modules_to_not_convert(
        model,
        list(skipped) if skipped is not None else None,
        model._keep_in_fp32_modules,  # noqa: SLF001 - as its quantizer does
    )
    short = {without_prefix(name): name for name in checkpoint.tensors}
    weights: dict[str, bool] = {}
    for module_name, module in model.named_modules():
        turned = isinstance(module, Conv1D)
        if not (turned or type(module) is torch.nn.Linear):
            continue
        name = short.get(without_prefix(f"{module_name}.weight"))
        fits = name and tuple(module.weight.shape) == checkpoint.tensors[name].shape
        if name and fits and should_convert_module(module_name, kept):
            weights[name] = turned
    if not weights:
        raise UnsupportedError(
            f"no weight of `{checkpoint.folder}` is one that bitsandbytes quantizes",
            hint="--base-roundtrip none merges onto the base as it is",
        )
    return weights


def without_prefix(name: str) -> str:
    """A tensor's name without the prefixes of heads and vision towers."""
    parts = name.split(".")
    while parts[0] in ("model", "language_model", "transformer", "base_model"):
        parts = parts[1:]
    return ".".join(parts)
