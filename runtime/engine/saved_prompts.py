"""Keeps on disk what an engine has computed of its slots' prompts, for the next engine like it.

A file holds the keys and values of one slot. Its name says for what it may be used: a hash of the
model's file, of the llama.cpp build and of all settings that shape them, a hash of the adapters
with their scales, and a checksum of the content. An engine writes into a temporary folder, and a
file gets its name when it is complete. The folder admits only this user, and its size is limited:
the oldest files are deleted first.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Timer
from typing import Any

from exporter.core.errors import DecantError
from exporter.core.leftover_folders import temporary_folder
from runtime.engine.lora_scales import lora_list
from runtime.engine.model_server import ModelServer
from runtime.engine.openai_client import ask_json, read_text

SUFFIX = ".prompt"
SAVING = ".saving-"
TOKENS_MIN = 64
"""Shorter prompts are computed again as fast as they are read."""
FREE_PARTS = 4  # a prompt may take a quarter of the free disk
BLOCK = 1 << 20  # bytes per read
HASH_DIGITS = 24  # of 64; enough that no two of some thousand files share them
SAVE_S = 10.0
"""Seconds for saving; what is not saved by then is lost. Also for the end of reading a file."""


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """Where an engine's prompts are kept, and what they depend on."""

    folder: Path
    limit: int
    """The most bytes that the folder may hold."""
    files: tuple[Path, ...]
    """The model's files."""
    adapters: tuple[Path, ...]
    settings: tuple[str, ...]
    """The build of llama.cpp, and the settings that shape keys and values."""
    slots: int
    scales: tuple[tuple[float, ...], ...]
    """The adapters' scales that requests will have."""


