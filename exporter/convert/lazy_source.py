"""Gives the converter lazy tensors in place of weights, and collects its results as slots.

Each name is a lazy tensor of the merge; each tensor that the converter would have rounded and
written becomes a slot, whose values are read later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from exporter.convert.arrange import arranger, breaking_embedding, published_name
from exporter.convert.gguf_layout import FLOAT32, Slot
from exporter.convert.lazy_graph import sources
from exporter.convert.ranker import converter_name
from exporter.convert.upstream_hooks import Hook
from exporter.core.errors import UnsupportedError
from exporter.core.ggml_types import GGMLType

if TYPE_CHECKING:
    from exporter.merge.apply import MergedTensors


class LazySource:
    """Provides the converter's lazy tensors and collects the slots that it makes of them."""

    def __init__(
        self,
        tensors: MergedTensors,
        hparams: Mapping[str, Any],
        architecture: str,
        *,
        projector: bool = False,
    ) -> None:
        """hparams, architecture: of the model; they decide its tensors' names and rearrangements.

        projector: whether the vision part is converted.
        """
        self.tensors, self.arrange = tensors, arranger(hparams)
        self.hparams, self.architecture, self.projector = hparams, architecture, projector
        self.slots: list[Slot] = []
        self.read_already: set[str] = set()

    def name_for_converter(self, name: str) -> str:
        """The name under which the converter gets a tensor."""
        if self.projector and (embedding := breaking_embedding(name, self.hparams)):
            return embedding
        return published_name(converter_name(self.architecture, name), self.hparams)

    def lazy(self, name: str) -> Any:
        from conversion.base import LazyTorchTensor

        dtype = self.tensors.dtype(name)
        meta = LazyTorchTensor.meta_with_dtype_and_shape(dtype, self.tensors.shape(name))
        return self.arrange(name, LazyTorchTensor(meta=meta, args=(name,), func=self.read))

    def read(self, name: str) -> Any:
        """Read a tensor whose values the converter needs while it plans."""
        self.read_already.add(name)
        return self.tensors.read(name)

    def used(self) -> frozenset[str]:
        """The tensors that slots are made of, and those that the converter has read."""
        made = (name for slot in self.slots for name in sources(slot.values))
        return frozenset({*made, *self.read_already})

    def add(self, writer: Any, name: str, tensor: Any, **kwargs: Any) -> None:
        """Replace GGUFWriter.add_tensor: record a slot, and let the writer count the tensor.

        Raises UnsupportedError for a tensor that the converter has quantized.
        """
        kind = kwargs.get("raw_dtype")
        if kind is None or not isinstance(tensor, Unquantized):
            raise UnsupportedError(
                f"`{name}` is stored in a form that cannot be merged or requantized so far",
                hint="use the 16-bit release of this base",
            )
        shape = tuple(int(n) for n in tensor.shape)
        slot_type = GGMLType.by_number(int(kind))
        writer.add_tensor_info(name, shape, FLOAT32, slot_type.nbytes(shape), raw_dtype=kind)
        self.slots.append(Slot(name, shape, slot_type, tensor.node))


class Unquantized:
    """Replaces an output that the converter would round: holds the node of the exact values."""

    dtype = FLOAT32

    def __init__(self, node: Any) -> None:
        self.shape, self.node = node.shape, node


def merged_tensors_indexed(source: LazySource) -> Hook:
    """Hook that lets the converter index the merged tensors instead of the folder's files."""
    from conversion import ModelBase

    def index_tensors(
        self: Any, remote_hf_model_id: str | None = None
    ) -> dict[str, Callable[[], Any]]:
        del remote_hf_model_id  # decant never passes it
        found = (
            self.filter_tensors((source.name_for_converter(name), partial(source.lazy, name)))
            for name in source.tensors.names
        )
        return dict(item for item in found if item)

    return Hook(ModelBase, {"index_tensors": index_tensors})


def floats_left_unrounded() -> Hook:
    """Hook that leaves the converter's float outputs unrounded."""
    import gguf

    original = gguf.quants.quantize
    floats = (
        gguf.GGMLQuantizationType.F32,
        gguf.GGMLQuantizationType.F16,
        gguf.GGMLQuantizationType.BF16,
    )

    def quantize(data: Any, qtype: Any) -> Any:
        return Unquantized(data) if qtype in floats else original(data, qtype)

    return Hook(gguf.quants, {"quantize": quantize})
