"""The trained model: transformers' base with PEFT's adapters on it, not merged."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import AdapterError, CheckpointError, SpaceError, UnsupportedError
from exporter.core.events import Note, Report, silent
from exporter.core.machine import available_nbytes
from exporter.core.paths import size_text
from exporter.core.silence import quiet_libraries
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.peft_folder import peft_folder
from exporter.merge.operations import MergePlan, WeightedAdapter

if TYPE_CHECKING:
    import numpy as np

SHARE = 0.7  # of the free memory that a model may use
FLOAT32 = 4  # bytes
MISSING = "Found missing adapter keys while loading the checkpoint:"  # PEFT's warning
SHOWN = 160  # characters shown of the names
DECODERS = ("ForCausalLM", "LMHeadModel")
CONDITIONAL = "ForConditionalGeneration"


@contextmanager
def unmerged(
    plan: MergePlan, *, memory: int | None = None, report: Report = silent
) -> Iterator[Unmerged]:
    """Load the base in float32: whole if it fits, else layer by layer from disk.

    memory: bytes it may use; None measures the free memory. Raises UnsupportedError for a model
    that is not a decoder.
    """
    checkpoint = plan.checkpoint
    if not checkpoint.architecture.endswith(DECODERS) and not sees(checkpoint):
        raise UnsupportedError(
            f"logits are compared of decoders only, and this is a {checkpoint.architecture}",
            hint="`decant verify --light` checks its weights, tokenizer and settings",
        )
    budget = int(available_nbytes() * SHARE) if memory is None else memory
    needed = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()) * FLOAT32
    with quiet_libraries(), tempfile.TemporaryDirectory(prefix="decant-") as folder:
        placed: dict[str, Any] = {}
        if needed > budget:
            report(
                Note(
                    f"the base needs {size_text(needed)} in float32 and {size_text(budget)} may be"
                    " used: its layers go through a temporary file"
                )
            )
            placed = {
                "device_map": "auto", "max_memory": {"cpu": budget}, "offload_folder": folder
            }  # fmt: skip
        yield Unmerged(plan, load_base(checkpoint, plan, placed), placed)


def sees(checkpoint: Checkpoint) -> bool:
    """Whether a model is a decoder that also takes pictures."""
    conditional = checkpoint.architecture.endswith(CONDITIONAL)
    return conditional and isinstance(checkpoint.config.get("vision_config"), dict)


def load_base(checkpoint: Checkpoint, plan: MergePlan, placed: dict[str, Any]) -> Any:
    """Load transformers' model of the base.

    Raises UnsupportedError if transformers lacks a package or a tensor, CheckpointError if it
    cannot load the folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if sees(checkpoint) else AutoModelForCausalLM
    try:
        model, loaded = auto.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **placed,
        )
    except ImportError as error:  # a package that dequantizes AWQ's, GPTQ's … weights
        raise UnsupportedError(
            f"transformers cannot load `{checkpoint.folder}` here: {str(error).splitlines()[0]}",
            hint="`decant verify --light` checks without transformers' loading",
        ) from error
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"transformers cannot load `{checkpoint.folder}`: {error}", hint="is it complete?"
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise UnsupportedError(
            f"transformers itself does not find `{missing[0]}` in `{checkpoint.folder}`"
            f" ({len(missing)} such tensors), so that there is no right model to compare with",
            hint="`decant verify --light` checks without transformers' loading",
        )
    grown = plan.config.get("vocab_size")
    if isinstance(grown, int):
        model.resize_token_embeddings(grown, mean_resizing=False)
    return model.eval()


class Unmerged:
    """A loaded base to which adapters can be added."""

    def __init__(self, plan: MergePlan, model: Any, placed: dict[str, Any]) -> None:
        self.plan, self.model, self.placed = plan, model, placed

    def logits(self, chunks: Sequence[Sequence[int]]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the logits after every token of each chunk, (tokens, vocabulary) in float32."""
        import torch

        for chunk in chunks:
            ids = torch.tensor([list(chunk)])
            with self.computing():
                logits = self.model(input_ids=ids, use_cache=False).logits
            yield logits[0].float().numpy()

    def image_features(self, given: Mapping[str, Any]) -> Any:
        """The vision tower's output for a picture. given: the processor's output."""
        with self.computing():
            return self.model.get_image_features(**given)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients. Raises SpaceError if a needed weight is only on disk."""
        import torch

        guard = refuse_absent_weights() if self.placed else nullcontext()
        try:
            with torch.inference_mode(), guard:
                yield
        except RuntimeError as error:
            if not self.placed:
                raise
            raise SpaceError(
                f"this adapter needs the base's weights in memory, which they do not fit: {error}",
                hint="`decant verify --light` checks with little memory",
            ) from error

    def adapt(self) -> None:
        """Add the adapters; all but the last are merged, since only one can stay unmerged."""
        *others, last = self.plan.adapters
        for weighted in others:
            self.put_on(weighted)
            self.model = self.model.merge_and_unload()
        self.put_on(last)

    def put_on(self, weighted: WeightedAdapter) -> None:
        """Add one adapter with its scale. Raises AdapterError if PEFT cannot."""
        from peft import PeftModel

        folder = weighted.adapter.folder
        try:
            with (
                peft_folder(weighted.adapter) as saved,
                adapters_stay() if self.placed else nullcontext(),
                nothing_lost(saved),
            ):
                # otherwise PEFT distributes the model again, with the adapter
                vars(self.model).pop("hf_device_map", None)
                self.model = PeftModel.from_pretrained(
                    self.model,
                    str(saved),
                    torch_device="cpu",  # the base's device; PEFT would choose a GPU
                    low_cpu_mem_usage=bool(self.placed),
                ).eval()
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise AdapterError(
                f"peft cannot put `{folder}` on `{self.plan.checkpoint.folder}`: {error}",
                hint="`decant verify --light` checks without it",
            ) from error
        for values in self.model.parameters() if self.placed else ():
            if not values.is_meta and values.is_floating_point():
                values.data = values.data.float()  # loaded this way, it has the file's type
        for module in self.model.modules():
            if weighted.scale != 1 and hasattr(module, "scale_layer"):
                module.scale_layer(weighted.scale)


@contextmanager
def nothing_lost(folder: Path) -> Iterator[None]:
    """Raise UnsupportedError if PEFT warns in the block that an adapter's tensors are missing.

    PEFT then continues with untrained values, which are no reference.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        _, found, names = str(warning.message).partition(MISSING)
        if found:
            raise UnsupportedError(
                f"peft itself does not load all of `{folder}`, so that there is no right model to"
                f" compare with: it misses {names.strip()[:SHOWN]}",
                hint="`decant verify --light` checks without peft's loading",
            )


@contextmanager
def adapters_stay() -> Iterator[None]:
    """Keep PEFT from moving a loaded adapter to its layer's device, which may be the disk."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    name = "_move_adapter_to_device_of_base_layer"
    original = getattr(BaseTunerLayer, name)
    setattr(BaseTunerLayer, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(BaseTunerLayer, name, original)


def refuse_absent_weights() -> Any:
    """A mode that raises RuntimeError for an operation on a weight that is not in memory.

    Torch may otherwise read whatever is in the memory of its result.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Refusing(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            if len({tensor.is_meta for tensor in given}) > 1:
                raise RuntimeError(f"{function} of a weight that is not in memory")
            return function(*args, **(kwargs or {}))

    return Refusing()  # type: ignore[no-untyped-call]
