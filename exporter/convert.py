"""Merged tensors → GGUF names, shapes and metadata, through llama.cpp's own `conversion`.

With prequantized.py and lora.py the only door to llama.cpp's Python code. It reads no weight:
what it gives is a list of slots, each of which can be filled later.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.arrange import arranger, published_name
from exporter.converter_tokens import converter_tokens
from exporter.core.errors import InputError, UnsupportedError
from exporter.core.events import Note, Report, Warn, silent
from exporter.core.types import FTYPES, GGMLType
from exporter.hparams import conversion, load_hparams
from exporter.ignored import Converted, ignored_settings
from exporter.lazy import stacked, to_float32
from exporter.limits import refuse_unloadable
from exporter.mtp import has_prediction, settle_prediction, without_prediction
from exporter.own_code import no_code_run
from exporter.refusals import UNUSABLE, unknown_architecture, unusable
from exporter.settings import pack_settings, write_positions
from exporter.slots import FLOAT32, Conversion, Slot
from exporter.windows import settle_windows

if TYPE_CHECKING:
    import numpy as np

    from exporter.checkpoint import Checkpoint
    from exporter.merge import MergedTensors
    from exporter.toolchain import Toolchain

Outtype = Literal["auto", "F16", "BF16", "F32"]
"""The converter's own output type; auto is the 16-bit type that the checkpoint is stored in."""
Part = Literal["text", "projector"]


HARMLESS = (
    "Unknown RoPE type: default",
    "Unknown RoPE type: proportional",
    "Duplicated key name",
    "No handler for special token type",
    "Unknown separator token",
    "is not in MXFP4, performance may be degraded",
)
"""Parts of warnings that say nothing about the result: transformers 5 spells out the type of plain
RoPE, classes write a key again that their parent wrote, tokens to fill in and between two texts
have no handler, and merged experts are 16 bits before they are quantized."""


def convert(
    tensors: MergedTensors,
    folder: Path,
    toolchain: Toolchain,
    *,
    outtype: Outtype = "auto",
    model_name: str,
    part: Part = "text",
    trust_remote_code: bool = False,
    report: Report = silent,
) -> Conversion:
    """Lay the merged model out as llama.cpp's converter does.

    folder: its config and tokenizer; part: of a vision model, the text model or the projector.
    Raises UnsupportedError for an architecture it does not know, CheckpointError for a folder it
    cannot use (such as one without a tokenizer).
    """
    with (
        imported(toolchain),
        warnings_reported(report),
        nullcontext() if trust_remote_code else no_code_run(),
    ):
        ModelBase = conversion().ModelBase  # noqa: N806 - it is a class
        import torch

        with torch.inference_mode():
            try:
                hparams = hparams_of(tensors.plan.checkpoint, folder, tensors.names, report=report)
                model_class, architecture = find_class(hparams, part, tensors.names)
            except UNUSABLE as error:
                raise unusable(tensors.plan.checkpoint.folder, "no architecture", error) from error
            source = LazySource(tensors, hparams)
            with (
                converter_tokens(folder, hparams, model_class, trust_remote_code, report) as tokens,
                old_objects_set_aside(),
                tensors_from(source, ModelBase),
                slots_recorded() as slots,
            ):
                try:
                    ftype = file_type(outtype, tensors)
                    unused = folder / "unused.gguf"
                    model = delegate(
                        model_class(
                            tokens.folder, ftype, unused, model_name=model_name, hparams=hparams
                        )
                    )
                    prepare(model, source, slots)
                    tokens.settle(model, report)
                    pack_settings(model.gguf_writer)
                except UNUSABLE as error:
                    raise unusable(tensors.plan.checkpoint.folder, architecture, error) from error
                used = source.used()
        if part == "text":
            tell_limits(converted(model, slots), report=report)
    return Conversion(tuple(slots), model.gguf_writer, int(model.ftype), used)


