"""Embedders and rerankers: the modules of a sentence-transformers folder.

modules.json lists the steps from a text to its vector: the transformer, a pooling of its states,
sometimes dense layers and a normalization. llama.cpp computes some of these chains; this module
refuses the others before anything is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.convert.upstream_hooks import Hook
from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.events import Note, Report, Warn, silent
from exporter.inputs.embedder_files import CONFIG, LIMITS, MODULES, Module, read_modules

PROMPTS = "decant.embedding.prompts"
"""GGUF key: prompts for texts by name, as a JSON object."""
DEFAULT_PROMPT = "decant.embedding.default_prompt"
"""GGUF key: the name of sentence-transformers' default prompt."""
NORMALIZED = "decant.embedding.normalized"
"""GGUF key: whether the model's vectors have length 1; absent if the folder does not say."""
POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}  # llama.h: llama_pooling_type
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
TRANSFORMER, POOLING, DENSE, NORMALIZE = "Transformer", "Pooling", "Dense", "Normalize"
SCORE = "LogitScore"
IDENTITY = "torch.nn.modules.linear.Identity"
WITH_DENSE = ("EmbeddingGemma", "LFM2ColBertModel")
"""llama.cpp's classes that convert dense layers."""
DENSE_NAMES = ("dense_2", "dense_3")
"""llama.cpp's names of the dense layers, in order."""
TO_SAFETENSORS = "`--to safetensors` writes the whole folder for sentence-transformers"


def pooling_modes(module: Module) -> tuple[str, ...]:
    """The pooling modes of a Pooling module; several are concatenated."""
    named = module.settings.get("pooling_mode")
    if named is not None:
        return (named,) if isinstance(named, str) else tuple(map(str, named))
    found = tuple(mode for key, mode in OLD_POOLINGS.items() if module.settings.get(key))
    return found or ("mean",)


def check_modules(folder: Path, *, report: Report = silent) -> tuple[Module, ...]:
    """The folder's modules, all supported by llama.cpp.

    Raises UnsupportedError for the first unsupported one, with the reason, and CheckpointError for
    missing files.
    """
    modules = read_modules(folder)
    known = {TRANSFORMER, POOLING, DENSE, NORMALIZE, SCORE, "Dropout"}
    for module in modules:
        if module.kind not in known:
            raise refused(f"its module {module.kind}", "llama.cpp has no such step")
        if module.kind == POOLING:
            check_pooling(module, report=report)
        if module.kind == DENSE:
            check_dense(folder, module)
    order = [module.kind for module in modules if module.kind in (POOLING, DENSE, NORMALIZE)]
    if order != sorted(order, key=(POOLING, DENSE, NORMALIZE).index):
        raise refused(f"its modules {', '.join(order)}", "llama.cpp takes them in another order")
    tell(folder, modules, report=report)
    return modules


def check_pooling(module: Module, *, report: Report) -> None:
    """Raise UnsupportedError for a pooling that llama.cpp lacks; warn of prompts in the pooling."""
    modes = pooling_modes(module)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise refused(
            f"its pooling, {' and '.join(modes)}", f"llama.cpp has only {', '.join(POOLINGS)}"
        )
    if module.settings.get("include_prompt") is False:
        report(
            Warn(
                "this model leaves a prompt's tokens out of the pooling, which llama.cpp cannot:"
                " texts after a prompt get other vectors than in sentence-transformers"
            )
        )


def check_dense(folder: Path, module: Module) -> None:
    """Raise UnsupportedError for a dense layer of more than one matrix, CheckpointError without
    its file.
    """
    activation = module.settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = f"its dense layer `{module.path}`"
    if activation != IDENTITY:
        raise refused(name, f"llama.cpp has no {str(activation).rpartition('.')[2]} after it")
    if module.settings.get("use_residual"):
        raise refused(name, "llama.cpp has no residual around it")
    path = folder / module.path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"`{path}` is missing, though `{MODULES}` names it",
            hint="download or copy the folder again",
        )
    if module.settings.get("bias") and has_bias(path):
        raise refused(name, "llama.cpp's converter drops its bias")


def has_bias(path: Path) -> bool:
    """Whether a dense layer's bias has values other than zero."""
    from exporter.core.safetensors import read_header
    from exporter.inputs.lazy_tensor import read_tensor

    bias = read_header(path, error=CheckpointError).get("linear.bias")
    return bias is not None and bool(read_tensor(bias).any())


def refused(what: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"a GGUF cannot hold what follows this model's transformer: {what} ({why})",
        hint=TO_SAFETENSORS,
    )


def tell(folder: Path, modules: tuple[Module, ...], *, report: Report) -> None:
    """Report differences between the served model and sentence-transformers' defaults."""
    if not modules:
        return
    names = [name for name, text in prompts(folder).items() if text]
    if names:
        default = default_prompt(folder)
        taken = f"{default!r} is taken where none is named" if default else "none is taken unasked"
        report(
            Note(
                f"prompts {', '.join(map(repr, names))}: serve puts one before each text of a"
                f' request with "prompt_name"; {taken}'
            )
        )
    kinds = {module.kind for module in modules}
    if POOLING in kinds and NORMALIZE not in kinds:
        report(
            Note(
                "sentence-transformers leaves this model's vectors as long as they are; serve makes"
                ' them 1 long, unless a request says "embd_normalize": -1'
            )
        )
    limit, context = longest_text(folder), text_config(folder).get("max_position_embeddings")
    if limit and isinstance(context, int) and limit < context:
        report(Note(f"sentence-transformers cuts texts after {limit} tokens; serve does not"))


