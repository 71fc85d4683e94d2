"""The child of template_process.py: renders conversations within limits of time and memory.

It reads jobs from standard input and writes prompts to standard output, as JSON. It imports little,
because a chat waits for it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from typing import Any

from exporter.inputs.chat_template import IrregularError, Template

CPU_S = 5  # seconds
MEMORY = 1 << 30  # bytes
TEXT_MAX = 1 << 20  # characters of one prompt
GROWTH = 8  # times the length of the messages: a template may repeat them


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    import jinja2  # imported before memory is limited, since its mappings count

    del jinja2
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.write(json.dumps(rendered(request)))


def rendered(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of `Rendered` for each job, which is a `RenderJob` as a dictionary."""
    from datetime import datetime

    try:
        template = Template(request["template"], request["tokens"], datetime.now)
    except IrregularError as error:
        return [{"text": None, "refusal": str(error)} for _ in request["jobs"]]
    return [one(template, **job) for job in request["jobs"]]


def one(template: Template, messages: list[Any], **settings: Any) -> dict[str, Any]:
    try:
        text = template.render(messages, **settings)
    except IrregularError as error:
        return {"text": None, "refusal": str(error.__cause__ or error)}
    if len(text) > TEXT_MAX + GROWTH * len(json.dumps(messages)):
        refusal = f"it makes {len(text)} characters of it"
        return {"text": None, "refusal": refusal, "is_too_much": True}
    return {"text": text}


if __name__ == "__main__":
    main()
