"""Merged tensors → GGUF names, shapes and metadata, through llama.cpp's `conversion`.

It reads no weight: the result is a list of slots whose values are evaluated later.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.convert.arrange import OUTPUT_SCALED, scales_output
from exporter.convert.config_prefetch import conversion, load_hparams
from exporter.convert.converter_tokens import converter_tokens, remember_pieces
from exporter.convert.gguf_layout import Conversion, Slot
from exporter.convert.ignored_settings import Converted, ignored_settings
from exporter.convert.lazy_source import (
    LazySource,
    floats_left_unrounded,
    merged_tensors_indexed,
)
from exporter.convert.mtp import has_prediction, settle_prediction, without_prediction
from exporter.convert.ranker import find_purpose
from exporter.convert.refusals import UNUSABLE, unknown_architecture, unusable
from exporter.convert.unloadable import refuse_unloadable
from exporter.convert.upstream_fixes import (
    pack_settings,
    settle_pictures,
    write_feed_forward,
    write_positions,
)
from exporter.convert.upstream_hooks import upstream_hooks
from exporter.convert.windows import settle_windows
from exporter.core.errors import InputError, UnsupportedError
from exporter.core.events import Note, Report, Warn, silent
from exporter.core.ggml_types import FTYPES
from exporter.core.silence import no_collection
from exporter.inputs.own_code import no_code_run
from exporter.llamacpp.converter_import import imported, warnings_reported

if TYPE_CHECKING:
    from exporter.inputs.checkpoint import Checkpoint
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.apply import MergedTensors

Outtype = Literal["auto", "F16", "BF16", "F32"]
"""The converter's output type; auto is the 16-bit type in which the checkpoint is stored."""
ModelPart = Literal["text", "projector"]

MODULES = {"sentence_transformers_dense_modules": True}
"""Lets the converter's classes read the dense layers that follow an embedding model."""


def convert(
    tensors: MergedTensors,
    folder: Path,
    toolchain: Toolchain,
    *,
    outtype: Outtype = "auto",
    model_name: str,
    part: ModelPart = "text",
    trust_remote_code: bool = False,
    report: Report = silent,
) -> Conversion:
    """Lay the merged model out as llama.cpp's converter does.

    folder: with config and tokenizer; part: the text model or the projector.
    Raises UnsupportedError for an unknown architecture, CheckpointError for an unusable folder
    (such as one without a tokenizer).
    """
    with (
        imported(toolchain),
        warnings_reported(report),
        no_collection(),
        nullcontext() if trust_remote_code else no_code_run(),
    ):
        conversion()
        import torch

        with torch.inference_mode():
            hparams, model_class, architecture = recognized(tensors, folder, part, report=report)
            source = LazySource(tensors, hparams, architecture, projector=part == "projector")
            purpose = find_purpose(folder, architecture, tensors, part, report=report)
            with (
                converter_tokens(
                    folder, hparams, model_class, trust_remote_code, toolchain.folder.name, report
                ) as tokens,
                upstream_hooks(
                    merged_tensors_indexed(source),
                    floats_left_unrounded(),
                    *tokens.hooks,
                    *purpose.hooks(model_class),
                ),
            ):
                try:
                    ftype, unused = file_type(outtype, tensors), folder / "unused.gguf"
                    named = {"model_name": model_name, "hparams": hparams}
                    model = delegate(model_class(tokens.folder, ftype, unused, **named, **MODULES))
                    settle_pictures(model, hparams)
                    remember_pieces(model)
                    purpose.begin(model)
                    prepare(model, source)
                    tokens.settle(model, report)
                    purpose.finish(model)
                    pack_settings(model.gguf_writer)
                except UNUSABLE as error:
                    raise unusable(tensors.plan.checkpoint.folder, architecture, error) from error
        ignored = limits(converted(model, source.slots)) if part == "text" else ()
        for warning in ignored:
            report(Warn(warning))
        used = source.used()
    made = Conversion(tuple(source.slots), model.gguf_writer, int(model.ftype), used)
    return replace(tokens.noted_in(made), ignored=ignored)


def recognized(
    tensors: MergedTensors, folder: Path, part: ModelPart, *, report: Report
) -> tuple[dict[str, Any], Any, str]:
    """The settings in `folder`, llama.cpp's class for them, and its architecture's name.

    Raises UnsupportedError or CheckpointError without a class.
    """
    checkpoint = tensors.plan.checkpoint
    try:
        hparams = hparams_of(checkpoint, folder, tensors.names, report=report)
        return hparams, *find_class(hparams, part, tensors.names)
    except UNUSABLE as error:
        if not checkpoint.config.get("architectures"):
            raise checkpoint.nameless() from error
        raise unusable(checkpoint.folder, "no architecture", error) from error


