"""llama.cpp's model class for a base, for its names and rearrangements alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.convert import LazySource, find_class, hparams_of, tensors_from
from exporter.merge import MergedTensors
from exporter.steps import MergePlan

if TYPE_CHECKING:
    from pathlib import Path

    from exporter.checkpoint import Checkpoint


def converter_model(checkpoint: Checkpoint) -> Any:
    """llama.cpp's class for the base, ready to rename and rearrange; it reads no weight."""
    folder = checkpoint.folder
    return model_of_config(checkpoint, folder, hparams_of(checkpoint, folder))


def model_of_config(checkpoint: Checkpoint, folder: Path, hparams: dict[str, Any]) -> Any:
    """The same for a config of the caller's; folder: where config.json and tokenizer lie."""
    import gguf
    from conversion import ModelBase

    model_class, _ = find_class(hparams, "text")
    with tensors_from(LazySource(MergedTensors(MergePlan(checkpoint))), ModelBase):
        return model_class(
            folder,
            gguf.LlamaFileType.ALL_F32,
            folder / "unused.gguf",
            model_name=checkpoint.name,
            hparams=hparams,
        )
