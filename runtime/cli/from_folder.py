"""The model of `decant chat FOLDER` and `decant serve FOLDER`, where FOLDER is a trainer's.

An adapter is used beside its base, which is found among the exported models, or exported once. An
adapter that no GGUF adapter can hold is merged, once, too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import (
    AdapterRepoError,
    DecantError,
    EngineError,
    ModelError,
    UnsupportedError,
)
from exporter.core.event_lines import AS_JSON, VARIABLE, event_of
from exporter.core.events import Note, Report, Step, silent
from exporter.core.file_lock import one_at_a_time
from exporter.core.gguf import SUFFIX, GGUFFile, read_gguf
from exporter.core.paths import model_name, run_of
from exporter.llamacpp.toolchain import cache_folder
from exporter.model_store import file_name, find_model, is_stored, list_models, plain_name
from runtime.engine.adapters import BASE, Adapter, Wanted, gguf_of

if TYPE_CHECKING:
    from exporter.inputs.adapter_spec import AdapterSpec

QUANT = "Q4_K_M"
"""The type of the models exported here: the default of `decant export`."""
ZIP = ".zip"


@dataclass(frozen=True, slots=True)
class FromFolder:
    """A model made from a folder, or found for it."""

    path: Path
    """The GGUF of the base, or of the merged model."""
    adapter: Adapter | None = None
    """The adapter to load beside it."""


def is_folder(text: str, store: Path) -> bool:
    """Whether MODEL is a local folder or a zip of one; a stored model of that name goes first."""
    path = Path(text)
    if not (path.is_dir() or (path.suffix == ZIP and path.is_file())):
        return False
    return not is_stored(text, store)


def model_of(text: str, base: str | None, store: Path, *, report: Report = silent) -> FromFolder:
    """The model that MODEL means: a stored one, a GGUF, a folder, or a repo, which is pulled.

    Raises the errors of finding, pulling, converting and exporting.
    """
    if is_folder(text, store):
        return from_folder(text, base, store, report=report)
    try:
        return FromFolder(find_model(text, store, report=report))
    except AdapterRepoError:
        from exporter.hub.resolve import folder_of

        return from_folder(str(folder_of(text, report=report)), base, store, report=report)


def from_folder(text: str, base: str | None, store: Path, *, report: Report = silent) -> FromFolder:
    """The model for a folder with an adapter, or with a whole model.

    base: a GGUF, folder or repo to use in place of the base that the adapter names. Raises the
    errors of opening, pulling, converting and exporting.
    """
    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.adapter_kinds import refuse_for_adapter_file
    from exporter.inputs.find_model import model_in_place_of_adapter
    from exporter.inputs.locate import find_base, nothing, place_of

    place = Path(text)
    if (whole := model_in_place_of_adapter(place, report=report)) is not None:
        run = run_of(place, whole)
        title = model_name(run) if run else None
        return FromFolder(exported(whole, store, name=title, report=report))
    adapter = open_adapter(place, refuse=nothing, report=report)
    over = place_of(base, report=report) if base is not None else None
    here = over if over is not None and over.suffix == SUFFIX else None
    trained_on = over if over is not None and here is None else find_base(adapter, report=report)
    name = plain_name(adapter.name)
    name = f"{name}-adapter" if name == BASE else name
    try:
        refuse_for_adapter_file(adapter.config, adapter.folder)
        wanted = Wanted(name, str(adapter.place), 1.0)
        made = gguf_of(wanted, str(trained_on), store, report=report)
    except UnsupportedError as error:
        report(Note(f"{error.message}: it is merged into its base"))
        return FromFolder(merged(adapter, trained_on, store, report=report))
    path = here or exported(trained_on, store, report=report)
    return FromFolder(path, Adapter(name, made, 1.0))


def exported(base: Path, store: Path, *, name: str | None = None, report: Report) -> Path:
    """The stored model of this base without an adapter; exported if there is none.

    name: of the file, if it is not the base's.
    """
    from exporter.inputs.base_sample import is_made_of, weights_sample
    from exporter.inputs.open_checkpoint import open_checkpoint

    checkpoint = open_checkpoint(base)
    exact, folder = checkpoint.name, checkpoint.folder

    def is_it(header: GGUFFile) -> bool:
        return not header.text("decant.adapter") and is_made_of(header, exact, folder)

    arguments = ["-", "--base", str(base)]

    def names() -> Iterator[str]:  # the sample reads the weights: only where it is needed
        yield from (name or exact, exact)
        yield f"{exact}-{weights_sample(folder)[:8]}"

    output = new_file(store, names())
    return once(store, output, is_it, f"the base {exact}", arguments, report=report)


def merged(adapter: AdapterSpec, base: Path, store: Path, *, report: Report) -> Path:
    """The stored model that this adapter was merged into; exported if there is none."""

    def is_it(header: GGUFFile) -> bool:
        return header.text("decant.adapter.sha256") == adapter.sha256()

    output = new_file(store, (adapter.name, adapter.exact_name))
    arguments = [str(adapter.place), "--base", str(base)]
    return once(store, output, is_it, adapter.name, arguments, report=report)


def new_file(store: Path, names: Iterable[str]) -> Path:
    """The path by the first of the names that no stored model has, else by the last."""
    paths = (store / file_name(name, QUANT) for name in names)
    path = next(paths)
    while path.exists() and (following := next(paths, None)):
        path = following
    return path


def once(
    store: Path,
    output: Path,
    is_it: Callable[[GGUFFile], bool],
    what: str,
    arguments: Sequence[str],
    *,
    report: Report,
) -> Path:
    """The stored model that `is_it` accepts; if there is none, one process of several exports it.

    what: the model's name in messages.
    """
    if (found := stored(store, is_it)) is not None:
        return found
    place = hashlib.sha256(os.fsencode(output.absolute())).hexdigest()[:32]
    wait = Step(f"another process exports {what}: waiting")
    with one_at_a_time(cache_folder() / "exports" / f"{place}.lock", lambda: report(wait)):
        if (found := stored(store, is_it)) is not None:
            return found
        report(Step(f"exporting {what} to {QUANT}, once"))
        return export(arguments, output, report=report)


def stored(store: Path, is_it: Callable[[GGUFFile], bool]) -> Path | None:
    """The first stored model that `is_it` accepts, those in QUANT before others."""
    found = []
    for model in list_models(store):
        try:
            header = read_gguf(model.path)
        except ModelError:
            continue
        if not header.is_adapter and is_it(header):
            found.append((header.text("decant.quant") != QUANT, model.path))
    return min(found)[1] if found else None


def export(arguments: Sequence[str], output: Path, *, report: Report) -> Path:
    """Export in another process, as exporting loads torch. Raises that process's error."""
    argv = [sys.executable, "-m", "exporter", "export", *arguments, "-o", str(output)]
    lines: list[str] = []
    env = {**os.environ, VARIABLE: AS_JSON}
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        env=env,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if (event := event_of(line)) is not None:
                report(event)
                continue
            lines.append(line)
            if line.strip() and "error: " not in "".join(lines):
                report(Note(line.strip()))
    if process.returncode:
        raise failure(process.returncode, "".join(lines), arguments)
    return output


def failure(
    code: int, stderr: str, arguments: Sequence[str], command: str = "export"
) -> DecantError:
    """The error of a failed command of decant, with its message and hint."""
    _, _, message = stderr.rpartition("error: ")
    what, _, hint = message.strip().partition("\n\nhint: ")
    kinds = {kind.exit_code: kind for kind in DecantError.__subclasses__()}
    kind = kinds.get(code, EngineError)
    by_hand = f"try it by hand: decant {command} {' '.join(arguments)}"
    return kind(what or f"`decant {command}` ended with {code}", hint=hint or by_hand)
