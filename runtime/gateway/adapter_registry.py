"""Adds and removes adapters while the server runs, for requests and for a watched folder.

Everything that can fail comes first and changes nothing: finding the file, converting it, and
checking it against the bases. Then the catalog and the pool change in one step of the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path

from exporter.core.errors import DecantError, DownloadError, InputError, ModelError, SpaceError
from exporter.core.events import Note, Report
from exporter.core.gguf import SUFFIX
from runtime.engine.adapters import BASE, NAME, Adapter, Wanted, gguf_of
from runtime.engine.opened_model import Model
from runtime.engine.own_template import OwnTemplate, own_template
from runtime.gateway.adapter_places import base_here, permitted
from runtime.gateway.api_errors import ApiError, bad_request, unavailable
from runtime.gateway.catalog import Catalog, fitting_models
from runtime.gateway.scheduling.daemon_threads import in_daemon
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings

NAME_MAX = 128  # characters
SHOWN = 80  # characters of a value in an error
TAKEN = (
    "The lora adapter {name!r} has already been loaded. If you want to load the adapter in place,"
    " set 'load_inplace' to True."
)
"""vLLM's words, which its clients may look for."""
NAME_TAKEN, TOO_MANY = "name_taken", "too_many"
"""The error codes of what another adapter's removal mends."""
MISSING = "The lora adapter {name!r} cannot be found."
SLOW_MAX = 4
"""Repos, and folders, that are downloaded or converted at once; a mirror may stall for minutes."""


@dataclass(frozen=True, slots=True)
class Change:
    """An adapter to add."""

    name: str
    place: str
    """A folder, a GGUF or a repo."""
    base: str | None = None
    """The name of the served base; None for the base that the adapter fits."""
    in_place: bool = False
    """Whether it replaces an adapter of the same name."""


@dataclass(frozen=True, slots=True)
class Checked:
    """An adapter that fits a served base."""

    base: str
    adapter: Adapter
    own: OwnTemplate | None


