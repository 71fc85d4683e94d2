"""Renames a GGUF adapter's modules to the base's names, and reorders its rows and columns.

llama.cpp's converter renames and rearranges weights, and a GGUF adapter fits the result. To find
the origin of each row and column, the converter processes products (low_rank.py) in which each row
and column holds its position; its outputs then hold the original positions.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.convert.converter_model import converter_model
from exporter.convert.low_rank import Product
from exporter.convert.refusals import UNUSABLE, unusable
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import Report, silent
from exporter.core.silence import quiet_libraries
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair, scaling_of
from exporter.inputs.gguf_adapter import ARCHITECTURE, EMBEDDING, MERGE_THE_SOURCE, PREFIX, WEIGHT
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.own_code import no_code_run
from exporter.llamacpp.converter_import import imported, warnings_reported
from exporter.merge.target_modules import is_conv1d
from exporter.merge.tied_embeddings import find_embeddings

if TYPE_CHECKING:
    import torch

    from exporter.inputs.checkpoint import Checkpoint
    from exporter.inputs.lazy_tensor import Tensor
    from exporter.llamacpp.toolchain import Toolchain

STACK, MATRIX = 3, 2  # dimensions
PLACES = 1 << 26  # more than the rows of any weight


@dataclass(frozen=True, slots=True, eq=False)
class InMemory:
    """A small tensor in memory."""

    name: str
    values: torch.Tensor
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    def read(self) -> torch.Tensor:
        return self.values.clone()


@dataclass(frozen=True, slots=True, eq=False)
class RowOrigin:
    """The origin of a GGUF tensor's rows and columns in one tensor of the checkpoint."""

    name: str
    here: torch.Tensor
    """Row numbers of the GGUF tensor that come from this checkpoint tensor, (n,)."""
    rows: torch.Tensor
    """Row numbers of the checkpoint tensor that they come from, (n,)."""
    columns: torch.Tensor
    """The checkpoint tensor's column of every column, (n_in,)."""
    count: int
    """Number of rows of the GGUF tensor."""
    turned: bool
    """Whether rows and columns are exchanged in the checkpoint."""


def named_on_hub(
    adapter: AdapterSpec,
    checkpoint: Checkpoint,
    toolchain: Toolchain,
    *,
    trust_remote_code: bool = False,
    report: Report = silent,
) -> AdapterSpec:
    """A GGUF adapter under the checkpoint's names, with rows and columns in its order.

    Raises AdapterError for an adapter of another base, UnsupportedError if the converter's changes
    to a weight cannot be undone on a pair.
    """
    if find_embeddings(checkpoint).tied and any(pair.module == EMBEDDING for pair in adapter.pairs):
        raise UnsupportedError(
            f"`{adapter.weights}` adapts `{EMBEDDING}`, and the base's embedding and head are tied:"
            " whether it acts on both, llama.cpp's versions do not agree",
            hint=MERGE_THE_SOURCE,
        )
    with (
        quiet_libraries(),
        imported(toolchain),
        warnings_reported(report),
        nullcontext() if trust_remote_code else no_code_run(),
    ):
        import torch

        with torch.inference_mode(mode=False), torch.no_grad():
            try:
                architecture, origins = find_origins(
                    checkpoint, {pair.module for pair in adapter.pairs}
                )
            except UNUSABLE as error:
                raise unusable(checkpoint.folder, checkpoint.architecture, error) from error
            wanted = adapter.config.get(ARCHITECTURE)
            if wanted != architecture:
                raise another_base(
                    adapter, checkpoint, f"it adapts a {wanted}, not a {architecture}"
                )
            return placed(adapter, checkpoint, origins)


def another_base(adapter: AdapterSpec, checkpoint: Checkpoint, why: str) -> AdapterError:
    trained_on = f"it was trained on {adapter.base!r}: " if adapter.base else ""
    return AdapterError(
        f"`{adapter.weights}` is not of the base `{checkpoint.folder}`: {why}",
        hint=f"{trained_on}pass the base it was trained on as --base",
    )


def without_place(adapter: AdapterSpec, checkpoint: Checkpoint, module: str) -> AdapterError:
    """The error for a module of the adapter without a tensor in the checkpoint."""
    stem = module.partition("#")[0]
    tensors = checkpoint.tensors.items()
    if stem != module and any(len(t.shape) == STACK for name, t in tensors if ".experts." in name):
        return AdapterError(
            f"`{adapter.weights}` adapts the experts of `{checkpoint.folder}` (`{stem}`), which"
            " keeps them stacked: a GGUF adapter is put on experts that are kept apart only",
            hint=MERGE_THE_SOURCE,
        )
    return another_base(
        adapter,
        checkpoint,
        f"nothing there becomes `{stem}{WEIGHT}`, or not in a way that a pair can follow",
    )


def find_origins(
    checkpoint: Checkpoint, modules: set[str]
) -> tuple[str, dict[str, list[RowOrigin]]]:
    """The base's GGUF architecture, and the origins of the rows of each module's weight."""
    model, arrange = converter_model(checkpoint)
    names = list(checkpoint.tensors)
    origins: dict[str, list[RowOrigin]] = {}
    for number, name in enumerate(names):
        if len(checkpoint.tensors[name].shape) != MATRIX:
            continue
        kept = model.filter_tensors((name, lambda: None))
        if kept is None:
            continue
        block = next((int(part) for part in kept[0].split(".") if part.isdecimal()), None)
        try:
            given = arrange(name, probe(checkpoint.tensors[name].shape, name, number))
            made = list(model.modify_tensors(given, kept[0], block))
        except UnsupportedError:  # only modules that the adapter changes must be undone
            continue
        for gguf_name, product in made:
            stem = gguf_name.removesuffix(WEIGHT)
            parts = product if isinstance(product, Product) else None
            if parts is not None and (stem in modules or f"{stem}#0" in modules):
                origins |= read_off(stem, parts, names)
    return str(model.gguf_writer.arch), origins


