"""Parses a user's reference to a repo: ORG/NAME[@REV], or a link from a browser."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args
from urllib.parse import unquote, urlsplit

from exporter.core.errors import InputError

RepoType: TypeAlias = Literal["model", "dataset", "space"]
REPO_TYPES: tuple[RepoType, ...] = get_args(RepoType)
FOLDERS = {"datasets": "dataset", "spaces": "space"}
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
MIRROR_HOSTS = ("hf-mirror.com", "www.hf-mirror.com")
DOWNLOAD = "download it in a browser, and name the folder or the zip"
OTHER_SITES = {
    "github.com": "`git clone` it (with git-lfs), and name the folder",
    "gitlab.com": "`git clone` it (with git-lfs), and name the folder",
    "ollama.com": "`ollama pull NAME`, and name it as ollama:NAME",
    "kaggle.com": DOWNLOAD,
    "google.com": DOWNLOAD,
    "dropbox.com": DOWNLOAD,
    "civitai.com": "its models make pictures: they have no GGUF here",
}
"""Sites that people link to and that are not hubs, with a hint for each."""
MODELSCOPE_HOSTS = ("modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai")
FILE_VIEWS = ("blob", "resolve", "raw")
# the hub's own rule for one part of a repo's name
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_NAME = 255  # bytes of one path component, on every common file system


@dataclass(frozen=True, slots=True)
class Ref:
    """A repo at a revision, or one file or folder of it."""

    repo: str
    repo_type: RepoType = "model"
    revision: str = "main"
    file: str | None = None
    folder: str | None = None

    @property
    def cache_name(self) -> str:
        """The repo's folder name in the hub cache, such as models--org--name."""
        return f"{self.repo_type}s--{self.repo.replace('/', '--')}"


def parse_ref(
    text: str,
    *,
    revision: str | None = None,
    repo_type: RepoType | None = None,
    hosts: Iterable[str] = (),
) -> Ref:
    """Parse a repo reference. hosts: further hosts whose links are accepted.

    Raises InputError for anything else, and for datasets and spaces without `repo_type`.
    """
    ref = parse_link(text, hosts) if is_link(text) else parse_name(text)
    if ref.repo_type not in ("model", repo_type or "model"):
        raise InputError(
            f"{text!r} is a {ref.repo_type}, not a model",
            hint=f"to download it anyway: decant pull {ref.repo} --repo-type {ref.repo_type}",
        )
    if revision and ref.revision not in ("main", revision):
        raise InputError(
            f"{text!r} names revision {ref.revision!r}, --revision says {revision!r}",
            hint="give it once",
        )
    chosen = revision or ref.revision
    if problem := unsafe(chosen):
        raise InputError(f"the revision {chosen!r} {problem}", hint="a branch, a tag or a commit")
    return Ref(ref.repo, repo_type or ref.repo_type, chosen, ref.file, ref.folder)


def is_link(text: str) -> bool:
    """Whether `text` is a URL, with or without https://."""
    return "://" in text or text.partition("/")[0] in (*HUB_HOSTS, *MIRROR_HOSTS)


def parse_name(text: str) -> Ref:
    """Parse [datasets/]ORG/NAME[@REV]. Raises InputError for anything else."""
    name, at, revision = text.partition("@")
    kind, _, rest = name.partition("/")
    if kind in FOLDERS and "/" in rest:
        return Ref(repo_name(rest, text), repo_type_of(kind), revision or "main")
    if at and not revision:
        raise InputError(f"{text!r} ends in @", hint="a branch, tag or commit follows the @")
    return Ref(repo_name(name, text), "model", revision or "main")


def is_of(host: str, site: str) -> bool:
    return host == site or host.endswith(f".{site}")


def parse_link(text: str, hosts: Iterable[str]) -> Ref:
    """Parse …/ORG/NAME, …/tree/REV[/FOLDER], …/blob/REV/FILE and …/resolve/REV/FILE.

    Raises InputError for other hosts and other pages.
    """
    try:
        url = urlsplit(text if "://" in text else f"https://{text}")
        host = (url.hostname or "").lower()
    except ValueError as error:  # unbalanced brackets and the like
        raise InputError(f"`{text}` is not a link: {error}", hint="use ORG/NAME") from error
    if host not in (*HUB_HOSTS, *MIRROR_HOSTS, *MODELSCOPE_HOSTS, *hosts):
        other = next((hint for name, hint in OTHER_SITES.items() if is_of(host, name)), None)
        raise InputError(
            f"{host!r} is not a hub that decant knows",
            hint=other
            or f"name the repo as ORG/NAME, and the host by: export HF_ENDPOINT=https://{host}",
        )
    parts = [unquote(part) for part in url.path.split("/") if part]
    repo_type: RepoType = "model"
    if parts and parts[0] in FOLDERS:
        repo_type = repo_type_of(parts.pop(0))
    elif parts and parts[0] == "models":
        parts.pop(0)
    repo, rest = repo_name("/".join(parts[:2]), text), parts[2:]
    if host in MODELSCOPE_HOSTS:
        return Ref(repo, repo_type)  # its pages have other paths, and its branch is `master`
    if not rest or rest == ["tree"]:
        return Ref(repo, repo_type)
    view, revision, path = rest[0], rest[1] if len(rest) > 1 else "main", "/".join(rest[2:])
    if revision == "refs" and len(rest) > 3:  # noqa: PLR2004 - refs/pr/7, refs/convert/parquet
        revision, path = "/".join(rest[1:4]), "/".join(rest[4:])
    if view == "tree":
        return Ref(repo, repo_type, revision, folder=path or None)
    if view in FILE_VIEWS and path:
        return Ref(repo, repo_type, revision, file=path)
    raise InputError(
        f"`{text}` is a page of the hub, not a repo or a file",
        hint=f"for the whole repo: decant pull {repo}",
    )


def repo_type_of(folder: str) -> RepoType:
    return "dataset" if folder == "datasets" else "space"


def repo_name(name: str, text: str) -> str:
    """The name, checked to be NAME or ORG/NAME. Raises InputError."""
    parts = name.split("/")
    good = len(parts) in (1, 2) and all(NAME.fullmatch(part) for part in parts)
    if not good or "--" in name or ".." in name:
        raise InputError(
            f"{text!r} does not name a repo", hint="ORG/NAME, such as Qwen/Qwen3-0.6B, or a link"
        )
    return name


def unsafe(path: str) -> str | None:  # noqa: PLR0911 - one return a rule
    """Describe why a server's path is unsafe to write; None if it stays inside its folder."""
    if any(ord(char) < 32 or ord(char) == 127 for char in path):  # noqa: PLR2004 - C0 and DEL
        return "has a control character"
    if "\\" in path or re.match(r"[A-Za-z]:", path):
        return "is a Windows path"
    if path.startswith("/"):
        return "is absolute"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return f"has {part!r} in it"
        try:
            length = len(part.encode())
        except UnicodeEncodeError:
            return "is not Unicode"
        if length > MAX_NAME:
            return f"has a name of {length} bytes in it"
    return None
