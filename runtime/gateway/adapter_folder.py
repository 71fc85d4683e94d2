"""Watches a folder of adapters: new adapters are served, deleted ones are served no longer.

An adapter is added when its files have stayed the same for a moment and its header is right, so
that an adapter is not read while it is copied. The folder is polled, because no notification of
the system works on every file system.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from exporter.core.events import Warn
from exporter.core.gguf import SUFFIX
from exporter.inputs.find_adapter import CONFIG
from runtime.gateway.adapter_registry import NAME_TAKEN, TOO_MANY, AdapterRegistry, Change
from runtime.gateway.api_errors import ApiError
from runtime.gateway.call import Gateway

POLL_S = 0.5  # between two looks at the folder
SETTLE_S = 1.0  # an adapter's files must stay the same for this time
SLOW_S = 60  # an adapter that takes longer does not keep the server from being ready
RETRY_S = 10  # the wait before an adapter is tried again whose files are not at fault
Mark = tuple[tuple[str, int, int, int], ...]
"""Name, size, modification time in ns and inode of each file of an adapter."""


class Found(NamedTuple):
    """An adapter's place and the state of its files."""

    path: Path
    mark: Mark


class Taken(NamedTuple):
    """An adapter that the folder has added."""

    mark: Mark
    base: str
    version: int
    """Of the adapter; one that a client has put in its place has another."""


@dataclass(eq=False)
class AdapterFolder:
    """A watched folder. Its adapters have the names of their files and folders."""

    folder: Path
    registry: AdapterRegistry
    clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    since: dict[str, tuple[Mark, float]] = field(default_factory=dict)
    """The last seen state of each adapter, and the time from which on it can be added."""
    served: dict[str, Taken] = field(default_factory=dict)
    """The adapters that the folder has added; a request may have removed some of them."""
    refused: dict[str, Mark] = field(default_factory=dict)
    """The state of each adapter that cannot be served."""
    reasons: dict[str, str] = field(default_factory=dict)
    """The last reported refusal of each adapter."""
    adding: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """The adapters that are being read now."""
    is_readable: bool = True

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.look()

    async def settle(self) -> None:
        """Look until every adapter that was in the folder is served or refused, or too slow."""
        await self.look()
        end = self.clock() + SLOW_S
        for name in list(self.since):
            while name in self.since and not self.is_decided(name) and self.clock() < end:
                await asyncio.sleep(SETTLE_S / 4)
                await self.look()

    def is_decided(self, name: str) -> bool:
        mark, ready_at = self.since[name]
        is_late = ready_at > self.clock() + SETTLE_S  # it waits for room
        return self.is_known(name, mark) or is_late

    def is_known(self, name: str, mark: Mark) -> bool:
        """Whether an adapter in this state was added or refused."""
        taken = self.served.get(name)
        return (taken is not None and taken.mark == mark) or self.refused.get(name) == mark

    async def look(self) -> None:
        """Add the adapters that are complete, and remove those that are absent."""
        try:
            found = await asyncio.to_thread(adapters_in, self.folder)
        except OSError as error:
            if self.is_readable:
                self.registry.report(Warn(f"cannot read `{self.folder}`: {error.strerror}"))
            self.is_readable = False
            return
        self.is_readable = True
        for name in [name for name in self.served if name not in found]:
            self.remove(name)
        for known in (self.since, self.refused, self.reasons):
            for name in [name for name in known if name not in found]:
                del known[name]
        for name, one in found.items():
            if self.is_new(name, one.mark):
                task = self.adding[name] = asyncio.ensure_future(self.add(name, one))
                await asyncio.wait({task}, timeout=POLL_S)  # a slow one goes on beside the others
        for name in [name for name, task in self.adding.items() if task.done()]:
            del self.adding[name]

    def is_new(self, name: str, mark: Mark) -> bool:
        """Whether an adapter is new or changed, and its files have stayed the same long enough."""
        if name in self.adding or self.is_known(name, mark):
            return False
        seen, ready_at = self.since.get(name, ((), 0.0))
        if seen != mark:
            self.since[name] = (mark, self.clock() + SETTLE_S)
            return False
        return self.clock() >= ready_at

    def is_own(self, name: str) -> bool:
        """Whether the adapter that is served under a name is the one that the folder added."""
        taken = self.served.get(name)
        return taken is not None and self.registry.version_of(name, taken.base) == taken.version

    async def add(self, name: str, found: Found) -> None:
        """Serve an adapter, or report why it cannot be served."""
        change = Change(name, str(found.path), in_place=self.is_own(name))
        try:
            id_ = await self.registry.add(change, is_trusted=True)
        except ApiError as error:
            message = f"`{found.path}` is not served: {error.message}"
            if self.reasons.get(name) != message:
                self.registry.report(Warn(message))
            self.reasons[name] = message
            if may_pass(error):
                self.since[name] = (found.mark, self.clock() + RETRY_S)
            else:
                self.refused[name] = found.mark
        else:
            base = id_.removesuffix(f":{name}")
            version = self.registry.version_of(name, base)
            assert version is not None, id_
            self.served[name] = Taken(found.mark, base, version)
            self.refused.pop(name, None)
            self.reasons.pop(name, None)

    def remove(self, name: str) -> None:
        """Serve an adapter no longer, unless a request has removed or replaced it."""
        is_own = self.is_own(name)
        taken = self.served.pop(name)
        if is_own:
            self.registry.remove(name, taken.base)


def may_pass(error: ApiError) -> bool:
    """Whether the same files may be served later: room, a name or a download may be there then."""
    passing = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND)
    return error.status in passing or error.code in (NAME_TAKEN, TOO_MANY)


async def begin(gateway: Gateway) -> None:
    """Serve the watched folder's adapters, load the model if it is the only one, then watch.

    /readyz answers 503 until the first two are done.
    """
    gateway.is_loading = True
    folder = gateway.settings.adapter_dir
    watch = AdapterFolder(folder, gateway.adapters) if folder is not None else None
    if watch is not None:
        await watch.settle()
    if len(gateway.catalog.models) == 1:
        await gateway.preload()
    gateway.is_loading = False
    if watch is not None:
        await watch.run()


def adapters_in(folder: Path) -> dict[str, Found]:
    """The adapters in a folder by their names: GGUFs, and folders with an adapter's config.

    Raises OSError for a folder that cannot be read.
    """
    found: dict[str, Found] = {}
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        try:
            if entry.is_dir():
                files = [one for one in os.scandir(path) if one.is_file()]
                if not any(one.name == CONFIG for one in files):
                    continue
                name = entry.name
            elif entry.name.endswith(SUFFIX) and entry.is_file():
                files, name = [entry], entry.name.removesuffix(SUFFIX).removesuffix(".lora")
            else:
                continue
            marks = sorted((one.name, one.stat()) for one in files)
        except OSError:  # it was deleted meanwhile
            continue
        mark = tuple((one, at.st_size, at.st_mtime_ns, at.st_ino) for one, at in marks)
        found.setdefault(name, Found(path, mark))
    return found
