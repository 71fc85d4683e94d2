"""decant's quantization of K-quants and IQ4, used where it is proven to give ggml's bytes."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.atomic_file import atomic_write
from exporter.core.errors import DecantError, InputError, ToolchainError
from exporter.core.events import Note, Report, Step, silent
from exporter.core.ggml_types import GGMLType
from exporter.llamacpp.toolchain import recipe, translated

if TYPE_CHECKING:
    import numpy as np

    from exporter.llamacpp.toolchain import Toolchain
    from exporter.quantize.kquants_selftest import Rows

NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q4_0")
TYPES = tuple(map(GGMLType.by_name, NAMES))
SEARCHED = frozenset(NAMES) - {"Q4_0"}
"""Types that decant's code searches without an imatrix, too; ggml is fast for the other ones."""
SETTING = "DECANT_KQUANTS"
SHAPES = ((40, 256), (24, 768), (8, 2048))  # shapes of the test rows of each kind
LESS = 96  # values by which rows in blocks of 32 are shortened, to no whole super-blocks
SEED = 258  # of the test rows
CHUNK_ARGUMENTS = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,  # type, source, target
    ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,  # first value, rows, values per row
    ctypes.c_void_p,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernels:
    """The library that quantizes in ggml's place, and the types it may quantize."""

    chunk: Any
    """The library's function: it takes ggml's function, then the same arguments. May be None."""
    variant: str
    """The instruction set it uses."""
    types: frozenset[str]
    """Types whose bytes equal ggml's."""
    refused: tuple[str, ...] = ()
    """Types whose bytes differ."""
    reason: str = ""
    """Why ggml quantizes everything; empty if it does not."""

    def describe(self) -> str:
        """A line about the kernels for people."""
        if self.chunk is None:
            return f"by ggml itself, several times slower: {self.reason}"
        same = ", ".join(map(labelled, sorted(self.types))) or "none"
        line = f"{self.variant}, the same bytes as ggml's: {same}"
        if self.refused:
            line += f"; by ggml itself, as the bytes differ: {', '.join(self.refused)}"
        return line


def labelled(name: str) -> str:
    """The type's name for people."""
    return name if name in SEARCHED else f"{name} with an imatrix"


NONE = Kernels(None, "", frozenset(), reason="not asked for")


def load_kernels(
    toolchain: Toolchain, ggml: Any, *, env: Mapping[str, str], report: Report = silent
) -> Kernels:
    """The kernels for this machine, compiled and tested on first use.

    ggml: the build's ggml_quantize_chunk. If they are not available, a note says so and ggml
    quantizes. Raises InputError for an unknown value of DECANT_KQUANTS.
    """
    choice = env.get(SETTING, "") or "auto"
    if choice not in ("auto", "ggml"):
        raise InputError(f"{SETTING} is {choice!r}", hint="use ggml, or leave it unset")
    if choice == "ggml":
        return Kernels(None, "", frozenset(), reason=f"{SETTING}=ggml")
    try:
        kernels = proven(toolchain, ggml, env, report)
    except (DecantError, OSError, AttributeError) as error:
        reason = getattr(error, "message", str(error)).partition("\n")[0]
        kernels = Kernels(None, "", frozenset(), reason=reason)
    if kernels.chunk is None or kernels.refused:
        report(Note(f"K-quants {kernels.describe()}"))
    return kernels


def proven(toolchain: Toolchain, ggml: Any, env: Mapping[str, str], report: Report) -> Kernels:
    """Load the compiled library with its verdict, which is stored beside build.json."""
    reporters = {"compile": lambda message: report(Step(message))}
    with translated():
        native = recipe("native").build_native(
            env=env, report=lambda event: reporters[event.stage](event.message)
        )
    library = ctypes.CDLL(str(native.path))
    library.decant_kquants_variant.restype = ctypes.c_char_p
    variant = library.decant_kquants_variant().decode()
    chunk = getattr(library, f"decant_kquants_{variant}")
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_void_p, *CHUNK_ARGUMENTS]
    verdict = toolchain.folder / f"kquants-{native.key}-{variant}.json"
    same = remembered(verdict)
    if same is None:
        report(Step("comparing the K-quants with ggml's"))
        same = {kind.name: equals(chunk, ggml, kind) for kind in TYPES}
        remember(verdict, same)
    return Kernels(
        chunk,
        variant,
        frozenset(name for name, equal in same.items() if equal),
        tuple(name for name, equal in same.items() if not equal),
    )


def remembered(path: Path) -> dict[str, bool] | None:
    """The stored verdict by type; None unless it covers all types."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = [kind.name for kind in TYPES]
    whole = isinstance(found, dict) and all(isinstance(found.get(name), bool) for name in names)
    return {name: found[name] for name in names} if whole else None


def remember(path: Path, same: Mapping[str, bool]) -> None:
    """Store a verdict if the build's folder is writable; otherwise the next run tests again."""
    try:
        with atomic_write(path, force=True) as file:
            file.write(json.dumps(same, indent=2).encode())
    except (DecantError, OSError):
        return


def equals(chunk: Any, ggml: Any, kind: GGMLType) -> bool:
    """Whether both quantize some thousands of hard blocks to the same bytes."""
    import numpy as np

    from exporter.quantize.kquants_selftest import importances, kinds, rows_of

    generator = np.random.default_rng(SEED)
    own = ctypes.cast(ggml, ctypes.c_void_p)
    for values in kinds().values():
        for count, n_per_row in SHAPES:
            length = n_per_row - (LESS if kind.block < LESS else 0)
            rows = rows_of(values, generator, count, length)
            for weights in ways(kind, importances(generator, length)):
                ours = quantized(lambda *rest: chunk(own, *rest), kind, rows, weights)
                if not np.array_equal(ours, quantized(ggml, kind, rows, weights)):
                    return False
    return True


def ways(kind: GGMLType, vectors: Sequence[Rows]) -> Iterator[Rows | None]:
    """The importance vectors (n_per_row,); first None if the type is searched without one, too."""
    if kind.name in SEARCHED:
        yield None
    yield from vectors


def quantized(
    chunk: Any, kind: GGMLType, rows: np.ndarray[Any, Any], weights: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, Any]:
    """Quantize contiguous float32 rows (n, n_per_row) to bytes (n, row_nbytes) of `kind`.

    weights: (n_per_row,) or None. Raises ToolchainError for an unexpected number of bytes.
    """
    import numpy as np

    count, n_per_row = rows.shape
    packed = np.empty((count, kind.row_nbytes(n_per_row)), dtype=np.uint8)
    nbytes = chunk(
        kind.number, rows.ctypes.data, packed.ctypes.data, 0, count, n_per_row,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    if nbytes != packed.nbytes:
        raise ToolchainError(
            f"{kind.name} of {rows.shape} gave {nbytes} bytes, not {packed.nbytes}",
            hint="rebuild llama.cpp with `decant setup --force`",
        )
    return packed
