"""Collects what a merge does to each tensor, while adapters are added in turn."""

from __future__ import annotations

from dataclasses import replace

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.inputs.adapter_kinds import is_set
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair, scaling_of
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import Tensor
from exporter.inputs.module_names import Names
from exporter.inputs.name_wrappers import is_value_head
from exporter.merge.classifier_head import find_classifier
from exporter.merge.moe_experts import (
    STACK,
    add_pair_of_one,
    is_targeted,
    plan_experts,
    plan_single,
    stack_parts,
)
from exporter.merge.operations import (
    BiasSum,
    Combination,
    CombinedSum,
    LoraSum,
    PartSum,
    Replace,
    ReplaceRows,
    StackSum,
    Step,
    Tuned,
    WeightedAdapter,
)
from exporter.merge.target_modules import (
    Problems,
    is_new_module,
    lost_rows,
    trained_rows,
    weight_layout,
)
from exporter.merge.tied_embeddings import Embeddings, find_embeddings, lacks_head, same_values


class Planner:
    """Collects the steps of each tensor while adapters are added in turn."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.names = Names(checkpoint)
        self.embeddings: Embeddings = find_embeddings(checkpoint)
        self.steps: dict[str, list[Step]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dropped: set[str] = set()
        self.config: dict[str, object] = {}
        self.notes: list[str] = []
        self.grown: set[str] = set()
        """Embedding matrices that get new rows from an adapter that does not hold the whole
        matrix.
        """
        self.adapter_steps: set[tuple[str, type]] = set()

    def look_at_base(self) -> None:
        """Drop a value head, and note a head that is missing."""
        if heads := [name for name in self.checkpoint.tensors if is_value_head(name)]:
            self.dropped.update(heads)
            self.notes.append(f"`{heads[0]}` is left out: a value head judges texts, writes none")
        if lacks_head(self.checkpoint, self.embeddings):
            self.notes.append(
                f"`{self.embeddings.head}` is in no file of `{self.checkpoint.folder}`, and its"
                " config.json says that it is no copy of the embedding: the embedding is taken"
                " for it, and may not be what was trained; is the folder complete?"
            )

    def source(self, name: str) -> Tensor | None:
        """The tensor that holds the base's values; for a tied head the embedding."""
        if self.embeddings.tied and name == self.embeddings.head:
            name = self.embeddings.embedding
        return self.checkpoint.tensors.get(name)

    def tensor(self, name: str) -> str | None:
        """The result's name for a tensor of the model; a tied head counts as existing."""
        if self.embeddings.tied and name == self.embeddings.head_in_memory:
            return self.embeddings.head
        return self.names.tensor(name)

    def add(self, weighted: WeightedAdapter) -> None:
        """Plan every tensor of one adapter. Raises AdapterError for those that do not fit."""
        adapter, problems = weighted.adapter, Problems(weighted.adapter, self.checkpoint)
        self.adapter_steps.clear()
        for name, values in {**adapter.saved, **adapter.values}.items():
            self.add_values(adapter, name, values, problems)
        for module, values in adapter.rows.items():
            self.add_rows(adapter, module, values, problems)
        for pair in adapter.pairs:
            self.add_pair(weighted, pair, problems)
        if adapter.tuner:
            self.add_tuner(weighted, problems)
        problems.refuse(some_fit=bool(self.adapter_steps))

    def add_values(
        self, adapter: AdapterSpec, stored: str, values: Tensor, problems: Problems
    ) -> None:
        """Plan a whole tensor, of the shape of the one that it replaces; a vocabulary may have
        grown.
        """
        name = self.tensor(stored) or self.names.parameter(stored)
        if name is None and (parts := stack_parts(stored, values, self.names)):
            for part_name, part in parts.items():
                self.replace(part_name, part, problems)
            return
        if name is None:
            if not is_new_module(stored, adapter):
                problems.missing.append(stored)
                return
            name = stored
            self.shapes[name] = values.shape
        self.replace(name, values, problems, repeats=stored in adapter.saved)

    def replace(
        self, name: str, values: Tensor, problems: Problems, *, repeats: bool = False
    ) -> None:
        """Plan new values for a tensor. repeats: the values are the base's, saved beside a LoRA.

        Raises AdapterError if two adapters replace the same tensor.
        """
        base = self.shape(name)
        grows = (
            name in (self.embeddings.embedding, self.embeddings.head)
            and base[1:] == values.shape[1:]
        )
        if base != values.shape and not grows:
            problems.misfit(name, base, values.shape)
            return
        before = next((s for s in self.steps.get(name, ()) if isinstance(s, Replace)), None)
        if before and repeats and same_values(before.values, values):
            return
        if before:
            raise AdapterError(
                f"two adapters replace `{name}` as a whole; only one of them can have it",
                hint="leave one of them out",
            )
        self.change(name, Replace(values))
        self.shapes[name] = values.shape

    def add_rows(
        self, adapter: AdapterSpec, module: str, values: Tensor, problems: Problems
    ) -> None:
        """Plan new rows of an embedding, which may extend it."""
        name = self.tensor(f"{module}.weight")
        if name is None:
            problems.missing.append(module)
            return
        rows, shape = trained_rows(adapter, module), self.grown_shape(name)
        needed = max(rows, default=-1) + 1
        is_end = name in (self.embeddings.embedding, self.embeddings.head)
        if len(rows) != values.shape[0] or values.shape[1:] != shape[1:]:
            problems.misfit(f"rows {list(rows)[:8]} of {name}", shape, values.shape)
            return
        if needed > self.shape(name)[0]:
            if not is_end:
                problems.misfit(f"rows {list(rows)[:8]} of {name}", shape, values.shape)
                return
            self.grown.add(name)
            self.shapes[name] = (max(needed, shape[0]), *shape[1:])
        self.change(name, ReplaceRows(values, rows))

    def add_pair(self, weighted: WeightedAdapter, pair: LoraPair, problems: Problems) -> None:
        """Plan one pair: added to a weight, to experts, or to rows of a fused tensor."""
        adapter = weighted.adapter
        name = self.tensor(f"{pair.module}.weight")
        if name is None or len(self.shape(name)) == STACK:
            self.add_experts(weighted, pair, problems)
            return
        kind = weight_layout(pair, name, self.checkpoint)
        n_out, n_in = pair.b.shape[0], pair.a.shape[1]
        fits = (n_out, n_in) if kind == "linear" else (n_in, n_out)
        # BD-LoRA's blocks do not show the matrix's size; PEFT's layer refuses a misfit
        base = self.grown_shape(name)
        if not is_set(adapter.config.get("use_bdlora")) and base != fits:
            if name in (self.embeddings.embedding, self.embeddings.head) and base[1:] == fits[1:]:
                raise lost_rows(name, fits[0], self.base_rows(name) or 0)
            problems.misfit(name, base, fits)
            return
        if is_targeted(adapter, f"{pair.module}.weight"):
            self.change(name, plan_single(adapter, pair, scale=weighted.scale))
            return
        scaling = scaling_of(adapter, pair)
        self.change(name, LoraSum(adapter, pair, kind, scaling.value, weighted.scale))
        if bias := pair.extras.get("lora_B.bias"):
            self.add_bias(name, BiasSum(bias, scaling.value * weighted.scale), problems)

    def add_bias(self, weight: str, step: BiasSum, problems: Problems) -> None:
        """Plan a LoRA's bias. Raises UnsupportedError if the base's layer has none."""
        name = f"{weight.removesuffix('.weight')}.bias"
        if name not in self.checkpoint.tensors:
            raise UnsupportedError(
                f"the adapter gives `{weight}` a bias (lora_bias=True), and the base's layer has"
                " none that it could be added to",
                hint="use it with peft itself, unmerged: peft cannot merge it either",
            )
        if (base := self.shape(name)) != step.values.shape:
            problems.misfit(name, base, step.values.shape)
        else:
            self.change(name, step)

    def add_experts(self, weighted: WeightedAdapter, pair: LoraPair, problems: Problems) -> None:
        """Plan a pair of stacked experts, of a single expert, or else of a fused tensor."""
        found = plan_experts(weighted.adapter, pair, self.names, scale=weighted.scale)
        one = add_pair_of_one(weighted, pair, self.names) if not found else None
        if isinstance(found, str) or isinstance(one, str):
            problems.misfits.append(found if isinstance(found, str) else str(one))
        elif one:
            self.join(one[0], one[1])
        elif not found:
            self.add_rows_of_fused(weighted, pair, problems)
        else:
            for name, step in found.items():
                self.change(name, step)

    def add_rows_of_fused(
        self, weighted: WeightedAdapter, pair: LoraPair, problems: Problems
    ) -> None:
        """Plan a module that is some rows of a tensor of the checkpoint, such as q of a fused
        qkv.
        """
        part = self.names.part(f"{pair.module}.weight")
        if part is None or pair.extras.get("lora_B.bias"):
            problems.lack(pair)
            return
        shape, fits = self.shape(part.tensor), (pair.b.shape[0], pair.a.shape[1])
        if (shape[0] // part.count, *shape[1:]) != fits or shape[0] % part.count:
            problems.misfit(f"1/{part.count} of {part.tensor}", shape, fits)
            return
        scaling = scaling_of(weighted.adapter, pair).value
        step = LoraSum(weighted.adapter, pair, "linear", scaling, weighted.scale)
        self.join(part.tensor, PartSum(((part.index * fits[0], step),)))

    def join(self, name: str, step: StackSum | PartSum) -> None:
        """Add one part of a step; parts of the same adapter form one step of the tensor."""
        last = next(iter(self.steps.get(name, ())[-1:]), None)
        if (name, type(step)) not in self.adapter_steps:
            self.change(name, step)
        elif isinstance(last, StackSum) and isinstance(step, StackSum):
            self.steps[name][-1] = replace(last, parts=last.parts + step.parts)
        elif isinstance(last, PartSum) and isinstance(step, PartSum):
            self.steps[name][-1] = PartSum(last.parts + step.parts)

    def add_tuner(self, weighted: WeightedAdapter, problems: Problems) -> None:
        """Plan a tuner other than LoRA, on each of its modules whose weight the checkpoint has.

        Raises UnsupportedError for a scale, which such tuners do not have.
        """
        adapter = weighted.adapter
        if weighted.scale != 1:
            raise UnsupportedError(
                f"`{adapter.folder}` is a {adapter.kind} adapter, which has no scale to change",
                hint="leave out --scale",
            )
        for module in tuned_modules(adapter, self):
            name = self.tensor(f"{module}.weight")
            weight = self.source(name or "")
            assert name is not None
            assert weight is not None
            bias = self.checkpoint.tensors.get(f"{name.removesuffix('.weight')}.bias")
            self.change(name, Tuned(adapter, module, weight, bias))
            if bias:
                self.change(bias.name, Tuned(adapter, module, weight, bias, changes_bias=True))
        if not any(isinstance(step, Tuned) for steps in self.steps.values() for step in steps):
            problems.missing.append(next(iter(adapter.tuner)))

    def combine(self, how: Combination) -> None:
        """Combine the LoRAs of each tensor into one step. Raises UnsupportedError for other
        steps.
        """
        for name, steps in self.steps.items():
            sums = tuple(step for step in steps if isinstance(step, LoraSum))
            if len(sums) != len(steps) or not all(s.adapter.is_plain for s in sums):
                raise UnsupportedError(
                    f"--combine {how} cannot mix what the adapters do to `{name}`:"
                    " only plain LoRA can be combined",
                    hint="leave out --combine: the adapters are then merged one after the other",
                )
            self.steps[name] = [CombinedSum(sums, how)]

    def become_classifier(self, adapters: list[AdapterSpec]) -> None:
        """Replace the language model's head if an adapter brings a classifier's."""
        added = {n: s for n, s in self.shapes.items() if n not in self.checkpoint.tensors}
        if made := find_classifier(self.checkpoint, adapters, added):
            self.config |= made.config
            self.dropped |= made.dropped
            self.embeddings = replace(self.embeddings, head="", tied=False)

    def change(self, name: str, step: Step) -> None:
        """Add a step. Raises AdapterError for two of a kind from one adapter on one tensor."""
        if (name, type(step)) in self.adapter_steps:
            raise AdapterError(
                f"two of the adapter's modules land on `{name}`",
                hint="its tensors' names are of two models; save it again",
            )
        self.adapter_steps.add((name, type(step)))
        self.steps.setdefault(name, []).append(step)

    def grown_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; for tied embeddings, of the one that has grown."""
        both = (self.embeddings.embedding, self.embeddings.head)
        if self.embeddings.tied and name in both:
            return max(self.shape(one) for one in both)
        return self.shape(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape after the steps so far."""
        return self.shapes[name] if name in self.shapes else self.base_shape(name)

    def base_rows(self, name: str) -> int | None:
        """Rows of a matrix in the base; None if the base lacks it."""
        source = self.source(name)
        return source.shape[0] if source else None

    def base_shape(self, name: str) -> tuple[int, ...]:
        source = self.source(name)
        assert source is not None, name
        return source.shape


def tuned_modules(adapter: AdapterSpec, planner: Planner) -> list[str]:
    """The modules that another tuner changes, under the adapter's names."""
    found: dict[str, None] = {}
    for name in adapter.tuner:
        module = name
        while module := module.rpartition(".")[0]:
            if planner.tensor(f"{module}.weight"):
                found[module] = None
                break
    return list(found)
