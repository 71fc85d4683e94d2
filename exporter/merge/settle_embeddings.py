"""Settles tied embeddings and the size of the vocabulary after all adapters are planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from exporter.core.errors import UnsupportedError
from exporter.inputs.adapter_kinds import changes_base
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair
from exporter.inputs.lazy_tensor import Tensor, read_tensor
from exporter.merge.merge_planner import Planner
from exporter.merge.operations import AddRows, LoraSum, Replace, ReplaceRows, Residual, Step
from exporter.merge.target_modules import lost_rows
from exporter.merge.tied_embeddings import Embeddings, same_values


@dataclass(frozen=True, slots=True)
class Settled:
    """The planned steps and all that depends on them; each function here returns the next state."""

    steps: Mapping[str, tuple[Step, ...]]
    """Steps of each changed tensor of the result."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes that differ from the base's."""
    grown: frozenset[str]
    """Embedding matrices that get new rows from an adapter that does not hold the whole matrix."""
    dropped: frozenset[str]
    """Tensors that the result leaves out."""
    config: Mapping[str, object]
    """Entries that the result's config.json replaces."""
    notes: tuple[str, ...]

    def of(self, name: str) -> tuple[Step, ...]:
        return self.steps.get(name, ())

    def shape(self, name: str, planner: Planner) -> tuple[int, ...]:
        """The shape of a tensor in the result."""
        return self.shapes[name] if name in self.shapes else planner.base_shape(name)

    def with_steps(self, name: str, steps: Iterable[Step]) -> Settled:
        return replace(self, steps={**self.steps, name: tuple(steps)})

    def with_shape(self, name: str, shape: tuple[int, ...]) -> Settled:
        return replace(self, shapes={**self.shapes, name: shape})


def settle_embeddings(planner: Planner, adapters: list[AdapterSpec]) -> Settled:
    """Decide whether tied embeddings stay tied, and how many tokens the result has.

    Raises UnsupportedError for a change of an embedding that an encoder and a decoder share,
    AdapterError if only one of the two matrices has grown.
    """
    both = planner.embeddings
    saved = [values for adapter in adapters for values in adapter.saved.values()]
    found = planned_so_far(planner)
    is_changed = both.tied and bool(found.of(both.embedding) or found.of(both.head))
    if is_changed and both.is_shared:
        raise UnsupportedError(
            f"an adapter changes `{both.embedding}`, which encoder, decoder and head share",
            hint="train without the shared embedding as a target",
        )
    if is_changed:
        found = share_residual(share_saved(found, both, saved), both)
    for name in (both.embedding, both.head):
        found = without_init(found, name, saved)
    if is_changed:
        found = tied(found, both, planner) if stay_tied(found, both) else untied(found, both)
    return settle_vocabulary(found, planner)


def planned_so_far(planner: Planner) -> Settled:
    return Settled(
        {name: tuple(steps) for name, steps in planner.steps.items()},
        dict(planner.shapes),
        frozenset(planner.grown),
        frozenset(planner.dropped),
        dict(planner.config),
        tuple(planner.notes),
    )


def share_saved(found: Settled, both: Embeddings, saved: list[Tensor]) -> Settled:
    """Use an embedding that was saved for one of two tied matrices for the other one, too.

    saved: the base's embeddings in the adapters, (tokens, width).
    """
    pair = (both.embedding, both.head)
    for one, other in (pair, pair[::-1]):
        first = next(iter(found.of(one)), None)
        has_own = any(isinstance(step, Replace) for step in found.of(other))
        if isinstance(first, Replace) and first.values in saved and not has_own:
            found = found.with_steps(other, (first, *found.of(other)))
            found = found.with_shape(other, first.values.shape)
            found = replace(found, grown=found.grown - {other})
    return found


def share_residual(found: Settled, both: Embeddings) -> Settled:
    """Apply the cut of PiSSA and the like to both matrices: it changes their shared tensor."""
    for step in found.of(both.head):
        if isinstance(step, LoraSum) and step.kind != "embedding" and is_cut(step):
            found = found.with_steps(both.embedding, (Residual(step), *found.of(both.embedding)))
    return found


def is_cut(step: LoraSum) -> bool:
    return changes_base(step.adapter.config)


def without_init(found: Settled, name: str, saved: list[Tensor]) -> Settled:
    """Skip a LoRA's initialization if PEFT saved the weight that remained after it.

    saved: the base's embeddings in the adapters, (tokens, width).
    """
    steps = found.of(name)
    if not any(isinstance(step, Replace) and step.values in saved for step in steps):
        return found
    kept = (step for step in steps if not isinstance(step, Residual))
    return found.with_steps(
        name,
        (replace(step, replays_init=False) if isinstance(step, LoraSum) else step for step in kept),
    )


