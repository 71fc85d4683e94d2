"""What the converter is given in place of weights, and what is noted of what it makes of them.

Each name is a lazy tensor of the merge; each tensor that the converter would have rounded and
written becomes a slot, whose values are read later.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from exporter.convert.arrange import arranger, breaking_embedding, published_name
from exporter.convert.gguf_layout import FLOAT32, Slot
from exporter.convert.lazy_graph import stacked, to_float32
from exporter.convert.ranker import converter_name
from exporter.core.errors import UnsupportedError
from exporter.core.ggml_types import GGMLType

if TYPE_CHECKING:
    import numpy as np

    from exporter.merge.apply import MergedTensors


class LazySource:
    """Gives the converter lazy tensors, and takes what it makes of them."""

    def __init__(
        self,
        tensors: MergedTensors,
        hparams: Mapping[str, Any],
        architecture: str,
        *,
        projector: bool = False,
    ) -> None:
        """hparams, architecture: the model's, which say how its tensors are named and arranged.

        projector: whether the vision part is converted.
        """
        self.tensors, self.arrange = tensors, arranger(hparams)
        self.hparams, self.architecture, self.projector = hparams, architecture, projector
        self.last = ""
        self.made: dict[str, weakref.ref[Any]] = {}
        self.read_already: set[str] = set()

    def converters_name(self, name: str) -> str:
        """The name under which the converter is given a tensor."""
        if self.projector and (embedding := breaking_embedding(name, self.hparams)):
            return embedding
        return published_name(converter_name(self.architecture, name), self.hparams)

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
