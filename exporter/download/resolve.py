"""Repos named where a path belongs: a base, an adapter or a GGUF, pulled when it is not here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.core.errors import InputError, ModelError
from exporter.core.events import Report, silent
from exporter.download.endpoints import Endpoint, endpoints_from
from exporter.download.plan import Choice, Plan
from exporter.download.pull import PullRequest, plan_of, pull
from exporter.download.refs import Ref, parse_ref
from exporter.download.token import TokenRule, find_token

# what transformers, peft and llama.cpp's converter read; not other frameworks' copies
CHECKPOINT = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")
PICKLED = ("*.bin", "*.pt")
OTHERS = ("original/*", "onnx/*", "openvino/*", "*.gguf", "*.onnx", "runs/*", "checkpoint-*/*")
DEFAULT_QUANT = "Q4_K_M"
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True, slots=True)
class Hub:
    """How the hub is reached from here."""

    endpoints: tuple[Endpoint, ...]
    cache: Path
    rule: TokenRule
    offline: bool

    def request(self, ref: Ref) -> PullRequest:
        return PullRequest(ref, self.endpoints, self.cache, rule=self.rule, offline=self.offline)


def hub_here() -> Hub:
    """The hub as the environment says: HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.constants import HF_HUB_CACHE

    offline = is_offline_mode()
    token = None if offline else find_token(None, os.environ)
    return Hub(endpoints_from((), os.environ), Path(HF_HUB_CACHE), TokenRule(token), offline)


def is_repo(text: str) -> bool:
    """Whether `text` can name a repo: ORG/NAME, a link, and nothing that is a path here."""
    name = text.partition(":")[0] if "://" not in text else text
    if text.startswith((".", "/", "~")) or Path(text).exists() or "/" not in text:
        return False
    try:
        parse_ref(name)
    except InputError:
        return False
    return True


def folder_of(path: Path | None, *, report: Report = silent) -> Path | None:
    """The folder itself, or that of the repo which `path` names when there is no such folder."""
    if path is None or not is_repo(str(path)):
        return path
    return pull_checkpoint(str(path), report=report)


def pull_checkpoint(text: str, *, hub: Hub | None = None, report: Report = silent) -> Path:
    """The folder of the base or adapter that ORG/NAME[@REV] or a link names, pulled if absent."""
    hub, ref = hub or hub_here(), parse_ref(text)
    plan = whole_plan(hub, ref, report)
    names = [file.path for file in plan.files]
    pickled = () if any(name.endswith(".safetensors") for name in names) else PICKLED
    choice = Choice(include=(*CHECKPOINT, *pickled), exclude=OTHERS)
    return pull_chosen(hub, plan, choice, report)


def pull_gguf(text: str, *, hub: Hub | None = None, report: Report = silent) -> Path:
    """The GGUF that ORG/NAME-GGUF[:QUANT] or a link to one names; of a split one, the first."""
    hub = hub or hub_here()
    name, quant = (text, "") if "://" in text else split_quant(text)
    ref = parse_ref(name)
    plan = whole_plan(hub, ref, report)
    files = (ref.file,) if ref.file else choose_gguf(text, [f.path for f in plan.files], quant)
    folder = pull_chosen(hub, plan, Choice(files=parts_of(files, plan)), report)
    return folder / files[0]


def split_quant(text: str) -> tuple[str, str]:
    name, _, quant = text.partition(":")
    return name, quant


def choose_gguf(text: str, names: Sequence[str], quant: str) -> tuple[str, ...]:
    """The first file of the GGUF that is meant; ModelError, with the choices, when none is."""
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
        raise ModelError(
            f"{text!r} has {len(found) or 'no'} GGUFs of {quant or DEFAULT_QUANT}",
            hint=f"it has {', '.join(Path(stem).name for stem in sorted(firsts))}"
            if firsts
            else "it has no GGUF at all; `decant export` makes one",
        )
    return (found[0],)


def quant_of(stem: str) -> str:
    """The part of a GGUF's name that says its quantization, in lower case."""
    return re.split(r"[-./]", stem.lower())[-1]


def parts_of(files: tuple[str, ...], plan: Plan) -> tuple[str, ...]:
    """All files of a split GGUF."""
    (first,) = files
    match = SPLIT.search(first.removesuffix(".gguf"))
    if not match:
        return files
    start = first.removesuffix(".gguf")[: match.start()]
    return tuple(
        file.path
        for file in plan.files
        if re.fullmatch(re.escape(start) + rf"-\d{{5}}-of-{match[2]}\.gguf", file.path)
    )


def whole_plan(hub: Hub, ref: Ref, report: Report) -> Plan:
    request = hub.request(ref)
    return plan_of(request, request.place, report)


def pull_chosen(hub: Hub, plan: Plan, choice: Choice, report: Report) -> Path:
    """Bring the chosen files of a plan; the hub is not asked for it again."""
    request = replace(hub.request(plan.ref), known=plan, choice=choice)
    return pull(request, report=report).folder