def tied(found: Settled, both: Embeddings, planner: Planner) -> Settled:
    """Leave out the head: the model uses the embedding as its head."""
    stored = {both.head} & planner.checkpoint.tensors.keys()
    return replace(
        found,
        steps={name: steps for name, steps in found.steps.items() if name != both.head},
        shapes={name: shape for name, shape in found.shapes.items() if name != both.head},
        dropped=found.dropped | stored,
    )


def untied(found: Settled, both: Embeddings) -> Settled:
    """Write the head as a separate tensor."""
    config = {**found.config, "tie_word_embeddings": False}
    return replace(found.with_steps(both.head, found.of(both.head)), config=config)


def stay_tied(found: Settled, both: Embeddings) -> bool:
    """Whether both matrices of a tie change alike, as they did in training."""
    embedding, head = found.of(both.embedding), found.of(both.head)
    if not head and all(
        isinstance(step, LoraSum) and step.adapter.origin == "mlx" for step in embedding
    ):
        return True  # mlx-lm trains the shared tensor
    # PEFT trains single tokens in the shared tensor, and saves them once
    if not any(isinstance(step, ReplaceRows) for step in head) and all(
        isinstance(step, Replace) for step in head
    ):
        embedding = tuple(step for step in embedding if not isinstance(step, ReplaceRows))
    return len(embedding) == len(head) and all(map(are_alike, embedding, head))


def are_alike(one: Step, other: Step) -> bool:
    """Whether a step of the embedding and one of the head have the same effect.

    PEFT's ensure_weight_tying gives the head the embedding's matrices, transposed. On 16-bit bases
    PEFT does not keep them shared, and the two pairs are trained separately.
    """
    match one, other:
        case Replace(), Replace():
            return one.values == other.values or same_values(one.values, other.values)
        case ReplaceRows(), ReplaceRows():
            return one.rows == other.rows and same_values(one.values, other.values)
        case LoraSum(), LoraSum():
            ensures_tying = one.adapter == other.adapter and one.adapter.config.get(
                "ensure_weight_tying"
            )
            return bool(ensures_tying) and are_transposed(one.pair, other.pair)
        case _:
            return False


def are_transposed(one: LoraPair, other: LoraPair) -> bool:
    a, b = read_tensor(one.a), read_tensor(one.b)
    return bool((a == read_tensor(other.b).T).all() and (b == read_tensor(other.a).T).all())


def settle_vocabulary(found: Settled, planner: Planner) -> Settled:
    """Check that a grown vocabulary has grown in both matrices, and write its size to the config.

    Raises AdapterError if the adapter holds only one of them.
    """
    names = [
        name
        for name in (planner.embeddings.embedding, planner.embeddings.head)
        if (name in found.steps or name in planner.checkpoint.tensors) and name not in found.dropped
    ]
    found = grow(found, names, planner)
    sizes = {name: found.shape(name, planner)[0] for name in names}
    grown = {name for name, rows in sizes.items() if planner.base_rows(name) not in (None, rows)}
    if grown and len(set(sizes.values())) > 1:
        most = max(sizes.values())
        name = next(name for name, rows in sizes.items() if rows != most)
        raise lost_rows(name, most, planner.base_rows(name) or 0)
    if not grown:
        return found
    return replace(found, config={**found.config, "vocab_size": sizes[min(grown)]})


def grow(found: Settled, names: list[str], planner: Planner) -> Settled:
    """Add rows for all new tokens to embeddings of which an adapter trained only some rows."""
    rows = max((found.shape(name, planner)[0] for name in names), default=0)
    for name in sorted(found.grown & set(names)):
        first, trained = planner.base_rows(name) or 0, set[int]()
        for step in found.of(name):
            if isinstance(step, ReplaceRows):
                trained.update(step.rows)
        if unknown := [row for row in range(first, rows) if row not in trained]:
            note = (
                f"the adapter holds no values of {len(unknown)} new tokens of `{name}`, such as"
                f" {unknown[0]}: they get the mean of the base's, as if they were never trained"
            )
            found = replace(found, notes=(*found.notes, note))
        found = found.with_steps(name, (AddRows(rows), *found.of(name)))
        found = found.with_shape(name, (rows, *found.shape(name, planner)[1:]))
    return found