@dataclass(eq=False)
class AdapterRegistry:
    """The adapters of a server, which requests and a watched folder change."""

    settings: Settings
    catalog: Catalog
    pool: EnginePool
    pending: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set when the adapter of that name is added or refused."""
    repos: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SLOW_MAX))
    folders: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SLOW_MAX))
    """Held while an adapter of this kind is read; a GGUF on this machine needs none."""
    on_removal: Callable[[str], None] | None = None
    """Is called with the id of a removed adapter's model."""
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    added: int = 0
    """Adapters added since the start."""
    removed: int = 0

    @property
    def report(self) -> Report:
        return self.pool.report

    async def add(self, change: Change, *, is_trusted: bool = False) -> str:
        """Serve an adapter from now on; returns its model's id.

        is_trusted: whether its place is the operator's choice, not a client's. Raises ApiError,
        and changes nothing then.
        """
        refuse_name(change.name)
        async with self.reserve(change.name):
            bases = self.candidates(change)
            try:
                checked = await self.find(change, bases, is_trusted)
            except DecantError as error:
                raise refusal(change, error) from error
            except (OSError, ValueError, RuntimeError) as error:  # such as links in a circle
                raise bad_request(f"the adapter {change.name!r} cannot be read: {error}") from error
            self.commit(checked)
        self.added += 1
        id_ = f"{checked.base}:{change.name}"
        self.report(Note(f"the adapter {id_!r} is served"))
        return id_

    async def find(self, change: Change, bases: dict[str, Model], is_trusted: bool) -> Checked:
        """The adapter, checked in a thread that does not keep the server from ending.

        A thread goes on when its request is cancelled, and holds its semaphore until it ends.
        """
        place, turns = await in_daemon(partial(self.place_of, change, is_trusted))
        work = partial(self.check, replace(change, place=place), bases)
        if turns is None:
            return await in_daemon(work)
        await turns.acquire()
        running = asyncio.ensure_future(in_daemon(work))

        def end(done: asyncio.Future[Checked]) -> None:
            turns.release()
            if not done.cancelled():
                done.exception()  # the request may have been cancelled

        running.add_done_callback(end)
        return await asyncio.shield(running)

    def place_of(self, change: Change, is_trusted: bool) -> tuple[str, asyncio.Semaphore | None]:
        """The place to read an adapter from, and how many are read at once; None: any number.

        Raises ApiError for a place that may not be read.
        """
        place = change.place if is_trusted else permitted(change.place, self.settings)
        path = Path(place)
        if path.is_file() and path.suffix == SUFFIX:
            return place, None
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise bad_request(f"{place[:SHOWN]!r} is neither a file nor a folder")
        return place, self.folders if path.exists() else self.repos

    @asynccontextmanager
    async def reserve(self, name: str) -> AsyncIterator[None]:
        """Keep a name free for an adapter until it is added; two of one name wait in turn."""
        while (other := self.pending.get(name)) is not None:
            await other.wait()
        is_done = self.pending[name] = asyncio.Event()
        try:
            yield
        finally:
            del self.pending[name]
            is_done.set()

    def remove(self, name: str, base: str | None = None) -> str:
        """Serve an adapter no longer; returns the id that it had. Raises ApiError (404, 400).

        Requests that already use it finish. The engine ends or is replaced in the background.
        """
        bases = self.catalog.bases_of(name)
        if base is not None:
            id_ = self.base_called(base)
            bases = [one for one in bases if one == id_]
        if not bases:
            raise ApiError(HTTPStatus.NOT_FOUND, MISSING.format(name=name[:SHOWN]), "not_found")
        if len(bases) > 1:
            raise bad_request(
                f"{name!r} is an adapter of {' and '.join(map(repr, bases))}: name one of them as"
                " `model`"
            )
        model = self.catalog.models[bases[0]]
        place = next(n for n, one in enumerate(model.adapters) if one.name == name)
        left = without(model, place)
        if all(one.path != model.adapters[place].path for one in left.adapters):
            self.pool.adapter_files.forget(model.adapters[place], model)
        self.set_model(bases[0], left)
        if self.on_removal is not None:
            self.on_removal(f"{bases[0]}:{name}")
        self.removed += 1
        self.report(Note(f"the adapter '{bases[0]}:{name}' is removed"))
        return f"{bases[0]}:{name}"

    def version_of(self, name: str, base: str) -> int | None:
        """The version of a base's adapter of this name; None without one."""
        model = self.catalog.models.get(base)
        adapters = model.adapters if model is not None else ()
        return next((one.version for one in adapters if one.name == name), None)

    def base_called(self, name: str) -> str:
        """The id of a served base. Raises ApiError."""
        found = self.catalog.find(name)
        if found.adapter is not None:
            raise bad_request(f"{name[:SHOWN]!r} is an adapter, not a base")
        return found.base

    def candidates(self, change: Change) -> dict[str, Model]:
        """The bases that an adapter may belong to, by their ids. Raises ApiError.

        Its name must be free in all of them, and must not be a model's.
        """
        if change.base is not None:
            id_ = self.base_called(change.base)
            bases = {id_: self.catalog.models[id_]}
        else:
            holding = self.catalog.bases_of(change.name) if change.in_place else []
            bases = {id_: self.catalog.models[id_] for id_ in holding or self.catalog.models}
        self.refuse_taken(change, bases)
        return bases

    def refuse_taken(self, change: Change, bases: dict[str, Model]) -> None:
        """Raise ApiError for a name that is in use, and for one adapter too many."""
        name = change.name
        if name in self.catalog.models or name in self.catalog.others:
            raise bad_request(f"{name!r} is the name of a served model: choose another")
        holding = [id_ for id_ in self.catalog.bases_of(name) if id_ in bases]
        if holding and not change.in_place:
            raise bad_request(TAKEN.format(name=name), code=NAME_TAKEN)
        most = self.settings.limits.adapters
        count = sum(len(model.adapters) for model in self.catalog.models.values())
        count += sum(one != name and not self.catalog.bases_of(one) for one in self.pending)
        if not holding and count >= most:
            raise bad_request(
                f"{count} adapters are served, and this server takes {most}: unload one, or allow"
                " more with --limit adapters=N",
                code=TOO_MANY,
            )

    def check(self, change: Change, bases: dict[str, Model]) -> Checked:
        """The adapter, converted if it is a folder, with its base. Runs in a thread.

        Raises DecantError.
        """
        place = change.place
        over = self.settings.adapter_base
        if Path(place).suffix != SUFFIX and over is None and not self.settings.allow_pull:
            over = str(base_here(Path(place), report=self.report))
        path = gguf_of(Wanted(change.name, place, 1.0), over, Path(), report=self.report)
        adapter = Adapter(change.name, path, 1.0, next(self.versions))
        id_ = fitting(adapter, bases)
        model = self.catalog.models[id_]
        own = own_template(path, model.header.path, model.chat_template)
        self.pool.adapter_files.note([replace(model, adapters=(adapter,))])
        return Checked(id_, adapter, own)

    def commit(self, checked: Checked) -> None:
        """Put an adapter into its model, in the place of one of the same name."""
        model = self.catalog.models[checked.base]
        names = [one.name for one in model.adapters]
        if checked.adapter.name in names:
            model = without(model, names.index(checked.adapter.name))
        own = model.own or (None,) * len(model.adapters)
        model = replace(model, adapters=(*model.adapters, checked.adapter), own=(*own, checked.own))
        self.set_model(checked.base, model)

    def set_model(self, id_: str, model: Model) -> None:
        self.catalog.models[id_] = model
        self.pool.set_adapters(id_, model)


