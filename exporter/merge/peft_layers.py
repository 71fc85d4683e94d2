"""Runs PEFT's layers one module at a time.

PEFT merges whole models in memory. This module gives it a skeleton instead: a model with only the
modules that an adapter touches, under the adapter's names, so that PEFT finds its targets, patterns
and tensors as in the real one, without transformers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.inputs.lazy_tensor import read_tensor, torch_dtype
from exporter.inputs.module_names import model_without_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from exporter.inputs.adapter_spec import AdapterSpec
    from exporter.inputs.checkpoint import Checkpoint
    from exporter.inputs.lazy_tensor import Tensor
    from exporter.merge.operations import CombinedSum, Kind, LoraSum, Tuned

NAME = "default"  # name of the adapter inside PEFT
NEVER_SAVED = (f".ranknum.{NAME}",)  # AdaLoRA's; its value is the config's r
NUMBERED = ("TINYLORA",)  # tuners whose random numbers depend on the order of the modules


def merge_with_peft(step: LoraSum, weight: torch.Tensor) -> torch.Tensor:
    """Merge one module of any kind of LoRA with PEFT's loader, initialization and merge.

    weight: (n_out, n_in) or as its kind stores it; the result has the same shape.
    """
    module = step.pair.module
    # PEFT adds a LoRA's bias to a module's bias; the plan adds it to the real one
    bias = weight.new_zeros(weight.shape[0]) if "lora_B.bias" in step.pair.extras else None
    skeleton = Skeleton({module: make_module(step.kind, weight, bias)})
    with peft_errors(step.adapter, module):
        config = config_for(step.adapter, [module])
        if not step.replays_init:  # the weight already is the rest that the initialization left
            config.init_lora_weights = True
        inject(skeleton.model, config, step.pair.tensors.values(), step.adapter)
        layer = skeleton.layer(module)
        layer.scaling[NAME] *= step.scale
        layer.merge()
        merged = layer_weight(layer)
        drop_weights(skeleton.model)
        return merged


def residual_with_peft(step: LoraSum, weight: torch.Tensor) -> torch.Tensor:
    """The rest of a base's weight after a LoRA's initialization, with nothing merged.

    weight: (n_out, n_in), as the module stores it.
    """
    module = step.pair.module
    skeleton = Skeleton({module: make_module(step.kind, weight)})
    with peft_errors(step.adapter, module):
        config = config_for(step.adapter, [module])
        inject(skeleton.model, config, step.pair.tensors.values(), step.adapter)
        residual = layer_weight(skeleton.layer(module))
        drop_weights(skeleton.model)
        return residual


def drop_weights(model: torch.nn.Module) -> None:
    """Remove all weights: PEFT's layers form reference cycles, freed only by the collector."""
    for module in model.modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            setattr(module, name, None)


def combine_with_peft(step: CombinedSum, weight: torch.Tensor) -> torch.Tensor:
    """Merge the LoRA into which `add_weighted_adapter` combines several LoRAs of a module.

    weight: (n_out, n_in) or as its kind stores it; the result has the same shape.
    """
    import torch
    from peft.tuners.lora import LoraModel
    from peft.utils import set_peft_model_state_dict

    module = step.sums[0].pair.module
    skeleton = Skeleton({module: make_module(step.sums[0].kind, weight)})
    names = [f"adapter{number}" for number in range(len(step.sums))]
    with peft_errors(step.sums[0].adapter, module):
        model: Any = None
        for name, one in zip(names, step.sums, strict=True):
            config = config_for(one.adapter, [module])
            if model is None:
                model = LoraModel(skeleton.model, {name: config}, name)
            else:
                model.peft_config[name] = config
                model.inject_adapter(skeleton.model, name)
            values = {
                f"base_model.model.{module}.{role}": read_tensor(tensor).float()
                for role, tensor in one.pair.tensors.items()
            }
            skeleton.model.peft_config = model.peft_config
            set_peft_model_state_dict(skeleton.model, values, adapter_name=name)
        torch.manual_seed(SEED)  # dare drops values at random
        options = {"density": DENSITY} if step.how not in ("linear", "cat", "svd") else {}
        model.add_weighted_adapter(
            names, [one.scale for one in step.sums], NAME, combination_type=step.how, **options
        )
        model.set_adapter(NAME)
        layer = skeleton.layer(module)
        layer.merge(adapter_names=[NAME])
        return layer_weight(layer)


