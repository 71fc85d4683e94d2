"""The steps of a merge: the operations on one tensor, and the plan for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from exporter.inputs.adapter_spec import AdapterSpec, LoraPair
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import Tensor

MergeDtype = Literal["float32", "base"]
Kind = Literal["linear", "conv1d", "embedding"]
"""Layout of a module's weight: (out, in), (in, out) or (vocabulary, width)."""
Combination = Literal[
    "linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"
]  # fmt: skip
"""PEFT's methods to combine several LoRAs into one."""


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """An adapter with the user's factor on its scaling."""

    adapter: AdapterSpec
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class LoraSum:
    """One module's update: W += scaling * (B @ A), or the merge of PEFT's layer for a variant."""

    adapter: AdapterSpec
    pair: LoraPair
    kind: Kind
    scaling: float
    """The adapter's scaling factor."""
    scale: float
    """The user's factor."""
    replays_init: bool = True
    """Whether to repeat an initialization that changes the base, such as PiSSA's."""


@dataclass(frozen=True, slots=True)
class Residual:
    """The weight that remains after a LoRA's initialization took its part out of the base.

    With tied embeddings PEFT changes the tensor that the embedding and the head share.
    """

    of: LoraSum


@dataclass(frozen=True, slots=True)
class BiasSum:
    """A LoRA's bias, added to the module's: scaling * values."""

    values: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class Replace:
    """New values for the whole tensor."""

    values: Tensor


@dataclass(frozen=True, slots=True)
class ReplaceRows:
    """New values for some rows."""

    values: Tensor
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AddRows:
    """New rows at the end of an embedding, each the mean of the base's rows."""

    rows: int
    """Number of rows in the result."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The change that the layer of another tuner makes to a module's weight or bias."""

    adapter: AdapterSpec
    module: str
    """The module's name in the adapter."""
    weight: Tensor
    bias: Tensor | None
    """The module's bias: a tuner may need both to change either."""
    changes_bias: bool = False
    """Whether this step changes the bias."""


@dataclass(frozen=True, slots=True)
class CombinedSum:
    """Several LoRAs of one module, combined by PEFT's `add_weighted_adapter`."""

    sums: tuple[LoraSum, ...]
    how: Combination


@dataclass(frozen=True, slots=True)
class ExpertSum:
    """A stacked pair's update of one expert's weight, or of the whole stack.

    The update of expert e is B[:, :, e] @ A[e], with A as (experts, rank, n_in) and B as (n_out,
    rank, experts).
    """

    a: Tensor  # (experts * rank, n_in)
    b: Tensor  # (n_out, rank * experts)
    experts: int
    expert: int | None
    """The expert's number; None for the whole stack."""
    first_row: int
    """Row of the update at which this weight begins."""
    scaling: float
    transposed: bool
    """Whether the weight is (n_in, n_out)."""
    expert_major: bool
    """Whether B is (n_out, experts, rank), as some versions of Unsloth wrote it."""


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """A pair of one expert: scaling * B @ A is added to its rows from `first_row` on.

    stride: 2 for every other row, as gpt-oss keeps gate and up in turns.
    """

    pair: LoraPair
    expert: int
    first_row: int
    """First changed row of the expert's weight as (n_out, n_in)."""
    scaling: float
    stride: int = 1

    @property
    def rows(self) -> slice:
        """The rows of the expert's weight that B's (n_out, rank) are added to."""
        n_out = self.pair.b.shape[0]
        return slice(self.first_row, self.first_row + n_out * self.stride, self.stride)


@dataclass(frozen=True, slots=True)
class StackSum:
    """Pairs trained expert by expert, added to a stack of all experts."""

    parts: tuple[ExpertPart, ...]
    height: int
    """Rows of each expert in the stack."""
    transposed: bool
    """Whether the stack is (experts, n_in, n_out)."""


@dataclass(frozen=True, slots=True)
class PartSum:
    """LoRAs of modules that form one tensor in the checkpoint, each on some of its rows."""

    parts: tuple[tuple[int, LoraSum], ...]
    """The first row of each part, and its update."""


Step = (
    LoraSum | Residual | BiasSum | Replace | ReplaceRows | AddRows | Tuned | CombinedSum
    | ExpertSum | StackSum | PartSum
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """The steps of one tensor, in order."""

    source: Tensor | None
    """The tensor with the base's values; None if only the adapter has it."""
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    """Shape of the result: a vocabulary may grow."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """The tensors that adapters change, and how; made before any weight is read."""

    checkpoint: Checkpoint
    adapters: tuple[WeightedAdapter, ...] = ()
    dtype: MergeDtype = "float32"
    """float32 keeps the exact sums; base rounds them to the stored type, as PEFT does."""
    changes: dict[str, Change] = field(default_factory=dict)
    """Changes by the checkpoint's name; unknown names are added to the result."""
    dropped: frozenset[str] = frozenset()
    """Tensors that the result leaves out: the second copy of tied embeddings."""
    config: dict[str, object] = field(default_factory=dict)
    """Entries that the result's config.json replaces."""
    notes: tuple[str, ...] = ()
    """Notes for the user about how the adapters were read."""

    @property
    def names(self) -> tuple[str, ...]:
        """The result's tensors in the checkpoint's order; new ones are inserted by name."""
        names = [name for name in self.checkpoint.tensors if name not in self.dropped]
        for name in self.changes:
            if name not in self.checkpoint.tensors:
                later = (place for place, other in enumerate(names) if other > name)
                names.insert(next(later, len(names)), name)
        return tuple(names)


def describe(plan: MergePlan) -> str:
    """The plan as one line for people."""
    total = len(plan.names)
    if not plan.adapters:
        return f"no adapter: {total} tensors as they are"
    ranks = sorted(
        {
            pair.rank
            for weighted in plan.adapters
            for pair in weighted.adapter.pairs
            if not pair.nested
        }
    )
    kinds = ", ".join(dict.fromkeys(kind_text(weighted.adapter) for weighted in plan.adapters))
    rank = f", rank {', '.join(map(str, ranks))}" if ranks else ""
    return f'{len(plan.changes)} of {total} tensors changed by {kinds}{rank} ("{plan.dtype}" sums)'


def kind_text(adapter: AdapterSpec) -> str:
    """The adapter's kind under its usual name."""
    if adapter.kind != "LORA":
        return adapter.kind
    if not adapter.pairs and adapter.origin == "mlx":
        return "whole tensors"
    if adapter.config.get("use_dora"):
        return "DoRA"
    return "rsLoRA" if adapter.config.get("use_rslora") else "LoRA"
