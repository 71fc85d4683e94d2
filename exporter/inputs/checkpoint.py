"""A base model's folder in Hugging Face's layout: its config and the places of its tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from exporter.core.errors import CheckpointError
from exporter.core.paths import model_name
from exporter.inputs.lazy_tensor import Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened base model; no weight has been read."""

    folder: Path
    config: dict[str, object]
    """The config of the tensors as read; without quantization_config if they are dequantized."""
    tensors: dict[str, Tensor]
    """By hub name; shard by shard in name order, as llama.cpp's converter reads them."""
    title: str = ""
    """The name for people, if it is not the folder's."""
    quantized_as: str = ""
    """The kind of quantization that reading its tensors undoes; empty for plain weights."""
    fake_quantized_as: str = ""
    """The type of the fake quantization of its weights, such as nf4; empty without any."""

    @property
    def name(self) -> str:
        return self.title or model_name(self.folder)

    def with_plain(self, tensors: dict[str, Tensor]) -> Checkpoint:
        """The checkpoint with plain `tensors`, and without the quantization_config."""
        quantization = "quantization_config"
        config = {key: value for key, value in self.config.items() if key != quantization}
        return replace(self, config=config, tensors=tensors)

    @property
    def architecture(self) -> str:
        """The first class in config.json, such as LlamaForCausalLM.

        Raises CheckpointError if the config names none.
        """
        named = self.config.get("architectures")
        if isinstance(named, list) and named and isinstance(named[0], str):
            return named[0]
        raise self.nameless()

    def nameless(self) -> CheckpointError:
        """The error for a config without a class of model."""
        return CheckpointError(
            f"`{self.folder / 'config.json'}` names no architecture",
            hint='it needs a line such as "architectures": ["LlamaForCausalLM"]',
        )