SEED = 0
DENSITY = 0.5  # share of values that ties, dare and magnitude_prune keep


class Tuner:
    """A tuner other than LoRA over all the modules it changes, without their weights."""

    def __init__(
        self,
        adapter: AdapterSpec,
        steps: Mapping[str, Tuned],
        checkpoint: Checkpoint,
        *,
        dtype: Any,
    ) -> None:
        """Load the adapter into PEFT's layers.

        steps: the steps by the module's name in the adapter; dtype: the type of the weights that
        `merge` gets; None if they have their stored types.
        """
        from exporter.merge.target_modules import is_conv1d

        self.adapter = adapter
        modules = {}
        if adapter.kind in NUMBERED:
            order = modules_in_memory(checkpoint)
            place = {name: number for number, name in enumerate(order)}
            steps = dict(sorted(steps.items(), key=lambda item: place.get(item[0], 0)))
        for module, step in steps.items():
            kind: Kind = "conv1d" if is_conv1d(module, checkpoint) else "linear"
            weight = zeros_like_shape(step.weight.shape, dtype or torch_dtype(step.weight.dtype))
            bias = zeros_like_shape(step.bias.shape, weight.dtype) if step.bias else None
            modules[module] = make_module(kind, weight, bias)
        self.skeleton = Skeleton(modules)
        with peft_errors(adapter, next(iter(steps))):
            config = config_for(adapter, list(steps))
            inject(self.skeleton.model, config, adapter.tuner.values(), adapter)
        # in training mode VB-LoRA refuses an adapter that keeps only its largest logits
        self.skeleton.model.eval()

    def merge(
        self, module: str, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A module's weight and bias with the tuner's change; both may be changed in place."""
        from peft.tuners.tuners_utils import cast_adapter_dtype

        layer = self.skeleton.layer(module)
        base = layer.get_base_layer()
        before = base.weight, base.bias
        with peft_errors(self.adapter, module):
            base.weight, base.bias = parameter(weight), None if bias is None else parameter(bias)
            if self.adapter.kind == "TINYLORA":  # it trains within the weight's singular vectors
                init = layer._init_svd  # noqa: SLF001 - PEFT has no public way
                init(NAME, layer.r[NAME], layer.fan_in_fan_out)
                cast_adapter_dtype(layer, NAME)
            layer.merge()
            merged = base.weight.data, None if base.bias is None else base.bias.data
            base.weight, base.bias = before
            layer.merged_adapters.clear()
        return merged


def modules_in_memory(checkpoint: Checkpoint) -> list[str]:
    """The modules of transformers' model, in its order."""
    model = model_without_weights(checkpoint)
    return [name for name, _ in model.named_modules()] if model else []


class Skeleton:
    """A model of only some modules, under their names."""

    def __init__(self, modules: Mapping[str, torch.nn.Module]) -> None:
        import torch

        self.model: Any = torch.nn.Module()
        for name, module in modules.items():
            parent: Any = self.model
            *path, last = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.add_module(last, module)

    def layer(self, name: str) -> Any:
        return self.model.get_submodule(name)


def make_module(
    kind: Kind, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.nn.Module:
    """A module of the right class around a weight (rows, columns)."""
    import torch

    rows, columns = weight.shape
    with torch.device("meta"):
        if kind == "embedding":
            module: Any = torch.nn.Embedding(rows, columns)
        elif kind == "conv1d":
            from transformers.pytorch_utils import Conv1D

            module = Conv1D(columns, rows)
        else:
            module = torch.nn.Linear(columns, rows, bias=False)
    module.weight = parameter(weight)
    if kind != "embedding":
        module.bias = None if bias is None else parameter(bias)
    assert isinstance(module, torch.nn.Module)
    return module


def zeros_like_shape(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of a shape (rows, columns) that stores a single zero."""
    import torch

    return torch.zeros(1, dtype=dtype).expand(shape)


def parameter(values: torch.Tensor) -> torch.nn.Parameter:
    """A parameter without gradient around values (…)."""
    import torch

    return torch.nn.Parameter(values, requires_grad=False)


def layer_weight(layer: Any) -> torch.Tensor:
    """The base weight (rows, columns) inside a PEFT layer."""
    import torch

    merged = layer.get_base_layer().weight.data
    assert isinstance(merged, torch.Tensor)
    return merged


def config_for(adapter: AdapterSpec, modules: list[str]) -> Any:
    """The adapter's config, reduced to a skeleton with these modules."""
    from peft import LoraConfig, PeftConfig

    config = (
        copy.copy(PeftConfig.from_pretrained(str(adapter.folder)))
        if adapter.origin == "peft" and not adapter.renamed
        else LoraConfig(**adapter.config)
    )
    elsewhere = {
        "target_modules": set(modules), "modules_to_save": None, "exclude_modules": None,
        "layers_to_transform": None, "layers_pattern": None, "trainable_token_indices": None,
        "target_parameters": None, "layer_replication": None, "bias": "none",
        "ensure_weight_tying": False, "inference_mode": False,
    }  # fmt: skip
    for setting, value in elsewhere.items():
        if hasattr(config, setting):
            setattr(config, setting, value)
    return config


def inject(model: Any, config: Any, tensors: Iterable[Tensor], adapter: AdapterSpec) -> None:
    """Wrap the skeleton's modules with PEFT and load all tensors of the adapter, of any shape (…).

    Raises UnsupportedError for a tensor that PEFT does not know, AdapterError for a missing one.
    """
    from peft import PeftModel
    from peft.utils import set_peft_model_state_dict

    wrapped = PeftModel(model, config, NAME)
    values = {tensor.name: to_float(read_tensor(tensor)) for tensor in tensors}
    loaded = set_peft_model_state_dict(wrapped, values, adapter_name=NAME)
    if loaded.unexpected_keys:
        raise UnsupportedError(
            f"peft has no place for `{loaded.unexpected_keys[0]}` of `{adapter.folder}`",
            hint="was it trained with a much newer or older peft? try that version",
        )
    refuse_lacking(wrapped, set(loaded.missing_keys), adapter)


def refuse_lacking(wrapped: Any, missing: set[str], adapter: AdapterSpec) -> None:
    """Raise AdapterError if PEFT would keep the initial value of a trained parameter.

    A parameter that several modules share is saved under one of its names.
    """
    names: dict[int, list[str]] = {}
    for name, values in wrapped.named_parameters(remove_duplicate=False):
        if values.requires_grad and not name.endswith(NEVER_SAVED):
            names.setdefault(id(values), []).append(name)
    lacking = [known[0] for known in names.values() if missing.issuperset(known)]
    if lacking:
        raise AdapterError(
            f"`{adapter.folder}` lacks `{lacking[0]}` ({len(lacking)} of its tensors)",
            hint="the file is damaged or was cut down; copy it again",
        )


def to_float(values: torch.Tensor) -> torch.Tensor:
    """Values (…) in float32: PEFT computes in this type even if the file holds 16 bits."""
    return values.float() if values.dtype.is_floating_point else values


@contextmanager
def peft_errors(adapter: AdapterSpec, module: str) -> Iterator[None]:
    """Turn PEFT's errors into AdapterError with the module's name; drop its loading warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise AdapterError(
            f"peft cannot merge `{module}` of `{adapter.folder}`: {type(error).__name__}: {error}",
            hint="is its adapter_config.json the one it was trained with?",
        ) from error
