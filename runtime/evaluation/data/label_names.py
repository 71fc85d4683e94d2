"""Names of the numbers in a column of labels, as datasets declare them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.evaluation.data.arrow_rows import arrow_label_names
from runtime.evaluation.data.front_matter import parse_json, readme_settings, text_of_file
from runtime.evaluation.data.parquet_rows import parquet_label_names


def label_names(column: str, files: Sequence[Path], folder: Path | None) -> tuple[str, ...]:
    """The labels' names, by number; empty if none are declared.

    They are declared in a Parquet or Arrow file, or in a README or `dataset_info.json` beside the
    files or in `folder`. Raises InputError for a damaged file.
    """
    for path in files[:1]:
        if path.suffix == ".parquet" and (names := parquet_label_names(path).get(column)):
            return names
        if path.suffix == ".arrow" and (names := arrow_label_names(path).get(column)):
            return names
    places = [folder] if folder else []
    for place in dict.fromkeys([*places, *(path.parent for path in files[:1])]):
        for features in declared(place):
            if names := names_in(features, column):
                return names
    return ()


def declared(folder: Path) -> Iterator[Any]:
    """The features of each configuration that a folder's files declare."""
    info = readme_settings(text_of_file(folder / "README.md")).get("dataset_info")
    listed: list[Any] = [*info] if isinstance(info, list) else [info]
    listed.append(parse_json(text_of_file(folder / "dataset_info.json")))
    infos = parse_json(text_of_file(folder / "dataset_infos.json"))
    listed += list(infos.values()) if isinstance(infos, Mapping) else []
    yield from (one.get("features") for one in listed if isinstance(one, Mapping))


def names_in(features: Any, column: str) -> tuple[str, ...]:  # YAML or JSON, of any shape
    """The names that a list or an object of features gives a column's numbers."""
    if isinstance(features, Mapping):
        kind = features.get(column)
    else:
        listed = features if isinstance(features, list) else []
        named = (one for one in listed if isinstance(one, Mapping) and one.get("name") == column)
        kind = next(named, {}).get("dtype")
        kind = kind.get("class_label") if isinstance(kind, Mapping) else None
    names = kind.get("names") if isinstance(kind, Mapping) else None
    if isinstance(names, Mapping):  # {'0': negative, '1': positive}
        names = [names[key] for key in sorted(names, key=as_number)]
    return tuple(str(one) for one in names) if isinstance(names, list) else ()


def as_number(key: object) -> int:
    return int(str(key)) if str(key).isdecimal() else 0
