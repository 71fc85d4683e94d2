"""The files of a split, in a folder or a hub dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from exporter.core.errors import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Endings of data files' names; text files may also have one of PACKED after it."""
PACKED = (".gz", ".zst")
OF_PYARROW = (".parquet", ".arrow")
NO_SPLIT = "data"
"""How `save_to_disk` names the files of every split."""
KEYWORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation",
}  # fmt: skip
"""Splits by the words in files' names, as `datasets` has them."""
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.")
BY_PREFERENCE = ("test", "validation")
METADATA = (
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json",
    "decant.lock.json", "package.json", "metadata.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """A split's files, in their order."""

    name: str
    files: tuple[str, ...]
    """Paths in the folder, with slashes."""
    note: str = ""
    """A sentence on the choice, if the user did not make it."""


def is_data(path: str) -> bool:
    """Whether a file has rows, by its name."""
    name = path.rpartition("/")[2].lower()
    stem = without_packing(name)
    is_packed = stem.endswith(OF_PYARROW) and stem != name
    is_hidden = any(part.startswith((".", "_")) for part in path.split("/"))
    is_cache = name.startswith("cache-") and name.endswith(".arrow")  # of `datasets`
    is_other = is_packed or is_hidden or is_cache or name in METADATA
    return stem.endswith(SUFFIXES) and not is_other


def without_packing(name: str) -> str:
    """A file's name without the end that a compressed file has."""
    for end in PACKED:
        name = name.removesuffix(end)
    return name


def find_split(
    paths: Iterable[str], settings: Mapping[str, Any], wanted: str | None, config: str | None
) -> Split:
    """The files of the wanted split, else of test, else validation, else of the only split.

    `settings`: the README's front matter, which may name each split's files. Raises InputError for
    a split or configuration that is absent or has to be chosen.
    """
    files = sorted(path for path in paths if is_data(path))
    splits = configured(files, settings, config) or by_names(files, config)
    if not splits:
        raise InputError(
            "it has no JSONL, JSON, CSV, TSV, Parquet or Arrow files"
            + (f" for the configuration {config!r}" if config else ""),
            hint="on the hub, ORG/NAME@refs/convert/parquet has most datasets as Parquet; in"
            " `datasets`: data.to_json(FILE)",
        )
    if wanted:
        name = wanted if wanted in splits else KEYWORDS.get(wanted.lower(), wanted)
        if name not in splits:
            raise InputError(f"it has no split {wanted!r}", hint=f"its splits: {', '.join(splits)}")
        return Split(name, tuple(splits[name]))
    name = next((one for one in BY_PREFERENCE if one in splits), "")
    if not name and len(splits) > 1:
        raise InputError(
            f"it has several splits: {', '.join(splits)}",
            hint=f"choose one: --split {next(iter(splits))}",
        )
    name = name or next(iter(splits))
    return Split(name, tuple(splits[name]), f"The split `{name}` was measured: none was named.")


def configured(
    files: Sequence[str], settings: Mapping[str, Any], config: str | None
) -> dict[str, list[str]]:
    """The splits that the README gives a configuration; none if it names no files.

    Raises InputError where a configuration has to be chosen.
    """
    listed = settings.get("configs")
    configs = {
        str(one.get("config_name", "default")): one
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, Mapping) and ("data_files" in one or "data_dir" in one)
    }
    if not configs:
        return {}
    default = next((name for name, one in configs.items() if one.get("default") is True), None)
    default = default or ("default" if "default" in configs else None)
    name = config or default or (next(iter(configs)) if len(configs) == 1 else None)
    if name is None or name not in configs:
        raise InputError(
            f"it has no configuration {config!r}" if config else "it has several configurations",
            hint=f"choose one as ORG/NAME:CONFIG, of: {', '.join(configs)}",
        )
    return files_of_config(files, configs[name])


def files_of_config(files: Sequence[str], config: Mapping[str, Any]) -> dict[str, list[str]]:
    folder = str(config.get("data_dir") or "").strip("./")
    if folder:
        files = [path for path in files if path.startswith(f"{folder}/")]
    listed = config.get("data_files")
    if listed is None:
        return by_names(files, None)
    if isinstance(listed, str) or (
        isinstance(listed, list) and all(isinstance(one, str) for one in listed)
    ):
        return by_names(matching(files, listed, folder), None)
    pairs = listed.items() if isinstance(listed, Mapping) else [
        (one.get("split", "train"), one.get("path")) for one in listed if isinstance(one, Mapping)
    ]  # fmt: skip
    splits = {str(split): matching(files, patterns, folder) for split, patterns in pairs}
    return {split: found for split, found in splits.items() if found}


def matching(files: Sequence[str], patterns: object, folder: str) -> list[str]:
    """The files that one of the patterns names, in the patterns' order."""
    listed = patterns if isinstance(patterns, list) else [patterns]
    globs = [str(one).removeprefix("./") for one in listed]
    globs += [f"{folder}/{one}" for one in globs] if folder else []
    found = (path for one in globs for path in files if path == one or fnmatchcase(path, one))
    return list(dict.fromkeys(found))


def by_names(files: Sequence[str], config: str | None) -> dict[str, list[str]]:
    """Files by the split in their names; those without any are train's, as `datasets` has it.

    `config`: only the files in folders of this name count; None for all.
    """
    if config:
        files = [path for path in files if config in path.split("/")[:-1]]
    splits: dict[str, list[str]] = {}
    for path in files:
        splits.setdefault(split_of(path), []).append(path)
    return splits


def split_of(path: str) -> str:
    """The split that a file's name names, or that of a folder it is in; train for others."""
    *folders, name = path.split("/")
    if (shard := SHARD.match(name)) and shard[1] != NO_SPLIT:
        return KEYWORDS.get(shard[1].lower(), shard[1])
    for part in (name, *reversed(folders)):
        words = re.split(r"[^a-z]+", part.lower())
        found = next((KEYWORDS[word] for word in words if word in KEYWORDS), None)
        if found:
            return found
    return "train"
