"""Gives a file a second name without a copy, and says what a link's end means.

A hard link is the first choice: the bytes stay as long as one of the names does, so that no program
can take a model from the other. Where the file system does not allow one (another disk, another
user's file), it is a symbolic link, which is dead once the first name is gone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from exporter.core.atomic_file import explained, make_folder, sync_folder
from exporter.core.errors import OutputError

LinkKind: TypeAlias = Literal["hard", "symbolic", "same"]
"""How a name was given; `same` if the file had it before."""


def link_file(source: Path, target: Path, *, if_taken: str, if_refused: str) -> LinkKind:
    """Give the file `source` the name `target`, too; nothing that exists is replaced.

    if_taken: the hint if `target` is another file; if_refused: the hint if its folder cannot be
    written to. Raises OutputError in both cases.
    """
    if is_same(source, target):
        return "same"
    refuse_other(target, if_taken)
    make_folder(target.parent, hint=if_refused)
    real = source.resolve()
    with explained(target, hint=if_refused):
        try:
            kind = new_link(real, target)
        except FileExistsError:  # made a moment ago
            if is_same(source, target):
                return "same"
            refuse_other(target, if_taken)
            raise
        sync_folder(target.parent)
    return kind


def new_link(real: Path, target: Path) -> LinkKind:
    """Make a hard link, else a symbolic one. Raises OSError if neither can be made."""
    try:
        os.link(real, target)
    except FileExistsError:
        raise
    except OSError:  # another disk, another user's file, too many links, a system without them
        target.symlink_to(real)
        return "symbolic"
    return "hard"


def is_same(one: Path, other: Path) -> bool:
    """Whether two names lead to one file; False if one of them does not exist."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def refuse_other(target: Path, hint: str) -> None:
    """Raise OutputError if the name is taken, even by a link whose file is gone."""
    if target.is_symlink() and not target.exists():
        raise OutputError(
            f"`{target}` is a link to `{target.readlink()}`, which is gone", hint=hint
        )
    if os.path.lexists(target):
        raise OutputError(f"`{target}` exists", hint=hint)
