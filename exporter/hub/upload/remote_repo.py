"""A repo of the hub as an upload finds it: its files with their hashes, and who may see it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.errors import UploadError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
CARD_MAX = 1 << 20  # bytes; a longer README is none of decant's


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the repo."""

    size: int
    sha256: str
    """Hash of a large file (git-lfs); empty for another one."""
    blob: str
    """git's hash of a small file."""

    def holds(self, size: int, sha256: str, blob: str) -> bool:
        """Whether it has the content of these hashes. An empty hash is unknown."""
        same = sha256 == self.sha256 if self.sha256 else blob == self.blob
        return size == self.size and same


@dataclass(frozen=True, slots=True)
class RemoteRepo:
    """The repo at one commit."""

    commit: str
    is_private: bool
    files: Mapping[str, RemoteFile]


def read_repo(api: HfApi, repo: str) -> RemoteRepo | None:
    """The repo at the head of its branch main; None if the hub shows none of this name."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 404:  # noqa: PLR2004 - HTTP: not a bad token, nor gated
            return None
        raise
    commit = info.sha or "main"
    return RemoteRepo(commit, bool(info.private), read_files(api, repo, commit))


def read_files(api: HfApi, repo: str, commit: str) -> dict[str, RemoteFile]:
    """The files of a commit, by path."""
    from huggingface_hub import RepoFile

    return {
        entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
        for entry in api.list_repo_tree(repo, recursive=True, revision=commit)
        if isinstance(entry, RepoFile)
    }


def read_card(api: HfApi, repo: str, remote: RemoteRepo) -> str | None:
    """The repo's README.md; None without one, and an empty text for one that is no text.

    Raises UploadError if the hub does not send it.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # lazily exported

    file = remote.files.get(CARD)
    if file is None:
        return None
    if file.size > CARD_MAX or file.sha256:
        return ""
    url = hf_hub_url(repo, CARD, revision=remote.commit, endpoint=api.endpoint)
    headers = build_hf_headers(token=api.token, library_name="decant")
    response = get_session().get(url, headers=headers)
    hf_raise_for_status(response)
    if not file.holds(len(response.content), "", git_hash(response.content)):
        raise UploadError(
            f"the hub sends another {CARD} than {repo} lists", hint="push again in a minute"
        )
    try:
        return response.content.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def git_hash(content: bytes) -> str:
    """The name that git gives a file's content."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
