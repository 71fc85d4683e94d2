"""The places that a request's adapter may be read from, and the place of its base."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from exporter.core.errors import AdapterError, DecantError
from exporter.core.events import Report
from exporter.hub.resolve import checkpoint_request, hub_here, is_repo, pulled_folder
from exporter.inputs.adapter import open_adapter
from exporter.inputs.adapter_kinds import refuse_for_adapter_file
from runtime.gateway.api_errors import ApiError, bad_request
from runtime.gateway.settings import Settings

PATH_MAX = 4096  # characters
SHOWN = 200  # characters of a path in an error


def permitted(place: str, settings: Settings) -> str:
    """The place that a client named, if it may be read. Raises ApiError (400, 403, 404).

    A path must be in one of the folders after its links are followed; a relative one is looked for
    in each of them. A repo is downloaded only with --allow-pull.
    """
    if not place.isprintable() or len(place) > PATH_MAX:
        raise bad_request("`lora_path` must be one line, and a path or the name of a repo")
    folders = [folder.resolve() for folder in settings.adapter_folders]
    for folder in folders:
        found = (folder / place).resolve()  # an absolute place replaces the folder
        if (found == folder or folder in found.parents) and found.exists():
            return str(found)
    if is_repo(place):
        if settings.allow_pull:
            return place
        raise refused_place(
            f"{place[:SHOWN]!r} is not in this server's folders, and nothing is downloaded:"
            " --allow-pull allows it"
        )
    if not folders:
        raise refused_place(
            f"{place[:SHOWN]!r} may not be read: start the server with --adapter-dir DIR or"
            " --allow-adapter-path DIR, and put the adapter there"
        )
    if any((folder / place).resolve().is_relative_to(folder) for folder in folders):
        raise ApiError(HTTPStatus.NOT_FOUND, f"there is no {place[:SHOWN]!r}", "not_found")
    raise refused_place(
        f"{place[:SHOWN]!r} is outside the folders of --adapter-dir and --allow-adapter-path"
    )


def refused_place(message: str) -> ApiError:
    return ApiError(HTTPStatus.FORBIDDEN, message, "forbidden")


def base_here(place: Path, *, report: Report) -> Path:
    """The folder of an adapter's base on this machine; nothing is downloaded.

    Raises the errors of opening the adapter, and AdapterError for an absent base.
    """
    adapter = open_adapter(place, refuse=refuse_for_adapter_file, report=report)
    named = Path(adapter.base or "")
    for folder in (named, adapter.folder / named) if adapter.base else ():
        if (folder / "config.json").exists():
            return folder
    if adapter.base and is_repo(adapter.base):
        hub = replace(hub_here(), offline=True)
        try:
            return pulled_folder(checkpoint_request(adapter.base, hub=hub, report=report))
        except DecantError:
            pass
    raise AdapterError(
        f"it must be converted, and its base {adapter.base!r} is not on this machine",
        hint="start the server with --base FOLDER, or with --allow-pull; or convert the adapter:"
        " decant export ADAPTER --to lora",
    )
