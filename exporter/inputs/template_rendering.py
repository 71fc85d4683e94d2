"""A chat template with the settings under which its texts are looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.inputs.chat_template import Messages, Template

Tool = Mapping[str, Any]
THINKING = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Rendering:
    """A template with the settings under which it renders conversations without tools."""

    template: Template
    bos: str
    """BOS text that the engine adds by itself."""
    has_tools: bool

    def __call__(
        self,
        talk: Messages,
        *,
        generation: bool = True,
        thinks: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> str:
        text = self.template.render(
            talk,
            generation=generation,
            tools=tools,
            has_tools=self.has_tools or tools is not None,
            variables={} if thinks is None else dict.fromkeys(THINKING, thinks),
        )
        return text.removeprefix(self.bos)
