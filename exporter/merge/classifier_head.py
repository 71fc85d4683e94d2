"""Adapters that turn a base into a classifier: the result's class, config and dropped tensors.

The base's config names a language model or a bare encoder; the adapter adds the head. The result
must name transformers' class for both together, or transformers loads it without its head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.atomic_file import read_json_object
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

TASKS = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
"""PEFT's task_type -> the name of transformers' table of classes for it."""
OTHER_HEADS = ("lm_head", "embed_out", "cls", "decoder", "predictions", "generator_predictions",
               "vocab_transform", "vocab_layer_norm", "vocab_projector", "pooler", "head",
               "qa_outputs")  # fmt: skip
"""Parts of a base that a classifier may lack."""
FROM_TRAINING = ("problem_type", "pad_token_id")
"""Settings of a config beside the adapter that belong to the classifier."""
COUNT = 7919  # labels of a model that is built to find the matrix with one row per label


@dataclass(frozen=True, slots=True)
class Classifier:
    """The changes that turn the base into a classifier."""

    config: dict[str, object]
    """Entries that the result's config.json replaces."""
    dropped: frozenset[str]
    """Tensors of the base that the classifier lacks: a language model's head."""


def find_classifier(
    checkpoint: Checkpoint, adapters: Iterable[AdapterSpec], shapes: Mapping[str, tuple[int, ...]]
) -> Classifier | None:
    """The classifier that `adapters` turn the base into; None if they do not.

    shapes: shapes of the tensors that adapters add. Raises AdapterError if a part of the classifier
    is saved nowhere, UnsupportedError if transformers has no such class.
    """
    trained = [adapter for adapter in adapters if str(adapter.config.get("task_type")) in TASKS]
    if not trained:
        return None
    architecture = class_name(checkpoint, trained[-1])
    if checkpoint.architecture == architecture:
        return None
    prefix, expected = layout(checkpoint, architecture)
    inner = f"{prefix}."
    if not any(name in expected or inner + name in expected for name in checkpoint.tensors):
        raise UnsupportedError(
            f"{architecture} calls its parts `{prefix}.…`, and `{checkpoint.folder}` has"
            f" `{next(iter(checkpoint.tensors))}`: transformers would not find them",
            hint="merge it with peft itself: merge_and_unload(), then save_pretrained()",
        )
    here = {name.removeprefix(inner) for name in (*checkpoint.tensors, *shapes)}
    parts = {name.removeprefix(inner).partition(".")[0] for name in expected}
    outside = [name for name in expected if not name.startswith(inner) or ".pooler." in name]
    missing = [name for name in outside if name.removeprefix(inner) not in here]
    if missing:
        raise AdapterError(
            f"`{missing[0]}` of {architecture} is neither in the base nor in the adapter:"
            " training began it at random and did not save it",
            hint="train again with modules_to_save naming every part of the head"
            f" ({', '.join(sorted({part_of(name, inner) for name in missing}))})",
        )
    dropped = (
        name
        for name in checkpoint.tensors
        if part_of(name, inner) in OTHER_HEADS and part_of(name, inner) not in parts
    )
    sizes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()} | dict(shapes)
    rows = next(sizes[name][0] for name in expected if name in sizes and COUNT in expected[name])
    config = labels(trained[-1], rows) | {"architectures": [architecture]}
    return Classifier(config, frozenset(dropped))


def part_of(name: str, inner: str) -> str:
    return name.removeprefix(inner).partition(".")[0]


def class_name(checkpoint: Checkpoint, adapter: AdapterSpec) -> str:
    """transformers' class for the base's type and the adapter's task. Raises UnsupportedError."""
    from transformers.models.auto import modeling_auto

    task, kind = str(adapter.config["task_type"]), checkpoint.config.get("model_type")
    found = getattr(modeling_auto, TASKS[task]).get(kind)
    if not isinstance(found, str):
        raise UnsupportedError(
            f"`{adapter.folder}` is a classifier ({task}), but transformers has none of the"
            f" kind {kind!r}",
            hint="is the base the one it was trained on? pass that as --base",
        )
    return found


def layout(checkpoint: Checkpoint, architecture: str) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The class's name for the base inside it, and its tensors' shapes; allocates no values."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**checkpoint.config)
    config.num_labels = COUNT
    with torch.device("meta"):
        model: torch.nn.Module = getattr(transformers, architecture)(config)
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    return str(getattr(model, "base_model_prefix", "")), shapes


def labels(adapter: AdapterSpec, count: int) -> dict[str, object]:
    """The label names from a config saved beside the adapter, else LABEL_0 …, with its settings."""
    path = adapter.folder / "config.json"
    config = (
        read_json_object(path, error=AdapterError, hint="remove it, or save it again")
        if path.is_file()
        else {}
    )
    names = {str(n): f"LABEL_{n}" for n in range(count)}
    given = config.get("id2label")
    if isinstance(given, dict) and given.keys() == names.keys():
        names = {number: str(given[number]) for number in names}
    numbers = {name: int(number) for number, name in names.items()}
    kept = {key: config[key] for key in FROM_TRAINING if config.get(key) is not None}
    return {"id2label": names, "label2id": numbers, **kept}
