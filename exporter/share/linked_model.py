"""Gives a model of decant's store to Ollama or LM Studio, without a copy."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from exporter.core.errors import ModelError, UnsupportedError
from exporter.core.events import Note, Report, Warn
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.formats.ollama import MAX_TOKENS, ollama_settings
from exporter.model_store import QUANT_AT_END, StoredModel, refuse_adapter
from exporter.share.shared_files import open_shared, projectors_beside, quant_of
from exporter.stores.checked_hash import hashed
from exporter.stores.file_link import LinkKind
from exporter.stores.lmstudio_writer import link_into, lmstudio_place
from exporter.stores.ollama_api import create_copy, ollama_address, refuse_absent, sees
from exporter.stores.ollama_names import OllamaName, parse_ollama_name, speakable
from exporter.stores.ollama_writer import LinkedBlob, NewModel, home_to_write, write_model

Target: TypeAlias = Literal["ollama", "lmstudio"]
UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "K"))
SHARED = {
    "hard": "nothing is copied: the file has two names now",
    "symbolic": "nothing is copied: it is a link, which is dead when `decant rm` deletes the file",
    "same": "nothing is copied: it has the file already",
    "copy": "Ollama has a copy now",
}


@dataclass(frozen=True, slots=True)
class Linked:
    """A model that another program has now."""

    name: str
    """The name to type there."""
    place: Path | None
    """The folder or the store that has it; None for a copy that was sent."""
    kind: LinkKind | Literal["copy"]


def link_model(
    path: Path, target: Target, name: str | None, *, copy: bool = False, report: Report
) -> Linked:
    """Give a model to a program, under `name` or its own.

    copy: send it over Ollama's API. Raises ModelError for what is no model, UnsupportedError for
    one that the program does not take, OutputError for a name that is taken.
    """
    header = read_gguf(path, keep_items=MAX_TOKENS if target == "ollama" else 0)
    refuse_adapter(header)
    if header.architecture == "clip" or not header.tensors:
        raise ModelError(
            f"`{path}` is a projector, or holds no tensors", hint="name the model it belongs to"
        )
    if target == "ollama":
        made = to_ollama(header, name, copy=copy, report=report)
    else:
        made = to_lmstudio(header, name)
    report(Note(SHARED[made.kind]))
    return made


def projector_of(path: Path) -> Path | None:
    """The projector beside a model that belongs to it."""
    return next(projectors_beside(open_shared(path)), None)


def to_lmstudio(header: GGUFFile, name: str | None) -> Linked:
    stored = StoredModel(header.path)
    place = lmstudio_place(name or stored.name)
    taken = f"`decant link {stored.full_name} --to lmstudio --as NAME` gives it another folder"
    files = header.shards or (header.path,)
    kind = link_into(place, files, projector_of(header.path), if_taken=taken)
    return Linked(f"{place.parent.name}/{place.name}", place, kind)


def to_ollama(header: GGUFFile, name: str | None, *, copy: bool, report: Report) -> Linked:
    """Write a model into Ollama's store, or send it. Raises UnsupportedError for a split one."""
    if header.shards:
        raise UnsupportedError(
            f"`{header.path}` is split into {len(header.shards)} files, and Ollama takes one",
            hint="export it without --split-max-size",
        )
    stored = StoredModel(header.path)
    wanted = parse_ollama_name(name) if name else usual_name(stored)
    taken = f"`decant link {stored.full_name} --to ollama --as NAME` gives it another name"
    address = ollama_address(os.environ)
    if copy:
        refuse_absent(address, wanted, if_taken=taken)
        create_copy(new_model(header, wanted, report=report), address, report=report)
        return Linked(str(wanted), None, "copy")
    home = home_to_write(os.environ)  # an error without one, before the file is hashed
    kind = write_model(new_model(header, wanted, report=report), home, if_taken=taken)
    if sees(address, wanted) is False:
        report(Warn(f"the Ollama at {address} does not show {str(wanted)!r}: it has another store"
                    f" than `{home}`; OLLAMA_MODELS names the right one"))  # fmt: skip
    return Linked(str(wanted), home, kind)


def usual_name(stored: StoredModel) -> OllamaName:
    """MODEL:QUANT for a stored model, so that quantizations stand side by side there, too."""
    quant = QUANT_AT_END.search(stored.full_name)
    tag = f":{quant[1]}" if quant else ""
    return parse_ollama_name(f"{speakable(stored.name)}{tag}")


def new_model(header: GGUFFile, name: OllamaName, *, report: Report) -> NewModel:
    """All that Ollama needs of a model; the files are hashed."""
    settings = ollama_settings(header, None, report=report)
    texts = []
    if settings.template is not None:
        texts.append(("template", settings.template.encode()))
    else:
        report(Warn("versions of Ollama that do not read the GGUF's chat template give it bare"
                    " text"))  # fmt: skip
    if settings.system:
        texts.append(("system", settings.system.encode()))
    values = {key: json.loads(value) for key, value in settings.parameters.items()}
    if settings.stops:
        values["stop"] = list(settings.stops)
    if values:
        texts.append(("params", json.dumps(values, ensure_ascii=False).encode()))
    files = [("model", header.path)]
    if projector := projector_of(header.path):
        files.append(("projector", projector))
    linked = tuple(
        LinkedBlob(kind, path, hashed(path, path.name, report=report)) for kind, path in files
    )
    return NewModel(name, linked, tuple(texts), config_of(header))


def config_of(header: GGUFFile) -> dict[str, object]:
    """The facts that Ollama shows of a model; the last two are the same for all."""
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": short_count(header.parameters),
        "file_type": quant_of(header),
        "architecture": "amd64",
        "os": "linux",
    }


def short_count(parameters: int) -> str:
    """A number of parameters as Ollama shows it: 1.2B, 542.34K."""
    for size, unit in UNITS:
        if parameters >= size:
            return f"{parameters / size:.{1 if unit == 'B' else 2}f}".rstrip("0").rstrip(".") + unit
    return str(parameters)