def hparams_of(
    checkpoint: Checkpoint, folder: Path, names: Iterable[str], *, report: Report = silent
) -> dict[str, Any]:
    """The config in `folder` as llama.cpp's classes read it, patched for them.

    names: the tensors' names. The result lacks the settings of a quantization that reading the
    checkpoint undoes.
    """
    hparams = load_hparams(folder)
    if "quantization_config" not in checkpoint.config:
        hparams.pop("quantization_config", None)
    if note := settle_prediction(hparams, names):
        report(Note(note))
    return hparams


def find_class(
    hparams: dict[str, Any], part: ModelPart, names: Iterable[str] | None = None
) -> tuple[Any, str]:
    """llama.cpp's class for a model, and the name of its architecture.

    names: the tensors' names, if the class will convert them. Raises UnsupportedError for an
    unknown architecture.
    """
    from conversion import (
        MMPROJ_MODEL_MAP,
        TEXT_MODEL_MAP,
        ModelType,
        get_model_architecture,
        get_model_class,
    )

    kind = ModelType.TEXT if part == "text" else ModelType.MMPROJ
    known = TEXT_MODEL_MAP if part == "text" else MMPROJ_MODEL_MAP
    architecture = spelled(get_model_architecture(hparams, kind), known)
    try:
        found = get_model_class(architecture, mmproj=part == "projector")
    except (NotImplementedError, KeyError) as error:
        raise unknown_architecture(architecture) from error
    plain = part == "text" and names is not None and not has_prediction(names)
    return without_prediction(found) if plain else found, architecture


def spelled(architecture: str, known: Iterable[str]) -> str:
    """The converter's spelling of a class, such as MPTForCausalLM for MptForCausalLM."""
    lower = {name.lower(): name for name in known}
    return architecture if architecture in known else lower.get(architecture.lower(), architecture)


def delegate(model: Any) -> Any:
    """The object that does a class's work: some delegate to another one with its writer."""
    from conversion import ModelBase

    inner = [value for value in vars(model).values() if isinstance(value, ModelBase)]
    return inner[0] if inner else model


def has_projector(folder: Path, toolchain: Toolchain, *, report: Report = silent) -> bool:
    """Whether the folder's model has a vision or audio part that llama.cpp supports.

    Warns if it has an unsupported one.
    """
    with imported(toolchain):
        hparams = load_hparams(folder)
        if not hparams.get("vision_config") and not hparams.get("audio_config"):
            return False
        try:
            find_class(hparams, "projector")
        except UnsupportedError as error:
            report(Warn(f"no mmproj is written, and the model takes text alone: {error.message}"))
            return False
        return True


def prepare(model: Any, source: LazySource) -> None:
    """Let the converter's class lay out all tensors and settings, then correct the settings."""
    writer = model.gguf_writer
    writer.add_tensor = partial(source.add, writer)
    model.prepare_tensors()  # names: llama.cpp's gguf-py/gguf/tensor_mapping.py
    model.prepare_metadata(vocab_only=False)
    settle_windows(writer, model.hparams)
    write_positions(writer, model.hparams)
    write_feed_forward(writer, model.hparams)
    if scales_output(model.hparams):
        writer.add_bool(OUTPUT_SCALED, val=True)


def limits(made: Converted) -> tuple[str, ...]:
    """The ignored settings. Raises UnsupportedError for a model that llama.cpp cannot load."""
    refuse_unloadable(made)
    return tuple(ignored_settings(made))


def converted(model: Any, slots: list[Slot]) -> Converted:
    """The converter's result, for the warnings about what llama.cpp ignores."""
    writer = model.gguf_writer
    keys = frozenset(key.removeprefix(f"{writer.arch}.") for key in writer.kv_data[0])
    return Converted(str(writer.arch), model.hparams, keys, {slot.name for slot in slots})


def refuse_dropped(
    changed: Iterable[str],
    conversions: Iterable[Conversion],
    *,
    because: InputError | None = None,
) -> None:
    """Raise UnsupportedError if no part of the result holds a tensor that the adapter changed.

    because: the error that prevented another part, which may have a place for the tensor; it is
    raised instead.
    """
    used: set[str] = set().union(*(conversion.used for conversion in conversions))
    dropped = sorted(set(changed) - used)
    if dropped and because:
        raise because
    if dropped:
        raise UnsupportedError(
            f"a GGUF of this model has no place for `{dropped[0]}`, which the adapter changes"
            f" ({len(dropped)} such tensors)",
            hint="`--to safetensors` writes the whole merged model for transformers",
        )


def file_type(outtype: Outtype, tensors: MergedTensors) -> Any:
    """The converter's file type; auto is the type of the first 16-bit matrix, as it guesses.

    For its guess, the converter would read that whole matrix.
    """
    import gguf
    import torch

    if outtype != "auto":
        return gguf.LlamaFileType(FTYPES[outtype])
    halves = {torch.bfloat16: "BF16", torch.float16: "F16"}
    matrices = (name for name in tensors.names if len(tensors.shape(name)) > 1)
    found = (halves.get(tensors.stored_dtype(name)) for name in matrices)
    return gguf.LlamaFileType(FTYPES[next((name for name in found if name), "F16")])
