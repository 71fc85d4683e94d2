"""The result's folder without its weights: the base's files, replaced by the adapter's.

A trainer saves tokenizer and chat template beside the adapter, because training may add tokens or
another template; those take precedence over the base's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporter.core.atomic_file import read_json_object
from exporter.core.errors import AdapterError
from exporter.core.gguf import read_gguf
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.embedder_files import MODULE_FILES, MODULES, module_files
from exporter.inputs.header_prompts import read_prompts
from exporter.inputs.open_checkpoint import refuse_own_code
from exporter.merge.operations import MergePlan

TEMPLATE, NAMED, DEFAULT = "chat_template.jinja", "additional_chat_templates", "default"
OLD_TEMPLATE = "chat_template.json"  # name in older processors of vision models
TEMPLATES = (TEMPLATE, OLD_TEMPLATE)
SETTINGS = "tokenizer_config.json"
GENERATION = "generation_config.json"
HINT = "restore the tokenizer's files that were saved with the adapter"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
                "vocab.json", "vocab.txt")  # fmt: skip
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json",
                   SETTINGS)  # fmt: skip
PIECES = "tokenizer.model"
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "*.pt", "*.pth", "*.gguf", "*.msgpack",
           "*.h5", "*.onnx")  # fmt: skip


@contextmanager
def result_folder(plan: MergePlan, *, trust_remote_code: bool = False) -> Iterator[Path]:
    """A folder with the result's config and tokenizer, for the duration of the block.

    It is the base's folder if nothing differs. Raises UnsupportedError if the adapter's tokenizer
    needs custom Python code, AdapterError for a damaged file.
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
    """Fill `folder` with links to the base's files, except its weights and changed files."""
    weights = {path.name for pattern in WEIGHTS for path in base.glob(pattern)}
    within = {Path(name).parts[0] for name in changed}
    for path in base.iterdir():
        if path.name not in weights and path.name not in within:
            (folder / path.name).symlink_to(path.resolve())
        elif path.is_dir():  # through a link to the folder, a write would reach the base
            for inner in path.rglob("*"):
                name = inner.relative_to(base).as_posix()
                if inner.is_file() and name not in changed:
                    with_parents(folder / name).symlink_to(inner.resolve())
    for name, content in changed.items():
        if content is not None:
            with_parents(folder / name).write_bytes(content)


def with_parents(path: Path) -> Path:
    """The path, after creating its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def changed_files(plan: MergePlan) -> dict[str, bytes | None]:
    """The files of the result that differ from the base's; None for a removed one."""
    changed: dict[str, bytes | None] = {}
    base = plan.checkpoint.folder
    for weighted in plan.adapters:
        if weighted.adapter.origin == "gguf":  # files beside a GGUF may belong to another adapter
            continue
        changed |= tokenizer_files(weighted.adapter, base)
        changed |= embedder_files(weighted.adapter.folder)
        if (own := weighted.adapter.folder / GENERATION).is_file():
            changed[GENERATION] = own.read_bytes()
    changed |= template_files(plan, changed)
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
    """The adapter's tokenizer files: all of them, or none without a vocabulary."""
    here = {name: adapter.folder / name for name in TOKENIZER_FILES}
    own = {name: path.read_bytes() for name, path in here.items() if path.is_file()}
    if not has_vocabulary(adapter.folder):
        return {}
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
    """The files of a sentence-transformers run beside its adapter: the steps after the model."""
    if not (folder / MODULES).is_file():
        return {}
    names = [name for name in MODULE_FILES if (folder / name).is_file()]
    return {name: (folder / name).read_bytes() for name in (*names, *module_files(folder))}


def has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


