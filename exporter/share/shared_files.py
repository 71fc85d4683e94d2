"""The files of the models to publish: split GGUFs whole, projectors, and Ollama's Modelfile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exporter.core.errors import InputError, ModelError, UnsupportedError, VerifyError
from exporter.core.events import Note, Report, Warn
from exporter.core.gguf import SUFFIX, GGUFFile, read_gguf
from exporter.formats.ollama import MODELFILE
from exporter.hub.resolve import is_repo
from exporter.hub.upload.sent_file import LocalFile
from exporter.inputs.base_sample import are_of_one_base
from exporter.model_store import (
    QUANT_AT_END,
    StoredModel,
    find_models,
    is_model,
    is_stored,
    refuse_other_file,
)
from exporter.verify.after import REJECTED
from exporter.verify.projector import PROJECTOR
from exporter.verify.verified_record import VerifiedRecord, read_record

OLLAMA_FILES = ("template", "system", "params")
"""Files from which Ollama takes a prompt's form and settings when it pulls from a hub."""
SAME_SOURCE = ("decant.adapter", "decant.adapter.sha256")
"""Keys by which a projector and a model of one base are of one export."""
TAKES = "decant push takes GGUFs: a stored model's name, FILE.gguf, or a folder with GGUFs"


@dataclass(frozen=True, slots=True)
class SharedModel:
    """A GGUF to publish."""

    header: GGUFFile
    files: tuple[Path, ...]
    """All files of a split model."""
    quant: str
    verified: VerifiedRecord | None

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def kind(self) -> Literal["model", "adapter", "projector"]:
        if self.header.is_adapter:
            return "adapter"
        return "projector" if self.header.architecture == PROJECTOR else "model"


def shared_models(
    texts: Sequence[str], store: Path, *, verify: bool = True, report: Report
) -> tuple[SharedModel, ...]:
    """The GGUFs that the texts name, each once, with the projectors that belong to them.

    Raises ModelError and UnsupportedError for what is no GGUF, and VerifyError for a file whose
    verification failed, unless `verify` is false.
    """
    paths = dict.fromkeys(path for text in texts for path in named_paths(text, store))
    models = [open_shared(path) for path in paths]
    for model in tuple(models):
        for projector in projectors_beside(model):
            if projector not in paths:
                paths[projector] = None
                models.append(open_shared(projector))
                report(Note(f"{projector.name} belongs to {model.path.name} and goes along"))
    if all(model.kind == "projector" for model in models):
        raise UnsupportedError(
            f"`{models[0].path}` is a projector, which belongs to a model",
            hint="push the model: a projector beside it goes along",
        )
    for model in models:
        refuse_wrong(model, verify=verify, report=report)
    return tuple(models)


def named_paths(text: str, store: Path) -> Iterator[Path]:
    """The first files of the GGUFs that a text names.

    Raises ModelError, UnsupportedError and VerifyError, as `shared_models` does.
    """
    path = Path(text)
    if not text:
        raise ModelError("MODEL is empty", hint="is a variable of the shell not set?")
    if path.name.endswith(SUFFIX + REJECTED):
        refuse_rejected(path)
    if path.suffix == SUFFIX and path.is_file():
        yield path
    elif path.is_dir() and not is_stored(text, store):
        yield from ggufs_in(path)
    elif is_repo(text) and path.suffix != SUFFIX:
        raise UnsupportedError(f"{text!r} is a repo of a hub, and no file here", hint=TAKES)
    elif "/" in text:
        refuse_other_file(text)
        raise ModelError(f"there is no GGUF `{text}`", hint="is the path right?")
    else:
        yield from stored_paths(text, store)


def stored_paths(text: str, store: Path) -> list[Path]:
    """The stored models of that name. Raises ModelError, or VerifyError for a rejected one."""
    name = text.removesuffix(SUFFIX)
    rejected = sorted(store.glob(f"*{SUFFIX}{REJECTED}")) if store.is_dir() else []
    try:
        return [model.path for model in find_models(text, store)]
    except ModelError:
        for path in rejected:
            model = StoredModel(path.with_name(path.name.removesuffix(REJECTED)))
            if name in (model.name, model.full_name):
                refuse_rejected(path)
        raise


