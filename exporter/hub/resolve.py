"""Resolves repo names where a path is expected: a base, adapter or GGUF, pulled if missing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from exporter.core.errors import AdapterRepoError, DownloadError, InputError, ModelError
from exporter.core.events import Report, silent
from exporter.core.paths import snapshot_of
from exporter.hub.access_token import TokenRule, find_token
from exporter.hub.endpoints import Endpoint, endpoints_from
from exporter.hub.probe_history import ProbeHistory, usual_history
from exporter.hub.pull import PullRequest, plan_of, pull
from exporter.hub.pull_plan import FileFilter, Plan
from exporter.hub.repo_refs import Ref, is_link, parse_ref, unsafe

# files that transformers, peft and llama.cpp's converter read; no other framework's copies
CHECKPOINT = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")
PICKLED = ("*.bin", "*.pt")
OTHERS = ("original/*", "onnx/*", "openvino/*", "*.gguf", "*.onnx", "runs/*", "checkpoint-*/*")
ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
DEFAULT_QUANT = "Q4_K_M"
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub as this process reaches it."""

    endpoints: tuple[Endpoint, ...]
    cache: Path
    rule: TokenRule
    offline: bool
    memory: ProbeHistory = field(default_factory=ProbeHistory)

    def ref(self, text: str, revision: str | None = None) -> Ref:
        """Parse a repo reference; links to the configured endpoints are accepted, too."""
        hosts = [urlsplit(endpoint.url).hostname or "" for endpoint in self.endpoints]
        return parse_ref(text, revision=revision, hosts=hosts)

    def request(
        self, ref: Ref, known: Plan | None = None, choice: FileFilter | None = None
    ) -> PullRequest:
        return PullRequest(
            ref,
            self.endpoints,
            self.cache,
            choice=choice or FileFilter(),
            known=known,
            rule=self.rule,
            offline=self.offline,
            memory=self.memory,
        )


def hub_here() -> Hub:
    """The hub from the environment: HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.constants import HF_HUB_CACHE

    offline = is_offline_mode()
    token = None if offline else find_token(None, os.environ)
    endpoints = endpoints_from((), os.environ)
    return Hub(endpoints, Path(HF_HUB_CACHE), TokenRule(token), offline, usual_history())


def is_repo(text: str) -> bool:
    """Whether `text` can name a repo: a link, or ORG/NAME that is not an existing path."""
    if is_link(text):
        return True
    if text.startswith((".", "/", "~")) or "/" not in text:
        return False
    try:
        parse_ref(text.partition(":")[0])
    except InputError:
        return False
    return not Path(text).exists()


def folder_of(
    text: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    report: Report = silent,
) -> Path:
    """The folder that `text` means: a local one, else a repo's, pulled if missing.

    Raises InputError for a revision of a local folder.
    """
    if is_repo(text):
        request = checkpoint_request(text, revision=revision, subfolder=subfolder, report=report)
        return pulled_folder(request, report=report)
    if revision:
        raise InputError(
            f"`{text}` is not on the hub, so it has no revision {revision!r}",
            hint="name a repo as ORG/NAME, or leave out --revision",
        )
    return snapshot_of(Path(text)) / safe_folder(subfolder or "")


def pull_checkpoint(
    text: str, *, revision: str | None = None, hub: Hub | None = None, report: Report = silent
) -> Path:
    """The folder of a base or adapter named by ORG/NAME[@REV] or a link, pulled if missing."""
    request = checkpoint_request(text, revision=revision, hub=hub, report=report)
    return pulled_folder(request, report=report)


def pulled_folder(request: PullRequest, *, report: Report = silent) -> Path:
    """Pull the missing files and return the wanted folder of the repo."""
    return pull(request, report=report).folder / (request.ref.folder or "")


def checkpoint_request(
    text: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    hub: Hub | None = None,
    report: Report = silent,
) -> PullRequest:
    """The pull of a base or an adapter, after asking the hub for its files.

    Raises InputError for a folder that the repo lacks, DownloadError when no endpoint answers.
    """
    hub = hub or hub_here()
    ref = folder_ref(hub.ref(text, revision), text, subfolder)
    try:
        plan = whole_plan(hub, ref, report)
    except DownloadError as error:
        if is_link(text):
            raise
        raise DownloadError(
            f"there is no folder `{text}` here, and as a repo: {error.message}", hint=error.hint
        ) from error
    inside = f"{ref.folder}/" if ref.folder else ""
    names = [file.path for file in plan.files if file.path.startswith(inside)]
    if not names:
        raise InputError(
            f"{ref.repo}@{ref.revision} has no folder {ref.folder!r}", hint=folders_hint(plan)
        )
    pickled = () if any(name.endswith(".safetensors") for name in names) else PICKLED
    others = tuple(f"{inside}{pattern}" for pattern in OTHERS)
    return hub.request(ref, plan, FileFilter(include=(*CHECKPOINT, *pickled), exclude=others))


def folder_ref(ref: Ref, text: str, subfolder: str | None) -> Ref:
    """Add the subfolder to `ref`. Raises InputError if a link already names a file or folder."""
    if ref.file:
        raise InputError(
            f"`{text}` is a link to one file, and a whole folder is needed",
            hint=f"name the repo, {ref.repo}, or link to the folder: …/tree/{ref.revision}/…",
        )
    if not subfolder:
        return ref
    if ref.folder:
        raise InputError(
            f"`{text}` names the folder {ref.folder!r}, --subfolder says {subfolder!r}",
            hint="give it once",
        )
    return replace(ref, folder=safe_folder(subfolder))


def safe_folder(name: str) -> str:
    """The subfolder without trailing slashes. Raises InputError for an unsafe path."""
    name = name.rstrip("/")
    if name and (problem := unsafe(name)):
        raise InputError(f"the subfolder {name!r} {problem}", hint="such as checkpoint-500")
    return name


def folders_hint(plan: Plan) -> str:
    """A hint with the folders of a repo that hold a model or an adapter."""
    marks = ("/adapter_config.json", "/config.json")
    found = [file.path.rpartition("/")[0] for file in plan.files if file.path.endswith(marks)]
    return f"it has {', '.join(found[:8])}" if found else "it has no folders with a model"


def pull_gguf(text: str, *, hub: Hub | None = None, report: Report = silent) -> Path:
    """The GGUF named by ORG/NAME-GGUF[:QUANT] or a link, pulled; the first file of a split one."""
    request, first = gguf_request(text, hub=hub, report=report)
    return pull(request, report=report).folder / first


def names_gguf(text: str) -> bool:
    """Whether `text` can only mean a GGUF of a repo: a link to a file, or ORG/NAME:QUANT."""
    return is_repo(text) and (text.endswith(".gguf") or (":" in text and not is_link(text)))


def gguf_request(
    text: str, *, hub: Hub | None = None, report: Report = silent
) -> tuple[PullRequest, str]:
    """The pull of a GGUF and its first file's name, after asking the hub for its files."""
    hub = hub or hub_here()
    name, quant = (text, "") if is_link(text) else split_quant(text)
    ref = hub.ref(name)
    plan = whole_plan(hub, ref, report)
    inside = f"{ref.folder}/" if ref.folder else ""
    names = [file.path for file in plan.files if file.path.startswith(inside)]
    parts = parts_of(ref.file or choose_gguf(text, names, quant), plan)
    return hub.request(ref, plan, FileFilter(files=parts)), parts[0]


