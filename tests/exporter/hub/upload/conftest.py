from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.core.events import Report, silent
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.timeouts import Limits
from exporter.hub.upload.push_files import Pushed, PushRequest, push
from exporter.hub.upload.remote_repo import RemoteRepo
from exporter.hub.upload.sent_file import LocalFile
from tests.support.fake_upload_hub import FakeUploadHub
from tests.support.upload_files import TOKEN
from tests.support.upload_stage import REPO, write_gguf

QUICK = Limits(backoff_s=0.01, backoff_max_s=0.02, connect_s=2.0)


class PlainCard:
    """A card that lists the files; it keeps a README that begins with `mine`."""

    def text(
        self, remote: RemoteRepo | None, hashes: dict[str, str], old: str | None
    ) -> str | None:
        return None if old and old.startswith("mine") else f"# {' '.join(sorted(hashes))}\n"


class Pushing:
    """A hub, two GGUFs, and pushes of them in this process."""

    def __init__(self, hub: FakeUploadHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.paths = [write_gguf(folder / f"m-{quant}.gguf") for quant in ("Q4_K_M", "Q8_0")]

    def request(self, *paths: Path, **more: object) -> PushRequest:
        files = tuple(LocalFile(path, path.name) for path in paths or self.paths)
        values = {"repo": REPO, "endpoint": parse_endpoint(self.hub.url), "token": TOKEN}
        return PushRequest(**{**values, "files": files, "limits": QUICK, **more})

    def push(
        self, *paths: Path, dry_run: bool = False, report: Report = silent, **more: object
    ) -> Pushed:
        request = self.request(*paths, **more)
        return push(request, PlainCard(), dry_run=dry_run, report=report)

    def is_right(self, *paths: Path) -> bool:
        """Whether the repo's head has exactly these files and the card."""
        wanted = {path.name: path.read_bytes() for path in paths or self.paths}
        card = f"# {' '.join(sorted(wanted))}\n".encode()
        return self.hub.contents(REPO) == wanted | {"README.md": card}


@pytest.fixture
def hub() -> Iterator[FakeUploadHub]:
    with FakeUploadHub() as hub:
        yield hub


@pytest.fixture
def pushing(hub: FakeUploadHub, tmp_path: Path) -> Pushing:
    return Pushing(hub, tmp_path)
