"""The result's folder without its weights: the base's files, and what the adapter says instead.

A trainer saves the tokenizer and chat template beside the adapter, because training may add
tokens or another template; those go before the base's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.adapter import AdapterSpec
from exporter.checkpoint import refuse_own_code
from exporter.core.errors import AdapterError
from exporter.core.files import read_json_object
from exporter.embedder import MODULE_FILES, MODULES, module_files
from exporter.steps import MergePlan

TEMPLATES = ("chat_template.jinja", "chat_template.json")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
                "vocab.json", "vocab.txt")  # fmt: skip
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json",
                   "tokenizer_config.json", *TEMPLATES)  # fmt: skip
PIECES = "tokenizer.model"
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "*.pt", "*.pth", "*.gguf", "*.msgpack",
           "*.h5", "*.onnx")  # fmt: skip


@contextmanager
def result_folder(plan: MergePlan, *, trust_remote_code: bool = False) -> Iterator[Path]:
    """A folder with the result's config and tokenizer, for as long as the block runs.

    The base's own where nothing differs. Raises UnsupportedError when the adapter's tokenizer
    asks for Python code of its own, AdapterError when one of its files is damaged.
    """
    changed = changed_files(plan)
    if not changed:
        yield plan.checkpoint.folder
        return
    with tempfile.TemporaryDirectory(prefix="decant-") as temporary:
        folder = Path(temporary)
        lay_over(folder, plan.checkpoint.folder, changed)
        if not trust_remote_code:
            refuse_own_code(folder, plan.checkpoint.config)
        yield folder


def lay_over(folder: Path, base: Path, changed: dict[str, bytes | None]) -> None:
    """Fill `folder` with links to the base's files, except its weights and what has changed."""
    weights = {path.name for pattern in WEIGHTS for path in base.glob(pattern)}
    parents = {name.partition("/")[0] for name in changed if "/" in name}
    for path in base.iterdir():
        if path.name not in weights | parents and path.name not in changed:
            (folder / path.name).symlink_to(path.resolve())
    for parent in parents:  # a link to the base's own would be written through
        for path in (base / parent).rglob("*"):
            name = path.relative_to(base).as_posix()
            if path.is_file() and name not in changed:
                place(folder / name).symlink_to(path.resolve())
    for name, content in changed.items():
        if content is not None:
            place(folder / name).write_bytes(content)


def place(path: Path) -> Path:
    """The path, with the folders above it made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def changed_files(plan: MergePlan) -> dict[str, bytes | None]:
    """The files of the result that are not the base's; None for one that it does not have."""
    changed: dict[str, bytes | None] = {}
    for weighted in plan.adapters:
        changed |= tokenizer_files(weighted.adapter, plan.checkpoint.folder)
        changed |= embedder_files(weighted.adapter.folder)
    if plan.config:
        changed["config.json"] = json.dumps(changed_config(plan), indent=2).encode()
    return {
        name: content
        for name, content in changed.items()
        if content is None or not same_file(plan.checkpoint.folder / name, content)
    }


def same_file(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def changed_config(plan: MergePlan) -> dict[str, object]:
    """The base's config.json with the plan's changes, also inside a vision model's text part."""
    config = read_json_object(
        plan.checkpoint.folder / "config.json", error=AdapterError, hint="copy the base again"
    )
    text = config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = text | {k: v for k, v in plan.config.items() if k in text}
    return config | plan.config


def tokenizer_files(adapter: AdapterSpec, base: Path) -> dict[str, bytes | None]:
    """What an adapter's folder has to say about tokens and templates."""
    here = {name: adapter.folder / name for name in TOKENIZER_FILES}
    own = {name: path.read_bytes() for name, path in here.items() if path.is_file()}
    if not any(name in own for name in VOCABULARIES):
        return {name: content for name, content in own.items() if name in TEMPLATES}
    keeps_pieces = PIECES not in own and (base / PIECES).is_file()
    files: dict[str, bytes | None] = {
        name: None
        for name in TOKENIZER_FILES
        if (base / name).is_file() and not (name == PIECES and keeps_pieces)
    }
    files |= own
    if keeps_pieces:
        files |= name_added_tokens(own, adapter)
    return files


def embedder_files(folder: Path) -> dict[str, bytes | None]:
    """What a sentence-transformers run has saved beside its adapter: the steps after the model."""
    if not (folder / MODULES).is_file():
        return {}
    names = [name for name in MODULE_FILES if (folder / name).is_file()]
    return {name: (folder / name).read_bytes() for name in (*names, *module_files(folder))}


def name_added_tokens(own: dict[str, bytes], adapter: AdapterSpec) -> dict[str, bytes | None]:
    """A newer transformers saves a sentencepiece tokenizer as tokenizer.json alone.

    The pieces' scores are only in the base's tokenizer.model, which llama.cpp's converter reads;
    what was added to them it looks for in tokenizer_config.json.
    """
    hint = "restore the tokenizer's files that were saved with the adapter"
    folder = adapter.folder
    if "tokenizer.json" not in own:
        return {}
    whole = read_json_object(folder / "tokenizer.json", error=AdapterError, hint=hint)
    added = whole.get("added_tokens")
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and "id" in token
    }
    settings = (
        read_json_object(folder / "tokenizer_config.json", error=AdapterError, hint=hint)
        if "tokenizer_config.json" in own
        else {}
    )
    settings.setdefault("added_tokens_decoder", decoder)
    return {"tokenizer_config.json": json.dumps(settings).encode()}
