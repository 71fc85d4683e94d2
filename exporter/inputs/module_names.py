"""Finds the modules that an adapter names in a checkpoint.

The model in memory and the checkpoint on disk spell names differently: a base saved without its
head lacks a prefix, vision-language models moved theirs between versions of transformers, and
transformers 5 stacks experts that the checkpoint keeps apart. Nothing is renamed on output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from exporter.core.errors import AdapterError
from exporter.inputs.checkpoint import Checkpoint

# words before a decoder's names, in any order and spelling
ROOTS = {"model", "language_model", "text_model", "transformer", "gpt_neox", "base_model",
         "bert", "roberta", "distilbert", "deberta", "electra", "rwkv", "backbone"}  # fmt: skip
Found = TypeVar("Found")
EXPERTS = ".experts."
ROUTER_LAYER = ".router.linear"  # 4-bit trainers wrap a router without a linear layer in one


@dataclass(frozen=True, slots=True)
class RowRange:
    """One of several equal row ranges of a tensor."""

    tensor: str
    """The whole tensor's name in the checkpoint."""
    index: int
    count: int
    """The number of parts."""


@dataclass(frozen=True, slots=True)
class MemoryNames:
    """Names in transformers' memory -> names in the checkpoint."""

    modules: dict[str, str]
    tensors: dict[str, str]
    parts: dict[str, RowRange] = field(default_factory=dict)
    """Row ranges of a checkpoint tensor: q_proj of a fused qkv."""


