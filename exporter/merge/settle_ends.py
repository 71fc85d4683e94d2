"""What becomes of the two ends of a model, and of its vocabulary, once adapters are placed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.core.errors import UnsupportedError
from exporter.inputs.adapter import AdapterSpec, LoraPair
from exporter.inputs.adapter_kinds import changes_base
from exporter.inputs.lazy_tensor import Tensor, read_tensor
from exporter.merge.operations import AddRows, LoraSum, Replace, ReplaceRows, Residual, Step
from exporter.merge.targets import lost_rows
from exporter.merge.tied_embeddings import same_values

if TYPE_CHECKING:
    from exporter.merge.merge_plan import Planner


def settle_ends(planner: Planner, adapters: list[AdapterSpec]) -> None:
    """Decide what becomes of tied embeddings, and how many tokens the result has.

    Raises UnsupportedError for a change of an embedding that an encoder and a decoder share,
    AdapterError when only one of the two ends has grown.
    """
    ends, steps = planner.ends, planner.steps
    saved = [values for adapter in adapters for values in adapter.saved.values()]
    is_tied = ends.tied and bool(steps.get(ends.embedding) or steps.get(ends.head))
    if is_tied:
        if ends.is_shared:
            raise UnsupportedError(
                f"an adapter changes `{ends.embedding}`, which encoder, decoder and head share",
                hint="train without the shared embedding as a target",
            )
        share_saved(planner, saved)
        share_residual(planner)
    for name in (ends.embedding, ends.head):
        repeat_no_init(planner, name, saved)
    if is_tied:
        if stay_tied(planner):
            steps.pop(ends.head, None)
            planner.shapes.pop(ends.head, None)
            if ends.head in planner.checkpoint.tensors:
                planner.dropped.add(ends.head)
        else:
            steps.setdefault(ends.head, [])
            planner.config["tie_word_embeddings"] = False
    settle_vocabulary(planner)


def share_saved(planner: Planner, saved: list[Tensor]) -> None:
    """A base's embedding that was saved at one end of a tie is the other end's too."""
    ends = (planner.ends.embedding, planner.ends.head)
    for one, other in (ends, ends[::-1]):
        first = next(iter(planner.steps.get(one, ())), None)
        has_own = any(isinstance(step, Replace) for step in planner.steps.get(other, ()))
        if isinstance(first, Replace) and first.values in saved and not has_own:
            planner.steps[other] = [first, *planner.steps.get(other, ())]
            planner.shapes[other] = first.values.shape
            planner.grown.discard(other)


def share_residual(planner: Planner) -> None:
    """PiSSA and its like cut a part out of the one tensor that both ends of a tie share."""
    ends = planner.ends
    for step in list(planner.steps.get(ends.head, ())):
        if isinstance(step, LoraSum) and step.kind != "embedding" and is_cut(step):
            planner.steps.setdefault(ends.embedding, []).insert(0, Residual(step))


def is_cut(step: LoraSum) -> bool:
    return changes_base(step.adapter.config)


def repeat_no_init(planner: Planner, name: str, saved: list[Tensor]) -> None:
    """A weight that PEFT saved beside a LoRA is what the initialization left of the base's."""
    steps = planner.steps.get(name, [])
    if any(isinstance(step, Replace) and step.values in saved for step in steps):
        planner.steps[name] = [
            replace(step, replays_init=False) if isinstance(step, LoraSum) else step
            for step in steps
            if not isinstance(step, Residual)
        ]


def stay_tied(planner: Planner) -> bool:
    """Whether both ends of a tie change alike, as they did in training."""
    embedding, head = (
        planner.steps.get(name, []) for name in (planner.ends.embedding, planner.ends.head)
    )
    if not head and all(
        isinstance(step, LoraSum) and step.adapter.origin == "mlx" for step in embedding
    ):
        return True  # mlx-lm trains everything at both ends
    # PEFT trains single tokens at both ends of a tie, and saves them once
    if not any(isinstance(step, ReplaceRows) for step in head) and all(
        isinstance(step, Replace) for step in head
    ):
        embedding = [step for step in embedding if not isinstance(step, ReplaceRows)]
    return len(embedding) == len(head) and all(map(are_alike, embedding, head))


def are_alike(one: Step, other: Step) -> bool:
    """Whether what is done to the embedding is done to the head, too.

    PEFT's ensure_weight_tying gives the head the embedding's matrices, transposed; where it
    failed to keep them one, as it does on 16-bit bases, the two ends were trained apart.
    """
    match one, other:
        case Replace(), Replace():
            return one.values == other.values or same_values(one.values, other.values)
        case ReplaceRows(), ReplaceRows():
            return one.rows == other.rows and same_values(one.values, other.values)
        case LoraSum(), LoraSum():
            asked = one.adapter == other.adapter and one.adapter.config.get("ensure_weight_tying")
            return bool(asked) and are_transposed(one.pair, other.pair)
        case _:
            return False


def are_transposed(one: LoraPair, other: LoraPair) -> bool:
    a, b = read_tensor(one.a), read_tensor(one.b)
    return bool((a == read_tensor(other.b).T).all() and (b == read_tensor(other.a).T).all())


def settle_vocabulary(planner: Planner) -> None:
    """A grown vocabulary must have grown at both ends, and the config must say so."""
    ends = planner.ends
    names = [
        name
        for name in (ends.embedding, ends.head)
        if (name in planner.steps or name in planner.checkpoint.tensors)
        and name not in planner.dropped
    ]
    grow(planner, names)
    sizes = {name: planner.shape(name)[0] for name in names}
    grown = {name for name, rows in sizes.items() if was(planner, name) not in (None, rows)}
    if grown and len(set(sizes.values())) > 1:
        most = max(sizes.values())
        name = next(name for name, rows in sizes.items() if rows != most)
        raise lost_rows(name, most, was(planner, name) or 0)
    if grown:
        planner.config["vocab_size"] = sizes[min(grown)]


def grow(planner: Planner, names: list[str]) -> None:
    """Give the ends that were trained on new tokens alone the rows of all new tokens."""
    rows = max((planner.shape(name)[0] for name in names), default=0)
    for name in sorted(planner.grown & set(names)):
        first, trained = was(planner, name) or 0, set[int]()
        for step in planner.steps[name]:
            if isinstance(step, ReplaceRows):
                trained.update(step.rows)
        if unknown := [row for row in range(first, rows) if row not in trained]:
            planner.notes.append(
                f"the adapter holds no values of {len(unknown)} new tokens of `{name}`, such as"
                f" {unknown[0]}: they get the mean of the base's, as if they were never trained"
            )
        planner.steps[name] = [AddRows(rows), *planner.steps[name]]
        planner.shapes[name] = (rows, *planner.shape(name)[1:])


def was(planner: Planner, name: str) -> int | None:
    """How many rows the base has for a name."""
    source = planner.source(name)
    return source.shape[0] if source else None