def refusal(change: Change, error: DecantError) -> ApiError:
    """The answer for an adapter that cannot be served."""
    message = f"the adapter {change.name!r} cannot be loaded: {error.message}"
    if error.hint:
        message += f" ({error.hint})"
    if isinstance(error, InputError):
        return bad_request(message)
    if isinstance(error, DownloadError):
        return ApiError(HTTPStatus.NOT_FOUND, message, "not_found")
    return unavailable(message, retry_after=60 if isinstance(error, SpaceError) else 1)


def refuse_name(name: str) -> None:
    """Raise ApiError for a name that no model can have."""
    if not NAME.fullmatch(name) or len(name) > NAME_MAX:
        raise bad_request(
            f"{name[:SHOWN]!r} cannot be an adapter's name: use letters, digits and . _ + -, at"
            f" most {NAME_MAX}"
        )
    if name == BASE:
        raise bad_request(f"{BASE!r} names the base: choose another name")


def without(model: Model, place: int) -> Model:
    """A model without one of its adapters, by its index."""
    adapters, own = model.adapters, model.own
    return replace(
        model,
        adapters=adapters[:place] + adapters[place + 1 :],
        own=own[:place] + own[place + 1 :],
    )


def fitting(adapter: Adapter, bases: dict[str, Model]) -> str:
    """The id of the base that an adapter is for; of several, one that is not merged.

    Raises ModelError where none fits, InputError where several do.
    """
    if not bases:
        raise ModelError("no model is served", hint="decant serve BASE.gguf")
    open_to = {id_: model for id_, model in bases.items() if not model.is_encoder_decoder}
    if not open_to:
        raise ModelError(
            f"{next(iter(bases))!r} is an encoder-decoder, whose engine takes no adapters",
            hint="merge it into the model: decant export ADAPTER",
        )
    found = fitting_models(adapter, open_to.values())
    plain = [id_ for id_, model in open_to.items() if any(model is one for one in found)]
    if len(plain) > 1:
        raise InputError(
            f"it fits {' and '.join(map(repr, plain))}", hint="name one of them as `model`"
        )
    return plain[0]