@dataclass(eq=False)
class SavedPrompts:
    """The prompts of one engine; made before it starts. Raises OSError if there is no folder."""

    plan: PromptPlan
    key: str = field(init=False)
    adapters: list[list[object]] = field(init=False)
    """The identities of the adapters when the engine starts."""
    used: dict[int, Path] = field(default_factory=dict)
    """The files that were restored, by their slots; `save` replaces them."""
    place: TemporaryDirectory[str] = field(init=False)
    working: Lock = field(default_factory=Lock)
    """Held while files are read or written: one at a time, because they share a folder."""
    is_ending: bool = False
    """Whether no further file is to be read."""

    def __post_init__(self) -> None:
        folder = self.plan.folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self.key, self.adapters = self.identities()
        self.place = temporary_folder(folder, SAVING)

    def identities(self) -> tuple[str, list[list[object]]]:
        """A hash of the model's files and the settings, and the adapters' identities."""
        adapters = [identity(path) for path in self.plan.adapters]
        return digest([*map(identity, self.plan.files), *self.plan.settings]), adapters

    def adapters_key(self, scales: Sequence[float]) -> str:
        """A hash of the adapters that are applied, with their scales as llama.cpp has them."""
        pairs = zip(self.adapters, scales, strict=True)
        return digest(sorted([*one, single(scale)] for one, scale in pairs if scale))

    def flags(self) -> tuple[str, ...]:
        """The flags of llama-server."""
        return ("--slot-save-path", self.place.name)

    def restore(self, server: ModelServer) -> None:
        """Fill the slots that have had no request with the newest prompts of the plan's scales.

        The newest goes to the first slot, because an unused engine's last slot is taken first.
        Does nothing if a file was changed since the engine started. Never raises.
        """
        with self.working, suppress(OSError):  # the folder or the model's file was removed
            if self.identities() != (self.key, self.adapters):
                self.key = ""
                return
            known = {self.adapters_key(scales): scales for scales in self.plan.scales}
            slots = [slot for slot in range(self.plan.slots) if slot not in self.used]
            for path in self.files(self.key):
                scales = known.get(adapters_key_in(path))
                if self.is_ending or not slots:
                    return
                if path in self.used.values() or scales is None or not self.is_whole(path):
                    continue
                self.restore_one(server, slots, path, scales)

    def is_whole(self, path: Path) -> bool:
        """Whether a file has the content that its name says; deletes it otherwise."""
        with suppress(FileNotFoundError):  # another engine has replaced it
            if path.name == self.name_of(path, adapters_key_in(path)):
                return True
            delete(path)
        return False

    def restore_one(
        self, server: ModelServer, slots: list[int], path: Path, scales: Sequence[float]
    ) -> None:
        """Fill the next unused slot from a file, and remove that slot and used ones from `slots`.

        Deletes a file that the engine refuses, or that ends it. Raises OSError.
        """
        linked = Path(self.place.name) / "restored"
        linked.unlink(missing_ok=True)
        linked.symlink_to(path)
        body = {"filename": linked.name, "lora": lora_list(scales), "if_unused": True}
        while slots:
            try:
                with server.post(f"/slots/{slots[0]}?action=restore", body) as response:
                    read_text(response)
            except DecantError:
                slots.clear()
                delete(path)
                return
            if response.status == HTTPStatus.OK:
                self.used[slots.pop(0)] = path
                return
            if response.status != HTTPStatus.SERVICE_UNAVAILABLE:
                delete(path)
                return
            del slots[0]  # it is in use

    def save(self, server: ModelServer, kill: Callable[[], None]) -> None:
        """Write what the slots hold, each in place of what it was restored from. Never raises.

        kill: ends the engine's process, if saving takes longer than SAVE_S.
        """
        with self.working:
            if not self.key:
                return
            timer = Timer(SAVE_S, kill)
            timer.start()
            try:
                for slot in range(self.plan.slots):
                    written, before = self.save_one(server, slot), self.used.get(slot)
                    if written is not None and before not in (None, written):
                        delete(before)
                self.keep_within_limit()
            except (DecantError, OSError):
                return
            finally:
                timer.cancel()

    def save_one(self, server: ModelServer, slot: int) -> Path | None:
        """Write one slot; None if it holds little, or the disk has little room."""
        there = Path(self.place.name) / "saved"
        free = shutil.disk_usage(there.parent).free
        most = min(self.plan.limit, free // FREE_PARTS)
        body = {"filename": there.name, "min_tokens": TOKENS_MIN, "max_bytes": most}
        try:
            found = ask_json(server, f"/slots/{slot}?action=save", body)
            adapters_key = self.adapters_key(scales_in(found, len(self.adapters)))
            path = self.plan.folder / self.name_of(there, adapters_key)
            there.chmod(0o600)
            there.replace(path)
        except (DecantError, KeyError):
            return None
        finally:
            there.unlink(missing_ok=True)
        return path

    def name_of(self, path: Path, adapters_key: str) -> str:
        """The name that a file must have, with a checksum of its content."""
        return f"{self.key}-{adapters_key}-{checksum(path):08x}-{path.stat().st_size}{SUFFIX}"

    def files(self, key: str = "") -> list[Path]:
        """The files for a key, the newest first."""
        found = [(age_of(path), path) for path in self.plan.folder.glob(f"{key}*{SUFFIX}")]
        return [path for _, path in sorted(found, reverse=True)]

    def keep_within_limit(self) -> None:
        """Delete the oldest files beyond the limit."""
        total = 0
        for path in self.files():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
            if total > self.plan.limit:
                delete(path)

    def has_stopped_reading(self) -> bool:
        """Read no further file; returns whether the last one has been read within SAVE_S."""
        self.is_ending = True
        is_free = self.working.acquire(timeout=SAVE_S)
        if is_free:
            self.working.release()
        return is_free

    def close(self) -> None:
        """Delete the temporary folder; the engine has ended."""
        self.is_ending = True
        with self.working, suppress(OSError):
            self.place.cleanup()


def forget_prompts(folder: Path) -> None:
    """Delete what is kept of all conversations in a folder."""
    for path in folder.glob(f"*{SUFFIX}"):
        delete(path)


def scales_in(found: dict[str, Any], count: int) -> list[float]:
    """The adapters' scales that a slot was computed with. Raises KeyError without them."""
    scales = {one["id"]: one["scale"] for one in found["lora"]}
    return [scales[number] for number in range(count)]


def adapters_key_in(path: Path) -> str:
    """The hash of the adapters in a file's name; empty for another name."""
    parts = path.name.split("-")
    return parts[1] if len(parts) == 4 else ""  # noqa: PLR2004 - see `name_of`


def identity(path: Path) -> list[object]:
    """Values that differ for another file, and for the same file after a change."""
    stat = path.stat()
    times = stat.st_mtime_ns, stat.st_ctime_ns  # the first can be set back
    return [str(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, *times]


def single(scale: float) -> float:
    """A scale in single precision, as llama.cpp keeps it."""
    return float(struct.unpack("f", struct.pack("f", scale))[0])


def digest(value: object) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:HASH_DIGITS]


def checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found = zlib.crc32(block, found)
    return found


def age_of(path: Path) -> int:
    """The time of the last change, in nanoseconds; 0 for a file that is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
