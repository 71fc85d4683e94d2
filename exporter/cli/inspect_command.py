"""The command `decant inspect`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, store
from exporter.cli.terminal_renderer import print_json, print_pairs, print_table, reporting
from exporter.core.errors import ModelError
from exporter.core.events import Note, Report, silent
from exporter.core.gguf import MAGIC, SUFFIX, Array, GGUFFile, Value, read_gguf
from exporter.core.paths import size_text
from exporter.inputs.adapter import open_adapter
from exporter.inputs.find_adapter import CONFIG, find_adapter
from exporter.inputs.find_model import (
    has_model,
    model_in_place_of_adapter,
    stands_for_folder,
)
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.zipped_adapter import ARCHIVES, zip_above
from exporter.merge.operations import kind_text
from exporter.model_store import find_model, is_stored
from exporter.quantize.type_recipe import read_recipe

SAVED_BY = {"mlx": "mlx-lm", "gguf": "llama.cpp"}
PLACES = (".safetensors", ".bin", ".pt", ".zip")
"""Endings of files that stand for a model or an adapter."""
LONG = 100  # characters shown of a value


@click.command(epilog="Example: decant inspect my-lora --tensors")
@click.argument("path", shell_complete=completing.models)
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor too.")
@click.option(
    "--recipe", "only_recipe", is_flag=True,
    help="Print only the tensors' types, for export's --recipe.",
)  # fmt: skip
@json_option
def inspect(path: str, show_tensors: bool, only_recipe: bool, as_json: bool) -> None:
    """Show what PATH holds: a GGUF (or a stored model's name), a model or an adapter folder.

    A stored model goes before a folder of its name, as everywhere: that is ./NAME.
    """
    if only_recipe:
        print_recipe(path)
        return
    with reporting() as report:
        found = describe(path, report)
    if as_json:
        print_json(found)
        return
    tensors = found.pop("tensors")
    metadata = found.pop("metadata", {})
    assert isinstance(tensors, list)
    assert isinstance(metadata, dict)
    print_pairs({key: value for key, value in found.items() if value is not None})
    if metadata:
        click.echo("\nmetadata")
        print_pairs({f"  {key}": shorten(value) for key, value in metadata.items()})
    if show_tensors:
        click.echo()
        print_table(
            ("TENSOR", "SHAPE", "TYPE", "SIZE"),
            [
                (
                    row["name"],
                    "×".join(map(str, row["shape"])),
                    row["type"],
                    size_text(row["nbytes"]),
                )
                for row in tensors
            ],
        )


def print_recipe(text: str) -> None:
    """Print a GGUF's types as rules. Raises ModelError without one, and as `read_recipe` does."""
    path = Path(text)
    with reporting() as report:
        rules = read_recipe(path if path.is_file() else find_model(text, store(), report=report))
    for rule in rules:
        click.echo(rule)


def describe(text: str, report: Report) -> dict[str, object]:
    """The kind of `text`, its facts and its tensors. Raises ModelError for an empty text."""
    if not text:
        raise ModelError("PATH is empty", hint="is a variable of the shell not set?")
    path = Path(text)
    if path.is_dir():
        is_place = not is_stored(text, store())
    else:
        is_place = zip_above(path) is not None or (path.is_file() and path.suffix != SUFFIX)
        is_place = is_place and not begins_as_gguf(path)
    if is_place:
        return describe_place(path, report)
    found = path if path.is_file() else find_model(text, store(), report=report)
    return describe_gguf(read_gguf(found))


def begins_as_gguf(path: Path) -> bool:
    """Whether a file is a GGUF, whatever its name; Ollama names its files by hash."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def describe_place(path: Path, report: Report) -> dict[str, object]:
    """Describe an adapter or a model, found as in an export; a note says which one was found.

    Raises ModelError without one.
    """
    refuse_other_kind(path)
    if path.is_file() and stands_for_folder(path) and has_model(path.parent):
        report(Note(f"`{path.name}` is a file of the model in `{path.parent}`"))
        return describe_checkpoint(path.parent)
    if whole := model_in_place_of_adapter(path, report=silent):
        if whole.suffix == SUFFIX:
            report(Note(f"the model in `{path}` is a GGUF: `{whole.name}`"))
            return describe_gguf(read_gguf(whole))
        if whole != path:
            report(Note(f"`{path}` is a training run: its newest checkpoint is `{whole.name}`"))
        return describe_checkpoint(whole)
    found = find_adapter(path, report=report)
    if found.weights is None and not (found.folder / CONFIG).exists():
        if (path / "config.json").exists():
            return describe_checkpoint(path)
        raise ModelError(
            f"`{path}` is neither a model nor an adapter folder",
            hint="a model has config.json, an adapter adapter_config.json",
        )
    return describe_adapter(path)


def refuse_other_kind(path: Path) -> None:
    """Raise ModelError for a file that belongs neither to a model nor to an adapter."""
    is_known = path.suffix in PLACES or path.name.endswith(ARCHIVES)
    if path.is_file() and not is_known and path.name not in ("config.json", CONFIG):
        raise ModelError(
            f"`{path}` is neither a GGUF nor a file of a model or an adapter",
            hint="name a GGUF, or the folder of a model or an adapter",
        )


def describe_gguf(file: GGUFFile) -> dict[str, object]:
    kinds = Counter(tensor.type.name for tensor in file.tensors)
    ranks = {t.shape[-1] for t in file.tensors if t.name.endswith(".lora_b")}
    return {
        "kind": "gguf adapter (LoRA)" if file.is_adapter else "gguf",
        "path": str(file.path),
        **made_of(file),
        "size": size_text(file.nbytes),
        "architecture": file.architecture,
        "parameters": file.parameters,
        "bits_per_weight": round(file.nbytes * 8 / max(file.parameters, 1), 2),
        "rank": ", ".join(map(str, sorted(ranks))) or None,
        "context_length": file.number(f"{file.architecture}.context_length"),
        "types": ", ".join(f"{count} {name}" for name, count in sorted(kinds.items())),
        "metadata": {key: plain(value) for key, value in file.metadata.items()},
        "tensors": [
            {"name": t.name, "shape": t.shape, "type": t.type.name, "nbytes": t.nbytes}
            for t in file.tensors
        ],
    }


def at_checkpoint(file: GGUFFile, key: str) -> str:
    checkpoint = file.text(f"{key}.checkpoint")
    return f" ({checkpoint})" if checkpoint else ""


def made_of(file: GGUFFile) -> dict[str, str | None]:
    """Facts about how decant made the file, for people; empty for a foreign file."""
    text = file.text
    if text("decant.version") is None:
        return {}
    adapters = {}
    for number in itertools.count():
        key = f"decant.adapter{number or ''}"
        if text(key) is None:
            break
        adapters["adapter" if not number else f"adapter {number + 1}"] = (
            f"{from_hub(file, key)}{at_checkpoint(file, key)}, scale {text(f'{key}.scale')},"
            f" sha256 {(text(f'{key}.sha256') or '')[:12]}"
        )
    matrix, on = text("quantize.imatrix.file"), text("quantize.imatrix.dataset")
    tools = {"decant": "version", "llama.cpp": "llama_cpp", "transformers": "transformers",
             "peft": "peft"}  # fmt: skip
    versions = {name: text(f"decant.{key}") for name, key in tools.items()}
    return {
        "base": from_hub(file, "decant.base"),
        **adapters,
        "merged in": text("decant.merge_dtype"),
        "quantized": text("decant.quant"),
        "imatrix": matrix and f"{matrix}{f', measured on {on}' if on else ''}",
        "made by": ", ".join(f"{name} {found}" for name, found in versions.items() if found),
        "licence": text("general.license"),
    }


def from_hub(file: GGUFFile, key: str) -> str:
    """A base's or adapter's name, with its repo and commit if known."""
    repo, commit = file.text(f"{key}.repo"), file.text(f"{key}.commit")
    return f"{repo} at {(commit or '')[:12]}" if repo else file.text(key) or "unknown"


def describe_checkpoint(folder: Path) -> dict[str, object]:
    checkpoint = open_checkpoint(folder)
    tensors = list(checkpoint.tensors.values())
    kinds = Counter(tensor.dtype for tensor in tensors)
    return {
        "kind": "base model",
        "path": str(folder),
        "size": size_text(sum(tensor.nbytes for tensor in tensors)),
        "architecture": checkpoint.architecture,
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "context_length": checkpoint.config.get("max_position_embeddings"),
        "types": ", ".join(f"{count} {name}" for name, count in sorted(kinds.items())),
        "tensors": [
            {"name": t.name, "shape": t.shape, "type": t.dtype, "nbytes": t.nbytes} for t in tensors
        ],
    }


def describe_adapter(folder: Path) -> dict[str, object]:
    adapter = open_adapter(folder)
    tensors = adapter.tensors
    return {
        "kind": f"adapter ({kind_text(adapter)})",
        "path": str(folder),
        "saved_by": SAVED_BY.get(adapter.origin),
        "size": size_text(sum(tensor.nbytes for tensor in tensors)),
        "base": adapter.base,
        "rank": ", ".join(str(rank) for rank in sorted({pair.rank for pair in adapter.pairs}))
        or None,
        "alpha": adapter.config.get("lora_alpha"),
        "rslora": adapter.config.get("use_rslora") or None,
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "modules": f"{len(adapter.pairs)}: "
        + ", ".join(sorted({pair.module.rpartition(".")[2] for pair in adapter.pairs}))
        if adapter.pairs
        else None,
        "replaces": ", ".join(sorted(adapter.values)) or None,
        "new token rows": ", ".join(sorted(adapter.rows)) or None,
        "tensors": [
            {"name": t.name, "shape": t.shape, "type": t.dtype, "nbytes": t.nbytes} for t in tensors
        ],
    }


def plain(value: Value) -> object:
    """A metadata value for JSON; arrays by their length and first items."""
    if isinstance(value, Array):
        return {"length": value.length, "first": [plain(item) for item in value.items]}
    return value


def shorten(value: object) -> str:
    if isinstance(value, dict):
        first = ", ".join(repr(item) for item in value["first"])
        dots = ", …" if value["length"] > len(value["first"]) else ""
        return f"[{first}{dots}] ({value['length']})"
    text = value if isinstance(value, str) else repr(value)
    text = (
        text.replace("\n", "⏎").encode("unicode_escape").decode()
        if not text.isprintable()
        else text
    )
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(text)} characters)"
