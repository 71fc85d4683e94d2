"""Events as lines of JSON, from a command in another process to its caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from exporter.core.events import Event, Note, Progress, Step, Warn

VARIABLE = "DECANT_EVENTS"
"""The environment variable by which a caller asks for such lines."""
AS_JSON = "json"
"""The value of that variable."""
KINDS: dict[str, type[Event]] = {
    "step": Step, "note": Note, "warning": Warn, "progress": Progress,
}  # fmt: skip
NAMES = {kind: name for name, kind in KINDS.items()}


def wants_lines(env: Mapping[str, str]) -> bool:
    """Whether this process was asked for lines of JSON."""
    return env.get(VARIABLE) == AS_JSON


def event_line(event: Event) -> str:
    """The event as one line, without a newline."""
    return json.dumps({"event": NAMES[type(event)], **asdict(event)})


def event_of(line: str) -> Event | None:
    """The event that a line stands for; None for a line of another kind."""
    try:
        fields = json.loads(line)
        return KINDS[fields.pop("event")](**fields)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