def hparams_of(
    checkpoint: Checkpoint, folder: Path, names: Iterable[str], *, report: Report = silent
) -> dict[str, Any]:
    """The config in `folder` as llama.cpp's classes read it, mended.

    names: the tensors'. A quantization that is undone while the checkpoint is read is none of
    theirs.
    """
    hparams = load_hparams(folder)
    if "quantization_config" not in checkpoint.config:
        hparams.pop("quantization_config", None)
    if note := settle_prediction(hparams, names):
        report(Note(note))
    return hparams


def find_class(
    hparams: dict[str, Any], part: Part, names: Iterable[str] | None = None
) -> tuple[Any, str]:
    """llama.cpp's class for a model, and the name of its architecture.

    names: the tensors', where the class is to convert them.
    """
    from conversion import ModelType, get_model_architecture, get_model_class

    kind = ModelType.TEXT if part == "text" else ModelType.MMPROJ
    architecture = get_model_architecture(hparams, kind)
    try:
        found = get_model_class(architecture, mmproj=part == "projector")
    except (NotImplementedError, KeyError) as error:
        raise unknown_architecture(architecture) from error
    plain = part == "text" and names is not None and not has_prediction(names)
    return without_prediction(found) if plain else found, architecture


def delegate(model: Any) -> Any:
    """The object that does a class's work: some hand it to another, which has its own writer."""
    from conversion import ModelBase

    inner = [value for value in vars(model).values() if isinstance(value, ModelBase)]
    return inner[0] if inner else model


def has_projector(folder: Path, toolchain: Toolchain) -> bool:
    """Whether the folder's model sees or hears, in a way that llama.cpp knows."""
    with imported(toolchain):
        hparams = load_hparams(folder)
        if not hparams.get("vision_config") and not hparams.get("audio_config"):
            return False
        try:
            find_class(hparams, "projector")
        except UnsupportedError:
            return False
        return True


def prepare(model: Any, source: LazySource, slots: list[Slot]) -> None:
    """Have the converter's class lay out all tensors and settings, and complete the settings."""
    writer = model.gguf_writer
    writer.add_tensor = partial(source.add, writer, slots)
    model.prepare_tensors()
    model.prepare_metadata(vocab_only=False)
    settle_windows(writer, model.hparams)
    write_positions(writer, model.hparams)


def tell_limits(made: Converted, *, report: Report) -> None:
    """Stop at what llama.cpp cannot load, and warn of what it ignores."""
    refuse_unloadable(made)
    for warning in ignored_settings(made):
        report(Warn(warning))


def converted(model: Any, slots: list[Slot]) -> Converted:
    """What the converter made, for the warnings about what llama.cpp will not do with it."""
    writer = model.gguf_writer
    keys = frozenset(key.removeprefix(f"{writer.arch}.") for key in writer.kv_data[0])
    return Converted(str(writer.arch), model.hparams, keys, {slot.name for slot in slots})