def template_files(plan: MergePlan, changed: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    """The chat templates of the result, if an adapter has any; otherwise the base's stay.

    An adapter with a whole tokenizer replaces all templates; otherwise its files replace those of
    the same name. All become files, which transformers reads before tokenizer_config.json.
    """
    base = plan.checkpoint.folder
    templates = before = templates_in(base)
    for weighted in plan.adapters:
        if own := templates_of(weighted.adapter):
            templates = own if is_whole(weighted.adapter) else {**templates, **own}
    settings_file = changed.get(SETTINGS)
    is_lost = settings_file is not None and templates != templates_of_json(SETTINGS, settings_file)
    if templates == before and not is_lost:
        return {}
    files: dict[str, bytes | None] = {
        str(path.relative_to(base)): None
        for path in (*(base / name for name in TEMPLATES), *(base / NAMED).glob("*.jinja"))
        if path.is_file()
    }
    for name, text in templates.items():
        place = TEMPLATE if name == DEFAULT else f"{NAMED}/{Path(name).name}.jinja"
        files[place] = text.encode()
    return files | without_template(base, settings_file)


def templates_of(adapter: AdapterSpec) -> dict[str, str]:
    """An adapter's chat templates by name."""
    if adapter.origin == "gguf":
        return dict(read_prompts(read_gguf(adapter.weights)).templates)
    return templates_in(adapter.folder)


def is_whole(adapter: AdapterSpec) -> bool:
    """Whether a tokenizer was saved with the adapter."""
    return adapter.origin != "gguf" and has_vocabulary(adapter.folder)


def without_template(base: Path, settings_file: bytes | None) -> dict[str, bytes | None]:
    """tokenizer_config.json without its template, which the converter reads before files."""
    if settings_file is None and (base / SETTINGS).is_file():
        settings_file = (base / SETTINGS).read_bytes()
    settings = json_object(SETTINGS, settings_file)
    if settings.pop("chat_template", None) is None:
        return {}
    return {SETTINGS: json.dumps(settings, indent=2).encode()}


def templates_in(folder: Path) -> dict[str, str]:
    """A folder's chat templates by name, with transformers' precedence."""
    files = {path.stem: path for path in sorted((folder / NAMED).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        files[DEFAULT] = folder / TEMPLATE
    older = {
        name: templates_of_json(name, (folder / name).read_bytes())
        for name in (OLD_TEMPLATE, SETTINGS)
        if (folder / name).is_file()
    }
    beside = older.get(SETTINGS) or older.get(OLD_TEMPLATE) or {}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    return {**beside, **{name: text for name, text in texts.items() if text.strip()}}


def templates_of_json(name: str, content: bytes) -> dict[str, str]:
    """The templates in a JSON file: one, or named ones as a list or an object.

    An empty template is ignored.
    """
    found = json_object(name, content).get("chat_template")
    if isinstance(found, str):
        return {DEFAULT: found} if found.strip() else {}
    if isinstance(found, dict):
        found = [{"name": key, "template": text} for key, text in found.items()]
    return {
        str(item["name"]): str(item["template"])
        for item in (found if isinstance(found, list) else [])
        if isinstance(item, dict) and "name" in item and "template" in item
    }


def json_object(name: str, content: bytes | None) -> dict[str, Any]:
    """Parse a JSON object. Raises AdapterError for anything else."""
    if content is None:
        return {}
    try:
        found = json.loads(content)
    except ValueError as error:
        raise AdapterError(f"`{name}` is not JSON: {error}", hint=HINT) from error
    if not isinstance(found, dict):
        raise AdapterError(f"`{name}` holds no JSON object", hint=HINT)
    return found


def name_added_tokens(own: dict[str, bytes], adapter: AdapterSpec) -> dict[str, bytes | None]:
    """tokenizer_config.json with the added tokens, which newer versions of transformers leave out.

    They save tokenizer.json alone. The scores of a sentencepiece tokenizer are only in the base's
    tokenizer.model. The converter reads that file, and added tokens in tokenizer_config.json.
    """
    folder = adapter.folder
    if "tokenizer.json" not in own:
        return {}
    whole = read_json_object(folder / "tokenizer.json", error=AdapterError, hint=HINT)
    added = whole.get("added_tokens")
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and "id" in token
    }
    settings = (
        read_json_object(folder / "tokenizer_config.json", error=AdapterError, hint=HINT)
        if "tokenizer_config.json" in own
        else {}
    )
    settings.setdefault("added_tokens_decoder", decoder)
    return {"tokenizer_config.json": json.dumps(settings).encode()}
