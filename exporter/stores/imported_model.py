"""Takes a model of another program's into decant's store: checked, linked, never copied."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import ModelError, UnsupportedError
from exporter.core.events import Note, Report, Warn
from exporter.core.ggml_types import ALIASES, FTYPES
from exporter.core.gguf import MAGIC, SUFFIX, GGUFFile, read_gguf, shard_paths
from exporter.model_store import (
    LONGEST,
    QUANT_AT_END,
    StoredModel,
    adapter_file_name,
    plain_name,
)
from exporter.stores.checked_hash import refuse_changed
from exporter.stores.file_link import LinkKind, is_same, link_file, refuse_other
from exporter.stores.other_model import TITLES, OtherModel, Program

BY_NUMBER = {number: name for name, number in FTYPES.items()}
READ_ONLY = "set DECANT_STORE to a folder that you may write to"
AGAIN: dict[Program, str] = {
    "ollama": "`ollama rm` and `ollama pull` bring it again",
    "lmstudio": "download it again",
    "hf": "`decant pull` brings it again",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """A model that the store has now."""

    name: str
    path: Path
    kind: LinkKind
    nbytes: int
    header: GGUFFile
    adapters: tuple[Path, ...] = ()
    projectors: tuple[Path, ...] = ()


def import_model(
    model: OtherModel, store: Path, name: str | None = None, *, report: Report
) -> Imported:
    """Link a model's files into the store, after checking headers and known hashes.

    name: for the store; default: the one that the model has. Each link is whole or not there; after
    a kill the same call does the rest. Raises ModelError, UnsupportedError and OutputError.
    """
    if model.problem:
        raise UnsupportedError(
            f"{model.name!r} of {TITLES[model.program]} cannot be imported: {model.problem}",
            hint=f"`{model.instead}`" if model.instead else AGAIN[model.program],
        )
    header = checked_header(model)
    full = stored_name(name or model.stem, header)
    paths = shard_paths(store / f"{full}{SUFFIX}", len(model.files))
    places = [
        *zip(named_projectors(model, full, store), model.projectors, strict=False),
        *zip(named_adapters(model, full, store), model.adapters, strict=True),
        *zip(paths, model.files, strict=True),
    ]
    for path, file in places:
        if not is_same(file.path, path):
            refuse_other(path, taken_hint(model, path))
            refuse_changed(file, model.name, AGAIN[model.program], report=report)
    kinds = [
        link_file(file.path, path, if_taken=taken_hint(model, path), if_refused=READ_ONLY)
        for path, file in places
    ]
    if len(model.projectors) > 1:
        report(Warn(f"it has {len(model.projectors)} projectors: the first is taken"))
    made = Imported(
        full, paths[0], kinds[-1], model.nbytes, header,
        tuple(named_adapters(model, full, store)), tuple(named_projectors(model, full, store)),
    )  # fmt: skip
    say_linked(made, model, report=report)
    return made


def taken_hint(model: OtherModel, path: Path) -> str:
    """The hint for a name that another model of the store has."""
    command = f"decant import --from {model.program} {shlex.quote(model.name)} --as NAME"
    if path.is_symlink() and not path.exists():
        name = StoredModel(path).full_name
        return f"`decant rm {name}` deletes the link; or another name: `{command}`"
    return f"`{command}` gives it another name"


def say_linked(made: Imported, model: OtherModel, *, report: Report) -> None:
    """Report how the names share their bytes, and what an adapter needs to be used."""
    there = TITLES[model.program]
    if made.kind == "same":
        report(Note(f"the store has it already: {made.name}"))
    elif made.kind == "hard":
        report(Note(f"nothing is copied: the file has two names now, and stays if {there} deletes"
                    " its own"))  # fmt: skip
    else:
        report(Note(f"nothing is copied: it is a link to `{made.path.resolve()}`, and is gone when"
                    f" {there} deletes that file"))  # fmt: skip
    for path in made.adapters:
        report(Warn(f"it has an adapter, which is beside it now: decant chat {made.name}"
                    f" --adapter {path}"))  # fmt: skip


def checked_header(model: OtherModel) -> GGUFFile:
    """The header of a model's file. Raises ModelError for anything but a whole model."""
    first = model.files[0].path
    try:
        with first.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(
            f"cannot read `{first}`: {error.strerror}", hint="may you read it? `ls -l` shows it"
        ) from error
    if not is_gguf:
        raise ModelError(
            f"{model.name!r} of {TITLES[model.program]} is no GGUF: `{first}`",
            hint=AGAIN[model.program],
        )
    header = read_gguf(first)
    if header.is_adapter or header.architecture == "clip" or not header.tensors:
        raise ModelError(
            f"{model.name!r} of {TITLES[model.program]} is no model: its GGUF holds"
            f" {'an adapter' if header.is_adapter else 'a projector, or no tensors'}",
            hint="name the model that it belongs to",
        )
    for other in (*model.projectors, *model.adapters):
        read_gguf(other.path)
    return header


def stored_name(name: str, header: GGUFFile) -> str:
    """The full name in the store: the name, and the file's quantization unless it ends with it."""
    plain = plain_name(name)
    if QUANT_AT_END.search(plain):
        return plain
    quant = quant_of_header(header)
    stem = plain.encode()[: LONGEST - len(quant)].decode(errors="ignore")
    for mark in "._":  # other programs' ways of writing it
        stem = stem.removesuffix(f"{mark}{quant}").removesuffix(f"{mark}{quant.lower()}")
    return f"{stem}-{quant}" if quant else stem


def quant_of_header(header: GGUFFile) -> str:
    """The quantization that a file states, else the type that most of its bytes have."""
    stated = header.number("general.file_type")
    if stated in BY_NUMBER:
        return BY_NUMBER[stated]
    counts: Counter[str] = Counter()
    for tensor in header.tensors:
        counts[tensor.type.name] += tensor.nbytes
    kind = counts.most_common(1)[0][0]
    kind = ALIASES.get(kind, kind)
    return kind if kind in FTYPES else ""


def named_projectors(model: OtherModel, full: str, store: Path) -> list[Path]:
    """The place of the model's projector, under the name by which chat and serve find it."""
    return [store / f"mmproj-{full}{SUFFIX}"] if model.projectors else []


def named_adapters(model: OtherModel, full: str, store: Path) -> list[Path]:
    """The places of a model's adapters."""
    name = StoredModel(store / f"{full}{SUFFIX}").name
    count = len(model.adapters)
    names = [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
    return [store / adapter_file_name(one) for one in names]
