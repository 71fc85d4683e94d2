"""Writes an adapter's prompts, as its folder defines them, into its GGUF's metadata.

Ids are written beside texts, so that special tokens which a trainer has renamed (<|im_end|> for
</s>) are found in a base's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporter.convert.tokenizer_keys import eos_ids, settle_templates
from exporter.core.atomic_file import sha256_file
from exporter.core.errors import UnsupportedError
from exporter.core.events import Note, Report, silent
from exporter.core.gguf import read_gguf
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.header_prompts import KEYS, AdapterPrompts, read_prompts
from exporter.inputs.tokenizer import LoadedTokenizer, load_tokenizer, template_tokens, templates_of
from exporter.merge.operations import MergePlan
from exporter.merge.result_files import (
    GENERATION,
    NAMED,
    TEMPLATES,
    TOKENIZER_FILES,
    has_vocabulary,
    result_folder,
    templates_in,
)


def prompt_files(folder: Path) -> Iterator[Path]:
    """The files of an adapter's folder that define its prompts."""
    names = (*TEMPLATES, *TOKENIZER_FILES, GENERATION)
    yield from (path for name in names if (path := folder / name).is_file())
    yield from sorted((folder / NAMED).glob("*.jinja"))


def prompts_identity(adapter: AdapterSpec) -> str:
    """A text that changes with those files; empty without any."""
    if adapter.origin == "gguf":  # files beside a GGUF may belong to another adapter
        return ""
    return "".join(f"{path.name}:{sha256_file(path)};" for path in prompt_files(adapter.folder))


def prompts_of(
    plan: MergePlan, *, trust_remote_code: bool = False, report: Report = silent
) -> AdapterPrompts:
    """The prompts of the plan's first adapter, read as for its merged model.

    It has only templates if the tokenizer needs Python code from the folder and trust_remote_code
    is off. Raises AdapterError for damaged files, CheckpointError for an unreadable tokenizer.
    """
    adapter = plan.adapters[0].adapter
    if adapter.origin == "gguf":
        return read_prompts(read_gguf(adapter.weights))
    own = templates_in(adapter.folder)
    has_tokens = has_vocabulary(adapter.folder)
    has_ends = (adapter.folder / GENERATION).is_file()
    if not (own or has_tokens or has_ends):
        return AdapterPrompts()
    try:
        with result_folder(plan, trust_remote_code=trust_remote_code) as folder:
            loaded = load_tokenizer(folder, trust_remote_code=trust_remote_code)
            if loaded is None:
                return AdapterPrompts(own)
            templates = templates_of(loaded) if own else {}
            return named(templates, loaded, [*eos_ids(folder)])
    except UnsupportedError as error:
        report(Note(f"{error.message}: its special tokens are read as the base's"))
        return AdapterPrompts(own)


def named(templates: Mapping[str, str], loaded: LoadedTokenizer, ends: list[int]) -> AdapterPrompts:
    """Templates with the tokens that they and answers need."""
    tokens = template_tokens(loaded)
    own = loaded.special("eos")
    contents = {number: token.content for number, token in loaded.added.items()}
    found = dict.fromkeys([*([] if own is None else [own]), *ends])
    ending = tuple(contents[number] for number in found if number in contents)
    text = "\n".join(templates.values())
    visible = "\n".join((text, *ending, *(tokens[name] for name in tokens if name in text)))
    added = {one: number for number, one in contents.items() if one and one in visible}
    return AdapterPrompts(dict(templates), tokens, ending, added)


def write_prompts(writer: Any, prompts: AdapterPrompts) -> None:
    """Write the prompts into a GGUF's metadata."""
    if prompts.is_empty:
        return
    settle_templates(writer, prompts.templates)
    for key, value in zip(KEYS, (prompts.tokens, prompts.ends, prompts.added), strict=True):
        writer.add_string(key, json.dumps(value, ensure_ascii=False))
