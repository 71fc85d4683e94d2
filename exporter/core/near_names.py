"""Names near a mistyped one, for the hints of errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

ALIKE = 0.6  # least share of equal characters, as difflib.get_close_matches counts it
LONG = 80  # characters of a name that are compared: the time grows with their square
MANY = 1000  # names that are compared: some 10 ms
PART = 3  # characters of a part by which longer names are found


def near_names(
    name: str, known: Iterable[str], *, most: int = 1, alike: float = ALIKE
) -> list[str]:
    """The known names most like `name`, whatever their case; then those that contain it."""
    plain: dict[str, str] = {}
    for one in islice(known, MANY):
        plain.setdefault(folded(one), one)
    wanted = folded(name)
    found = difflib.get_close_matches(wanted, plain, n=most, cutoff=alike)
    if len(wanted) >= PART:
        found += [one for one in plain if wanted in one]
    return [plain[one] for one in dict.fromkeys(found)][:most]


def folded(name: str) -> str:
    return name[:LONG].lower().replace("_", "-")


def did_you_mean(
    name: str,
    known: Iterable[str],
    otherwise: str,
    *,
    form: str = "{}",
    most: int = 1,
    alike: float = ALIKE,
) -> str:
    """The hint that offers the names near `name`, or `otherwise` if none is near.

    form: the text to type for a name, such as `/{}`.
    """
    near = near_names(name, known, most=most, alike=alike)
    return f"did you mean {' or '.join(map(form.format, near))}?" if near else otherwise


def near_files(path: Path, otherwise: str, suffixes: tuple[str, ...] = ()) -> str:
    """The hint for a path without a file: names like it in its folder, else `otherwise`.

    suffixes: of the files that are meant; without any, folders count, too.
    """
    try:
        names = sorted(
            child.name
            for child in path.parent.iterdir()
            if not child.name.startswith(".") and (not suffixes or child.name.endswith(suffixes))
        )
    except OSError:
        return otherwise
    above = "" if path.parent == Path() else f"{path.parent}/"
    return did_you_mean(path.name, names, otherwise, form=f"`{braced(above)}{{}}`", most=2)


def braced(text: str) -> str:
    """The text as str.format prints it unchanged."""
    return text.replace("{", "{{").replace("}", "}}")