def warn_of_lost_modules(adapter: Path, base: Path, *, report: Report = silent) -> None:
    """Warn of pooling and dense layers that an adapter's GGUF cannot hold."""
    mine = read_modules(adapter)
    pooled = [pooling_modes(module) for module in mine if module.kind == POOLING]
    of_base = [pooling_modes(module) for module in read_modules(base) if module.kind == POOLING]
    lost = [f"pooling ({' and '.join(modes)})" for modes in pooled if pooled != of_base]
    lost += [f"dense layer `{module.path}`" for module in mine if module.kind == DENSE]
    if lost:
        report(
            Warn(
                f"an adapter's file holds no {', no '.join(lost)}: vectors are made as the base's"
                " file says; merged into the base (`--to gguf`), the adapter keeps its own"
            )
        )


def prompts(folder: Path) -> dict[str, str]:
    """The prompts by name."""
    found = settings_of(folder).get("prompts")
    if not isinstance(found, dict):
        return {}
    return {str(name): text for name, text in found.items() if isinstance(text, str)}


def default_prompt(folder: Path) -> str | None:
    """The name of the default prompt, unless it is empty."""
    name = settings_of(folder).get("default_prompt_name")
    return name if isinstance(name, str) and prompts(folder).get(name) else None


def settings_of(folder: Path) -> dict[str, object]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    return read_json_object(path, error=CheckpointError, hint="download or copy the file again")


def text_config(folder: Path) -> dict[str, object]:
    config = read_json_object(
        folder / "config.json", error=CheckpointError, hint="copy the base again"
    )
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def longest_text(folder: Path) -> int | None:
    """The length in tokens at which sentence-transformers truncates texts; None without a limit."""
    for name in LIMITS:
        if (folder / name).is_file():
            found = read_json_object(folder / name, error=CheckpointError, hint="copy it again")
            limit = found.get("max_seq_length")
            return limit if type(limit) is int else None
    return None


def metadata(folder: Path, modules: tuple[Module, ...]) -> dict[str, str | bool]:
    """decant's keys for the folder."""
    if not modules:
        return {}
    keys: dict[str, str | bool] = {}
    if any(module.kind == POOLING for module in modules):
        keys[NORMALIZED] = any(module.kind == NORMALIZE for module in modules)
    if found := prompts(folder):
        keys[PROMPTS] = json.dumps(found, ensure_ascii=False)
    if name := default_prompt(folder):
        keys[DEFAULT_PROMPT] = name
    return keys


def write_keys(writer: Any, folder: Path, modules: tuple[Module, ...]) -> None:
    """Add keys that the converter omits: most poolings, the dense layers' width, and decant's."""
    pooled = next((module for module in modules if module.kind == POOLING), None)
    key = f"{writer.arch}.pooling_type"
    if pooled is not None and key not in writer.kv_data[0]:
        writer.add_uint32(key, POOLINGS[pooling_modes(pooled)[0]])
    widths = [module.settings["out_features"] for module in modules if module.kind == DENSE]
    if widths and widths[-1] != writer.kv_data[0][f"{writer.arch}.embedding_length"].value:
        writer.add_uint32(f"{writer.arch}.embedding_length_out", widths[-1])
    for name, value in metadata(folder, modules).items():
        (writer.add_bool if isinstance(value, bool) else writer.add_string)(name, value)


def class_hooks(model_class: Any, modules: tuple[Module, ...], *, ranks: bool) -> tuple[Hook, ...]:
    """Hooks that let llama.cpp's class convert dense layers, and a reranker if `ranks`.

    The class gets empty lists of dense layers: all models share its lists, which would grow. It
    recognizes a reranker by the folder's name, which changes by a download or a merge. Raises
    UnsupportedError for dense layers or a kind of reranker that the class does not know.
    """
    dense = [module for module in modules if module.kind == DENSE]
    if dense and model_class.__name__ not in WITH_DENSE:
        raise refused(
            f"its dense layer `{dense[0].path}`",
            f"llama.cpp has none for this architecture ({model_class.model_arch.name})",
        )
    if len(dense) > len(DENSE_NAMES):
        raise refused(f"its {len(dense)} dense layers", f"llama.cpp has {len(DENSE_NAMES)}")
    names = dict(zip((module.path for module in dense), DENSE_NAMES, strict=False))
    changes: dict[str, Any] = {}
    if hasattr(model_class, "_get_dense_prefix"):
        changes |= {
            "module_paths": [], "dense_features_dims": {},
            "_get_dense_prefix": staticmethod(lambda path: names[path]),
        }  # fmt: skip
    if ranks and not hasattr(model_class, "_is_qwen3_reranker"):
        raise refused("its score from a language model's logits", "llama.cpp has it for Qwen3 only")
    if hasattr(model_class, "_is_qwen3_reranker"):
        changes["_is_qwen3_reranker"] = lambda _: ranks
    return (Hook(model_class, changes),)