def ggufs_in(folder: Path) -> list[Path]:
    """The GGUFs of a folder. Raises UnsupportedError, with what can be pushed, without one."""
    found = sorted(p for p in folder.glob(f"*{SUFFIX}") if p.is_file() and is_model(p))
    if found:
        return found
    is_merged = any(folder.glob("*.safetensors"))
    raise UnsupportedError(
        f"`{folder}` has no GGUF",
        hint=f"{TAKES}; `hf upload ORG/NAME {folder}` publishes any other folder"
        if is_merged
        else TAKES,
    )


def refuse_rejected(path: Path) -> None:
    """Raise VerifyError for a file that its export found wrong."""
    whole = path.with_name(path.name.removesuffix(REJECTED))
    raise VerifyError(
        f"`{path}` failed its verification",
        hint=f"export it again; or, to publish it as it is, rename it to `{whole.name}`"
        " and pass --no-verify",
    )


def open_shared(path: Path) -> SharedModel:
    """Read a GGUF's header. Raises ModelError for a damaged or an incomplete one."""
    header = read_gguf(path)
    files = header.shards or (path,)
    return SharedModel(header, files, quant_of(header), read_record(files))


def quant_of(header: GGUFFile) -> str:
    """The quantization by the file's name, else the type that most values have."""
    if found := QUANT_AT_END.search(StoredModel(header.path).full_name):
        return found[1].upper()
    counts: Counter[str] = Counter()
    for tensor in header.tensors:
        counts[tensor.type.name] += tensor.nbytes
    return counts.most_common(1)[0][0] if counts else ""


def refuse_wrong(model: SharedModel, *, verify: bool, report: Report) -> None:
    """Raise VerifyError for a file that is known to be wrong; warn of one that is not verified."""
    if model.verified is None:
        if model.kind == "model":
            report(Warn(f"{model.path.name} was not verified by decant"))
    elif problems := model.verified.problems:
        if verify:
            raise VerifyError(
                f"`{model.path}` failed its verification: {problems[0]}",
                hint="export it again; --no-verify publishes it as it is, and the card says so",
            )
        report(Warn(f"{model.path.name} failed its verification"))


def projectors_beside(model: SharedModel) -> Iterator[Path]:
    """The projectors in a model's folder that are of its export, by their names or their keys."""
    if model.kind != "model":
        return
    folder, stored = model.path.parent, StoredModel(model.path)
    names = {f"mmproj-{name}{SUFFIX}" for name in (stored.name, stored.full_name)}
    for path in sorted(folder.glob(f"mmproj*{SUFFIX}")):
        if path.name in names or is_same_export(path, model.header):
            yield path


def is_same_export(path: Path, header: GGUFFile) -> bool:
    try:
        other = read_gguf(path)
    except ModelError:
        return False
    return are_of_one_base(header, other) and all(
        header.text(key) == other.text(key) for key in SAME_SOURCE
    )


def upload_files(models: Sequence[SharedModel], *, report: Report) -> tuple[LocalFile, ...]:
    """Everything that is sent: all files of the models, and Ollama's files beside them.

    Raises InputError for two files of one name.
    """
    paths = [path for model in models for path in model.files]
    for folder in dict.fromkeys(path.parent for path in paths):
        names = {path.name for path in paths if path.parent == folder}
        paths += ollama_files(folder, names, report=report)
    found: dict[str, LocalFile] = {}
    for path in paths:
        if path.name in found:
            raise InputError(
                f"`{found[path.name].path}` and `{path}` have the same name",
                hint="rename one of them",
            )
        found[path.name] = LocalFile(path, path.name)
    return tuple(found.values())


def ollama_files(folder: Path, names: set[str], *, report: Report) -> list[Path]:
    """The Modelfile for one of these GGUFs, with the files that Ollama reads beside it."""
    path = folder / MODELFILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError):
        lines = []
    words = [line.split(maxsplit=1) for line in lines]
    made_from = {w[1].strip().removeprefix("./") for w in words if len(w) > 1 and w[0] == "FROM"}
    if not made_from & names:
        return []
    report(Note(f"`{path}` goes along"))
    return [path, *(other for name in OLLAMA_FILES if (other := folder / name).is_file())]