def refuse_dropped(
    changed: Iterable[str],
    conversions: Iterable[Conversion],
    *,
    because: InputError | None = None,
) -> None:
    """Stop when no part of the result has a place for a tensor that the adapter changed.

    because: why another part, which would have had one, was not made.
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
    """The converter's number; auto is what it would guess, by the first matrix of 16 bits.

    Guessing, it would read that matrix whole.
    """
    import gguf
    import torch

    if outtype != "auto":
        return gguf.LlamaFileType(FTYPES[outtype])
    halves = {torch.bfloat16: "BF16", torch.float16: "F16"}
    matrices = (name for name in tensors.names if len(tensors.shape(name)) > 1)
    found = (halves.get(tensors.stored_dtype(name)) for name in matrices)
    return gguf.LlamaFileType(FTYPES[next((name for name in found if name), "F16")])


class LazySource:
    """Gives the converter lazy tensors, and takes what it makes of them."""

    def __init__(self, tensors: MergedTensors, hparams: dict[str, Any]) -> None:
        """Begin with nothing asked for. hparams: the model's, which say how it is arranged."""
        self.tensors, self.arrange = tensors, arranger(hparams)
        self.converters_name = partial(published_name, hparams=hparams)
        self.last = ""
        self.made: dict[str, weakref.ref[Any]] = {}
        self.read_already: set[str] = set()

    def lazy(self, name: str) -> Any:
        from conversion.base import LazyTorchTensor

        self.last = name
        dtype = self.tensors.dtype(name)
        meta = LazyTorchTensor.meta_with_dtype_and_shape(dtype, self.tensors.shape(name))
        made = LazyTorchTensor(meta=meta, args=(name,), func=self.read)
        self.made[name] = weakref.ref(made)
        return self.arrange(name, made)

    def read(self, name: str) -> Any:
        self.read_already.add(name)
        return self.tensors.read(name)

    def used(self) -> frozenset[str]:
        """The tensors that slots were made of.

        Slots keep what they use alive; what the converter drops is gone. Some few are looked at
        while it plans, which leaves nothing of them but their values.
        """
        gc.collect()
        alive = {name for name, made in self.made.items() if made() is not None}
        return frozenset(alive | self.read_already)

    def add(self, writer: Any, slots: list[Slot], name: str, tensor: Any, **kwargs: Any) -> None:
        """Stand in for GGUFWriter.add_tensor: note the slot, and keep the writer's count of it."""
        kind = kwargs.get("raw_dtype")
        if kind is None or not isinstance(tensor, Unquantized):
            raise UnsupportedError(
                f"`{self.last}` is stored in a form that cannot be merged or requantized so far",
                hint="use the 16-bit release of this base",
            )
        shape = tuple(int(n) for n in tensor.shape)
        slot_type = GGMLType.by_number(int(kind))
        writer.add_tensor_info(name, shape, FLOAT32, slot_type.nbytes(shape), raw_dtype=kind)
        slots.append(Slot(name, shape, slot_type, tensor.fill, self.last))


class Unquantized:
    """What stands where the converter would have quantized: the values still in float32."""

    dtype = FLOAT32

    def __init__(self, lazy: Any) -> None:
        """Keep the converter's lazy numpy tensor."""
        self.shape = lazy.shape
        self.lazy = lazy

    def fill(self) -> Iterator[np.ndarray[Any, Any]]:
        lazies = stacked(self.lazy) or [self.lazy]
        self.lazy = None  # the chain keeps every step's result alive
        while lazies:
            yield to_float32(lazies.pop(0))


@contextmanager
def old_objects_set_aside() -> Iterator[None]:
    """Have the garbage collector look at nothing older than the block: torch has a million."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def tensors_from(source: LazySource, model_base: Any) -> Iterator[None]:
    """Have the converter index our merged tensors instead of the folder's files."""
    original = model_base.index_tensors

    def index(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
        del remote_hf_model_id  # never given
        found = (
            self.filter_tensors((source.converters_name(name), partial(source.lazy, name)))
            for name in source.tensors.names
        )
        return dict(item for item in found if item)

    model_base.index_tensors = index
    try:
        yield
    finally:
        model_base.index_tensors = original


@contextmanager
def slots_recorded() -> Iterator[list[Slot]]:
    """Have the converter's float outputs recorded instead of rounded."""
    import gguf

    original = gguf.quants.quantize
    floats = (
        gguf.GGMLQuantizationType.F32,
        gguf.GGMLQuantizationType.F16,
        gguf.GGMLQuantizationType.BF16,
    )

    def quantize(data: Any, qtype: Any) -> Any:
        return Unquantized(data) if qtype in floats else original(data, qtype)

    gguf.quants.quantize = quantize
    try:
        yield []
    finally:
        gguf.quants.quantize = original


@contextmanager
def imported(toolchain: Toolchain) -> Iterator[None]:
    """Make llama.cpp's `conversion` and its matching `gguf` importable, from the build alone."""
    for folder in (toolchain.source, toolchain.source / "gguf-py"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning is about our threads
    yield


@contextmanager
def warnings_reported(report: Report) -> Iterator[None]:
    """Turn what the converter logs as warnings into events; its chatter is dropped."""

    class Reporting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if not any(part in message for part in HARMLESS):
                report(Warn(f"llama.cpp's converter: {message}"))

    handler = Reporting(level=logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("hf-to-gguf", "gguf")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
