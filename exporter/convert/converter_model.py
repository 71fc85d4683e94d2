"""Provides llama.cpp's model class of a base, for its names and rearrangements only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.convert.arrange import Arrange
from exporter.convert.lazy_source import LazySource, merged_tensors_indexed
from exporter.convert.to_gguf import find_class, hparams_of
from exporter.convert.upstream_hooks import upstream_hooks
from exporter.merge.apply import MergedTensors
from exporter.merge.operations import MergePlan

if TYPE_CHECKING:
    from pathlib import Path

    from exporter.inputs.checkpoint import Checkpoint


def converter_model(checkpoint: Checkpoint) -> tuple[Any, Arrange]:
    """llama.cpp's class for the base, ready to rename and rearrange, and decant's rearrangement.

    No weight is read. The rearrangement is applied to a tensor before the class gets it.
    """
    folder = checkpoint.folder
    return model_of_config(checkpoint, folder, hparams_of(checkpoint, folder, checkpoint.tensors))


def model_of_config(
    checkpoint: Checkpoint, folder: Path, hparams: dict[str, Any]
) -> tuple[Any, Arrange]:
    """llama.cpp's class, and decant's rearrangement, for a given config.

    folder: with config.json and the tokenizer.
    """
    import gguf

    model_class, architecture = find_class(hparams, "text", checkpoint.tensors)
    source = LazySource(MergedTensors(MergePlan(checkpoint)), hparams, architecture)
    with upstream_hooks(merged_tensors_indexed(source)):
        made = model_class(
            folder,
            gguf.LlamaFileType.ALL_F32,
            folder / "unused.gguf",
            model_name=checkpoint.name,
            hparams=hparams,
        )
    return made, source.arrange