def probe(shape: tuple[int, ...], name: str, number: int) -> Product:
    """A product of rank 1 that holds positions: b (n_out, 1) from 0, a (1, n_in) below 0.

    The rows of tensor `number` begin at number * PLACES, so that a position names its tensor, too.
    """
    import torch

    rows, columns = shape
    b = torch.arange(rows, dtype=torch.float64) + number * PLACES
    a = -1 - torch.arange(columns, dtype=torch.float64)
    return Product(a[None, :], b[:, None], frozenset({name}))


def read_off(stem: str, product: Product, names: list[str]) -> dict[str, list[RowOrigin]]:
    """The origins of a GGUF tensor, or of each expert of a stack; empty if unknown."""
    a, b = product.whole()
    if product.rank != 1:
        return {}
    if a.dim() == MATRIX:
        return {stem: found} if (found := origins_of(a[0], b[:, 0], names)) else {}
    return {
        f"{stem}#{number}": found
        for number in range(a.shape[0])
        if a.dim() == STACK and (found := origins_of(a[number, 0], b[number, :, 0], names))
    }


def origins_of(a: torch.Tensor, b: torch.Tensor, names: list[str]) -> list[RowOrigin]:
    """The origins encoded in the rearranged probe. a: (n_in,), b: (n_out,)."""
    turned = bool((b < 0).all())
    rows, columns = (a, -1 - b) if turned else (b, -1 - a)
    if not all(
        bool((part >= 0).all() and (part == part.round()).all()) for part in (rows, columns)
    ):
        return []
    rows, columns = rows.long(), columns.long()
    found = []
    for number in sorted(set((rows // PLACES).tolist())):
        here = (rows // PLACES == number).nonzero()[:, 0]
        found.append(
            RowOrigin(names[number], here, rows[here] % PLACES, columns, len(rows), turned)
        )
    return found


def placed(
    adapter: AdapterSpec, checkpoint: Checkpoint, origins: dict[str, list[RowOrigin]]
) -> AdapterSpec:
    """The adapter's pairs on the checkpoint's modules."""
    pieces: dict[str, list[tuple[LoraPair, RowOrigin, float]]] = {}
    for pair in adapter.pairs:
        if pair.module not in origins:
            raise without_place(adapter, checkpoint, pair.module)
        for origin in origins[pair.module]:
            scaling = scaling_of(adapter, pair).value
            pieces.setdefault(origin.name, []).append((pair, origin, scaling))
    pairs, ranks, alphas = [], {}, {}
    for name, found in pieces.items():
        module = name.removesuffix(WEIGHT)
        a, b, scaling = joined(adapter, checkpoint, module, found)
        pairs.append(replace(found[0][0], module=module, a=a, b=b))
        ranks[re.escape(module)] = a.shape[0]
        alphas[re.escape(module)] = scaling * a.shape[0]
    config = {
        **{key: value for key, value in adapter.config.items() if key != ARCHITECTURE},
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    return replace(adapter, config=config, pairs=tuple(pairs))


def joined(
    adapter: AdapterSpec,
    checkpoint: Checkpoint,
    module: str,
    found: list[tuple[LoraPair, RowOrigin, float]],
) -> tuple[Tensor, Tensor, float]:
    """A (rank, n_in), B (n_out, rank) and the scaling of one module, from one pair or several."""
    import torch

    shape = checkpoint.tensors[f"{module}{WEIGHT}"].shape
    a_name, b_name = (f"{PREFIX}{module}.{half}.weight" for half in ("lora_A", "lora_B"))
    halves_a, halves_b = [], []
    for pair, origin, scaling in found:
        check_fit(adapter, checkpoint, pair, origin)
        rows, columns = (shape[1], shape[0]) if origin.turned else shape
        a, b = read_tensor(pair.a).float(), read_tensor(pair.b).float()
        placed_a = torch.zeros(a.shape[0], columns)
        placed_b = torch.zeros(rows, b.shape[1])
        if origin.turned:
            placed_a[:, origin.rows] = a[:, origin.here]
            placed_b[origin.columns] = b
        else:
            placed_a[:, origin.columns] = a
            placed_b[origin.rows] = b[origin.here]
        halves_a.append(placed_a)
        halves_b.append(placed_b if len(found) == 1 else placed_b * scaling)
    one = found[0][2] if len(found) == 1 else 1.0
    return InMemory(a_name, torch.cat(halves_a)), InMemory(b_name, torch.cat(halves_b, 1)), one


def check_fit(
    adapter: AdapterSpec, checkpoint: Checkpoint, pair: LoraPair, origin: RowOrigin
) -> None:
    """Raise AdapterError for a pair of another size than its weight, UnsupportedError if
    transposed.
    """
    n_in, n_out = pair.a.shape[1], pair.b.shape[0]
    stem = pair.module.partition("#")[0]
    sizes = (n_out, n_in) if origin.turned else (n_in, n_out)
    if sizes != (len(origin.columns), origin.count):
        shape = checkpoint.tensors[origin.name].shape
        raise another_base(
            adapter,
            checkpoint,
            f"its `{stem}` is for {n_out} × {n_in}, the base's `{origin.name}` is"
            f" {' × '.join(map(str, shape))}",
        )
    if origin.turned != is_conv1d(origin.name.removesuffix(WEIGHT), checkpoint):
        raise UnsupportedError(
            f"llama.cpp's converter turns `{origin.name}` round, which a pair for"
            f" `{stem}` of `{adapter.weights}` cannot undo",
            hint=MERGE_THE_SOURCE,
        )
