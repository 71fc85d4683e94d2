"""Gives a GGUF to LM Studio: a folder PUBLISHER/MODEL with links to the files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from exporter.core.atomic_file import is_there
from exporter.core.errors import ModelError, OutputError
from exporter.stores.file_link import LinkKind, is_same, link_file, refuse_other
from exporter.stores.lmstudio_models import lmstudio_folder, lmstudio_home
from exporter.stores.other_model import SHOWN

PUBLISHER = "decant"
"""The publisher under which LM Studio shows models that name none."""
PART = re.compile(r"[\w][\w.+-]{0,179}")
NOT_WRITABLE = "choose another folder in LM Studio's settings, or allow writing to this one"


def lmstudio_place(name: str) -> Path:
    """The folder of a model PUBLISHER/MODEL or MODEL.

    Raises ModelError for another name, OutputError where there is no LM Studio.
    """
    parts = name.split("/")
    parts = [PUBLISHER, *parts] if len(parts) == 1 else parts
    if len(parts) != 2 or not all(PART.fullmatch(part) for part in parts):  # noqa: PLR2004
        raise ModelError(
            f"{name[:SHOWN]!r} is no name of a model of LM Studio's",
            hint="it is PUBLISHER/MODEL or MODEL, such as decant/my-lora",
        )
    folder = lmstudio_folder()
    if not is_there(folder) and not is_there(lmstudio_home()):
        raise OutputError(
            f"LM Studio has no folder on this machine: `{folder}`", hint="start LM Studio once"
        )
    return folder.joinpath(*parts)


def link_into(
    folder: Path, files: Sequence[Path], projector: Path | None, *, if_taken: str
) -> LinkKind:
    """Link a model's files into a folder, the model's first file last. Raises OutputError.

    projector: beside the model, or None; if_taken: the hint for a name that another file has.
    """
    order = [*([projector] if projector else []), *reversed(files)]
    for file in order:
        if not is_same(file, folder / file.name):
            refuse_other(folder / file.name, if_taken)
    kinds = [
        link_file(file, folder / file.name, if_taken=if_taken, if_refused=NOT_WRITABLE)
        for file in order
    ]
    return kinds[-1]