def split_quant(text: str) -> tuple[str, str]:
    name, _, quant = text.partition(":")
    return name, quant


def choose_gguf(text: str, names: Sequence[str], quant: str) -> str:
    """The first file of the wanted GGUF.

    Raises ModelError, with the choices, unless exactly one GGUF fits, and AdapterRepoError if the
    repo holds an adapter and no GGUF.
    """
    models = {
        name: SPLIT.sub("", name.removesuffix(".gguf"))
        for name in sorted(names)
        if name.endswith(".gguf") and "mmproj" not in name.lower()
    }
    firsts = {stem: name for name, stem in reversed(models.items())}
    wanted = (quant or DEFAULT_QUANT).lower()
    found = [name for stem, name in firsts.items() if quant_of(stem).endswith(wanted)]
    if not found and not quant and len(firsts) == 1:
        found = list(firsts.values())
    if len(found) != 1:
        is_adapter = not firsts and any(Path(name).name in ADAPTER_FILES for name in names)
        raise (AdapterRepoError if is_adapter else ModelError)(
            f"{text!r} has {len(found) or 'no'} GGUFs of {quant or DEFAULT_QUANT}",
            hint=f"it has {', '.join(Path(stem).name for stem in sorted(firsts))}"
            if firsts
            else "it has no GGUF at all; `decant export` makes one",
        )
    return found[0]


def quant_of(stem: str) -> str:
    """The quantization in a GGUF's name, in lower case."""
    return re.split(r"[-./]", stem.lower())[-1]


def parts_of(name: str, plan: Plan) -> tuple[str, ...]:
    """All files of the GGUF that `name` is a part of, in order."""
    stem = name.removesuffix(".gguf")
    match = SPLIT.search(stem)
    if not match:
        return (name,)
    part = re.compile(re.escape(stem[: match.start()]) + rf"-\d{{5}}-of-{match[2]}\.gguf")
    return tuple(sorted(file.path for file in plan.files if part.fullmatch(file.path)))


def whole_plan(hub: Hub, ref: Ref, report: Report) -> Plan:
    request = hub.request(ref)
    return plan_of(request, request.place, report)
