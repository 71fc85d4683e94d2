"""The largest size of a file whose types are chosen tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exporter.core.gguf import GGUFFile

LIKE = "Q4_K_M"
"""The quantization whose size AUTO has by default; tensors without a choice get its types."""


@dataclass(frozen=True, slots=True)
class SizeBudget:
    """One of three limits; without any, the size of LIKE."""

    bits: float | None = None
    """Bits of the tensors' data per weight, as llama.cpp counts them."""
    nbytes: int | None = None
    """Bytes of the whole file."""
    room: Callable[[GGUFFile], int] | None = None
    """Returns the bytes that the tensors may take beside the model's cache, from its header."""

    def arguments(self) -> list[str]:
        """The options of `decant export` that set the limit."""
        if self.bits is not None:
            return ["--bpw", f"{self.bits:g}"]
        if self.nbytes is not None:
            return ["--size", str(self.nbytes)]
        return ["--fit"] if self.room is not None else []
