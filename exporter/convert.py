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

from exporter.converter_tokens import converter_tokens
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.events import Report, Warn, silent
from exporter.core.late import Undo, when_imported
from exporter.core.types import FTYPES, GGMLType
from exporter.hparams import conversion, load_hparams
from exporter.lazy import stacked, to_float32
from exporter.settings import pack_settings
from exporter.slots import FLOAT32, Conversion, Slot

if TYPE_CHECKING:
    import numpy as np

    from exporter.checkpoint import Checkpoint
    from exporter.merge import MergedTensors
    from exporter.toolchain import Toolchain

Outtype = Literal["auto", "F16", "BF16", "F32"]
"""The converter's own output type; auto is the 16-bit type that the checkpoint is stored in."""
Part = Literal["text", "projector"]


# what the converter's classes raise when a folder lacks something or has it in another form
UNUSABLE = (
    ValueError, KeyError, TypeError, FileNotFoundError, NotImplementedError, AssertionError,
    AttributeError, IndexError, ZeroDivisionError, RuntimeError, OverflowError,
)  # fmt: skip
# How warnings begin that mean nothing: transformers 5 spells out the RoPE type of models that have
# plain RoPE; the converter sets keys twice; pairs of texts are for models that compare them.
HARMLESS = ("Unknown RoPE type: default", "Duplicated key name", "Unknown separator token")


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
                hparams = hparams_of(tensors.plan.checkpoint, folder)
                model_class, architecture = find_class(hparams, part)
            except UNUSABLE as error:
                raise unusable(tensors.plan.checkpoint.folder, "no architecture", error) from error
            source = LazySource(tensors)
            with (
                converter_tokens(folder, hparams, model_class, trust_remote_code, report) as tokens,
                old_objects_set_aside(),
                tensors_from(source, ModelBase),
                slots_recorded() as slots,
            ):
                try:
                    model = model_class(
                        tokens.folder,
                        file_type(outtype, tensors),
                        folder / "unused.gguf",
                        model_name=model_name,
                        hparams=hparams,
                    )
                    model.gguf_writer.add_tensor = partial(source.add, model.gguf_writer, slots)
                    model.prepare_tensors()
                    model.prepare_metadata(vocab_only=False)
                    tokens.settle(model, report)
                    pack_settings(model.gguf_writer)
                except UNUSABLE as error:
                    raise unusable(tensors.plan.checkpoint.folder, architecture, error) from error
                used = source.used()
    return Conversion(tuple(slots), model.gguf_writer, int(model.ftype), used)


def hparams_of(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """The config in `folder` as llama.cpp's classes read it, mended.

    A quantization that is undone while the checkpoint is read is none of theirs.
    """
    hparams = load_hparams(folder)
    if "quantization_config" not in checkpoint.config:
        hparams.pop("quantization_config", None)
    return hparams


def find_class(hparams: dict[str, Any], part: Part) -> tuple[Any, str]:
    """llama.cpp's class for a model, and the name of its architecture."""
    from conversion import ModelType, get_model_architecture, get_model_class

    kind = ModelType.TEXT if part == "text" else ModelType.MMPROJ
    architecture = get_model_architecture(hparams, kind)
    try:
        return get_model_class(architecture, mmproj=part == "projector"), architecture
    except NotImplementedError as error:
        raise unknown_architecture(architecture) from error


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


def unknown_architecture(architecture: str) -> UnsupportedError:
    return UnsupportedError(
        f"llama.cpp's converter does not know the architecture {architecture!r}",
        hint="it cannot become a GGUF; `--to safetensors` writes the merged model for transformers",
    )


def refuse_dropped(changed: Iterable[str], conversions: Iterable[Conversion]) -> None:
    """Stop when no part of the result has a place for a tensor that the adapter changed."""
    used: set[str] = set().union(*(conversion.used for conversion in conversions))
    dropped = sorted(set(changed) - used)
    if dropped:
        raise UnsupportedError(
            f"a GGUF of this model has no place for `{dropped[0]}`, which the adapter changes"
            f" ({len(dropped)} such tensors)",
            hint="`--to safetensors` writes the whole merged model for transformers",
        )


def unusable(folder: Path, architecture: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"llama.cpp's converter cannot use `{folder}` ({architecture}):"
        f" {type(error).__name__}: {error}",
        hint="is the folder complete, with config.json and the tokenizer's files?",
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

    def __init__(self, tensors: MergedTensors) -> None:
        """Begin with nothing asked for."""
        self.tensors = tensors
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
        return made

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
            self.filter_tensors((name, partial(source.lazy, name))) for name in source.tensors.names
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
def no_code_run() -> Iterator[None]:
    """Keep transformers from running a folder's own code, which the converter asks it to do.

    Every way to such code leads through the one function that fetches its file.
    """
    with when_imported("transformers.dynamic_module_utils", refuse_code):
        yield


def refuse_code(dynamic_module_utils: Any) -> Undo:
    original = dynamic_module_utils.get_cached_module_file

    def refuse(folder: object, name: object, *_: object, **__: object) -> str:
        raise UnsupportedError(
            f"`{folder}` asks for Python code of its own (`{name}`), which is not run",
            hint="read that code, and pass --trust-remote-code if you trust it",
        )

    def undo() -> None:
        dynamic_module_utils.get_cached_module_file = original

    dynamic_module_utils.get_cached_module_file = refuse
    return undo


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
            if not message.startswith(HARMLESS):
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