class Names:
    """Looks up a checkpoint's modules by the names that adapters use."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Names of a checkpoint; transformers is asked only when these names do not suffice."""
        self.checkpoint = checkpoint

    @cached_property
    def modules(self) -> dict[str, str]:
        """Every name that a tensor or another module is nested in, mapped to itself."""
        found = {}
        for name in self.checkpoint.tensors:
            while name := name.rpartition(".")[0]:
                found[name] = name
        return found

    def module(self, name: str) -> str | None:
        """The checkpoint's name of a module. Raises AdapterError if several match equally well."""
        found = find(name, self.modules) or find(name, self.renamed.modules)
        if found is None and name.endswith(ROUTER_LAYER):
            return self.module(name.removesuffix(".linear"))
        return found

    def tensor(self, name: str) -> str | None:
        """The checkpoint's name of a tensor, found through its module."""
        return self.plain_tensor(name) or self.leaf_of(self.module(name.rpartition(".")[0]), name)

    def plain_tensor(self, name: str) -> str | None:
        """The checkpoint's name of a tensor, from its names alone, without transformers."""
        if name in self.checkpoint.tensors:
            return name
        return self.leaf_of(find(name.rpartition(".")[0], self.modules), name)

    def leaf_of(self, module: str | None, name: str) -> str | None:
        found = f"{module}.{name.rpartition('.')[2]}"
        return found if module and found in self.checkpoint.tensors else None

    def parameter(self, name: str) -> str | None:
        """The checkpoint's tensor for a parameter that transformers may name differently.

        GraniteMoE's `experts.gate_up_proj` is `input_linear.weight` on disk.
        """
        return self.tensor(name) or find(name, self.renamed.tensors)

    def part(self, name: str) -> RowRange | None:
        """The rows of a larger tensor that hold a tensor of transformers' model."""
        return find(name, self.renamed.parts)

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """The names of a module's direct parameters, in the order of its class."""
        return self.declared.get(module) or find(module, self.declared) or ()

    @cached_property
    def declared(self) -> dict[str, tuple[str, ...]]:
        """The direct parameters of every module of transformers' model, by module name."""
        modules = self.model.named_modules() if self.model is not None else ()
        return {
            name: tuple(leaf for leaf, _ in module.named_parameters(recurse=False))
            for name, module in modules
        }

    @cached_property
    def model(self) -> Any:
        """transformers' model for the config, without weights; None for an unknown class."""
        return model_without_weights(self.checkpoint)

    @cached_property
    def conversions(self) -> list[Any]:
        """The renamings and conversions that transformers applies when it loads the checkpoint."""
        try:
            from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        except ImportError:
            return []
        config = self.checkpoint.config
        text = config.get("text_config")
        kinds = (config, text) if isinstance(text, dict) else (config,)
        found = (get_checkpoint_conversion_mapping(kind.get("model_type")) for kind in kinds)
        return [conversion for mapping in found for conversion in mapping or ()]

    @cached_property
    def renamed(self) -> MemoryNames:
        """Names in transformers' memory that differ from the checkpoint's."""
        try:
            from transformers.core_model_loading import WeightConverter, rename_source_key
        except ImportError:
            return MemoryNames({}, {})
        model = self.model
        if model is None:
            return MemoryNames({}, {})
        mapping = conversions_of(model)
        converters = [c for c in mapping if isinstance(c, WeightConverter)]
        renamings = [c for c in mapping if not isinstance(c, WeightConverter)]
        found, memory = MemoryNames({}, {}), model.state_dict()
        for name in self.checkpoint.tensors:
            key, stacked = rename_source_key(
                name, renamings, converters, model.base_model_prefix, memory
            )
            parent, _, leaf = key.rpartition(".")
            if stacked is None:
                found.tensors[key] = name
                if leaf == name.rpartition(".")[2]:
                    found.modules[parent] = name.rpartition(".")[0]
            elif EXPERTS in name:
                found.modules[parent] = name.partition(EXPERTS)[0] + EXPERTS.rstrip(".")
            else:
                found.parts.update(chunks(key, name, stacked, converters))
        return found

    def stacked(self, module: str, parameter: str) -> tuple[tuple[str, ...], ...]:
        """A stacked parameter of transformers 5 as separate tensors, expert by expert.

        module: the name of an `experts` module; parameter: gate_up_proj or down_proj. Returns for
        each expert the weights whose rows follow each other in the stack; () without any.
        """
        parent = self.module(module)
        parts = self.parts_of(parameter)
        found: list[tuple[str, ...]] = []
        while parent and parts:
            names = tuple(f"{parent}.{len(found)}.{part}.weight" for part in parts)
            if not all(name in self.checkpoint.tensors for name in names):
                break
            found.append(names)
        return tuple(found)

    def parts_of(self, parameter: str) -> tuple[str, ...]:
        """The checkpoint's names of the parts of a stacked parameter, in order: ("w1", "w3")."""
        for conversion in self.conversions:
            targets = getattr(conversion, "target_patterns", [])
            operations = [type(op).__name__ for op in getattr(conversion, "operations", None) or ()]
            if (
                len(targets) == 1
                and targets[0].endswith(f"experts.{parameter}")
                and operations in (["MergeModulelist"], ["MergeModulelist", "Concatenate"])
            ):
                return tuple(source.split(".")[-2] for source in conversion.source_patterns)
        return {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(
            parameter, ()
        )


def chunks(key: str, name: str, pattern: str, converters: list[Any]) -> dict[str, RowRange]:
    """The tensors in memory that transformers cuts a checkpoint tensor into, by rows.

    key: the first one's name in memory; name: the checkpoint tensor's; pattern: the part of `name`
    that a converter matches.
    """
    for converter in converters:
        targets = converter.target_patterns
        cuts = [type(op).__name__ for op in converter.operations] == ["Chunk"]
        if pattern in converter.source_patterns and cuts and converter.operations[0].dim == 0:
            return {
                key.replace(targets[0], target, 1): RowRange(name, index, len(targets))
                for index, target in enumerate(targets)
                if targets[0] in key
            }
    return {}


def find(name: str, names: dict[str, Found]) -> Found | None:
    """The entry for a name, else for another spelling of it. Raises AdapterError for several."""
    if name in names:
        return names[name]
    hits = list(dict.fromkeys(names[spelled] for spelled in spellings(name) if spelled in names))
    if len(hits) > 1:
        raise AdapterError(
            f"the adapter's `{name}` could be any of"
            f" {', '.join(sorted(f'`{hit}`' for hit in hits))}",
            hint="pass the base it was trained on as --base",
        )
    return hits[0] if hits else None


def model_without_weights(checkpoint: Checkpoint) -> Any:
    """transformers' model for the checkpoint's config, without weights; None if unknown."""
    import torch
    import transformers

    kind = getattr(transformers, checkpoint.architecture, None)
    if kind is None:
        return None
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError):  # a model_type that transformers does not know
        return None
    with torch.device("meta"):
        return kind(config)


def conversions_of(model: Any) -> list[Any]:
    from transformers.conversion_mapping import get_model_conversion_mapping

    return list(get_model_conversion_mapping(model) or ())


def spellings(name: str) -> Iterator[str]:
    """The spellings of a module's name with other words of ROOTS, or none, in front."""
    words = name.split(".")
    while words and words[0] in ROOTS:
        words.pop(0)
    core = ".".join(words)
    if not core:
        return
    yield core
    for first in sorted(ROOTS):
        yield f"{first}.{core}"
        for second in sorted(ROOTS):
            yield f"{first}.{second}.{core}"
