"""Renders a chat template in a separate process with limited time and memory.

A template is a program that came with a model: it may loop for ever or fill the memory, which the
sandbox of jinja2 does not prevent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exporter.core.errors import ModelError
from exporter.core.last_value import LastValue
from exporter.inputs.template_child import CPU_S, MEMORY
from exporter.llamacpp.toolchain import scrubbed

CHILD = "exporter.inputs.template_child"
WALL_S = 120  # seconds on a busy machine; otherwise CPU_S ends it
UNTRIED = "it could not be tried"
Talk = Sequence[Mapping[str, Any]]
TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Why?"},
)


@dataclass(frozen=True, slots=True)
class RenderJob:
    """A conversation to render, with its settings."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    has_tools: bool = True
    """Whether `tools` is defined; transformers always defines it, as None without tools."""
    generation: bool = True
    """Whether the prompt ends with the beginning of an answer."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, or the reason why there is none."""

    text: str | None
    refusal: str = ""
    is_too_much: bool = False
    """Whether it exceeded a limit of time, memory or length."""


TRIED: LastValue[tuple[str, Sequence[Talk]], bool] = LastValue()
"""The template that kept to the limits last: each file of an export has the same, and a model may
be loaded again.
"""
TOO_MUCH = Rendered(None, f"it takes more than {CPU_S} s or {MEMORY >> 20} MiB", is_too_much=True)


def render_all(
    template: str, tokens: Mapping[str, str], jobs: Sequence[RenderJob]
) -> list[Rendered]:
    """Render each conversation as transformers does; a refusal where the template raises.

    tokens: the special tokens by their template names, such as bos_token.
    """
    request = {"template": template, "tokens": dict(tokens), "jobs": [asdict(job) for job in jobs]}
    env = scrubbed(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", CHILD],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WALL_S,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [TOO_MUCH for _ in jobs]
    if done.returncode < 0 or b"MemoryError" in done.stderr:  # it exceeded its limits
        return [TOO_MUCH for _ in jobs]
    try:
        answers = json.loads(done.stdout)
    except ValueError:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return [Rendered(None, f"{UNTRIED}: {last_line}") for _ in jobs]
    return [Rendered(**answer) for answer in answers]


def refuse_too_much(found: Sequence[Rendered], path: Path | None = None) -> None:
    """Raise ModelError for a template that exceeded a limit; path: its model's, if known."""
    for one in found:
        if one.is_too_much:
            of = f" of `{path}`" if path else ""
            raise ModelError(
                f"the chat template{of} cannot be used for a short conversation: {one.refusal}",
                hint="`decant tokens MODEL --template` shows it; `decant chat` and `decant serve`"
                " take another with --chat-template",
            )


def refuse_runaway(
    template: str, path: Path | None = None, talks: Sequence[Talk] = (TALK, TALK[1:])
) -> None:
    """Raise ModelError for a template that exceeds the limits on one of these conversations.

    Callers then render it without limits.
    """
    if TRIED.get((template, talks)):
        return
    jobs = [RenderJob(talk, generation=prompt) for talk in talks for prompt in (True, False)]
    found = render_all(template, {}, jobs)
    refuse_too_much(found, path)
    if not any(one.refusal.startswith(UNTRIED) for one in found):
        TRIED.keep((template, talks), True)
