"""Whether an adapter says that it was trained on the data that it is to be measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporter.core.paths import is_checkpoint
from runtime.evaluation.data.front_matter import (
    fenced_settings,
    parse_json,
    parse_yaml,
    readme_settings,
    text_of_file,
)
from runtime.evaluation.data.split_files import KEYWORDS, SUFFIXES, without_packing

KEYS = {
    "dataset", "datasets", "dataset_name", "dataset_names", "dataset_path", "dataset_id",
    "dataset_repo", "dataset_mixer", "data", "data_path", "data_file", "data_files", "train_data",
    "train_file", "train_files", "training_file", "training_data", "train_dataset",
    "train_data_path", "file_name", "hub_dataset",
}  # fmt: skip
"""Names of settings for training data: axolotl's, LLaMA-Factory's, TRL's, MLX's and others'."""
INSIDE = {"path", "name", "repo_id", "ds_name", "train", *KEYS}
"""Keys of an object that describes a dataset; its other keys hold no names."""
SUFFIX = (".yaml", ".yml", ".json")
NOT_SETTINGS = ("tokenizer", "vocab", "special_tokens", "added_tokens", "model.safetensors")


def leaks(
    adapter: Path, source: str, *, split: str | None = None, is_held_out: bool = False
) -> str | None:
    """A sentence for the reader if an adapter's files name the data as its training data.

    `adapter`: its folder, or a file in it. `split`: a hub dataset's split; only `train` counts as
    training data. Returns None if no file in the folder names the data.
    """
    is_hub = not Path(source).exists()
    is_unseen = split is not None and KEYWORDS.get(split.lower(), "train") != "train"
    for path, name in (found for place in places_of(adapter) for found in named_data(place)):
        if not is_same(name, source, is_hub=is_hub):
            continue
        if is_unseen and not name.endswith(SUFFIXES):
            return None
        sentence = (
            f"{adapter.name} was trained on data of this name, as {path.name} says (`{name[:80]}`)"
        )
        if is_held_out:
            return f"{sentence}: the held-out rows are new to it only if training left them out."
        return f"{sentence}, and no held-out split was named: good figures may be memory."
    return None


def places_of(adapter: Path) -> list[Path]:
    """The folders whose files speak of an adapter: its own, and its run's if it is a checkpoint."""
    folder = adapter if adapter.is_dir() else adapter.parent
    return [folder, *([folder.parent] if is_checkpoint(folder) else [])]


def named_data(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each name of training data in a folder's files, with the file."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name == "README.md":
            text = text_of_file(path)
            values = [readme_settings(text), *fenced_settings(text)]
        elif path.suffix in SUFFIX and not path.name.startswith(NOT_SETTINGS):
            parse = parse_json if path.suffix == ".json" else parse_yaml
            values = [parse(text_of_file(path))]
        else:
            continue
        for value in values:
            yield from ((path, name) for name in names_in_settings(value))


def names_in_settings(value: Any, *, is_data: bool = False) -> Iterator[str]:  # any settings
    """The texts below keys of training data, anywhere in settings."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            is_key = str(key).lower() in (INSIDE if is_data else KEYS)
            yield from names_in_settings(one, is_data=is_key)
    elif isinstance(value, list):
        for one in value:
            yield from names_in_settings(one, is_data=is_data)
    elif is_data and isinstance(value, str):
        yield from (part.strip() for part in value.split(",") if part.strip())


def is_same(name: str, source: str, *, is_hub: bool) -> bool:
    """Whether a name in settings is that of the data."""
    if is_hub:
        bare = source.partition("@")[0] if "://" not in source else source
        wanted = bare.partition(":")[0] if "://" not in bare else bare
        return dataset_name(name) == dataset_name(wanted)
    named, path = Path(name.replace("\\", "/")), Path(source)
    if plain_name(named.name) == plain_name(path.name):
        return True
    if path.is_dir() or named.suffix:
        return path.resolve().name == named.name and named.name not in ("", ".")
    is_train_file = "train" in path.stem.lower()  # MLX names the folder with train.jsonl
    return path.stem == named.name or (is_train_file and path.resolve().parent.name == named.name)


def dataset_name(text: str) -> str:
    head = text.partition("@")[0].rstrip("/").lower()
    return head.rpartition("/datasets/")[2].removeprefix("datasets/")


def plain_name(name: str) -> str:
    return without_packing(name.lower())
