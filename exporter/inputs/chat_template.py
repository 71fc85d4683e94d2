"""Renders chat templates the way transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

Messages = Sequence[Mapping[str, Any]]

Clock = Callable[[], datetime]

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Exceptions that a template's expressions can raise."""


class IrregularError(ValueError):
    """A template that cannot be read, refuses a conversation or exceeds a limit."""


class Template:
    """A compiled chat template, in transformers' settings and sandbox."""

    def __init__(self, text: str, tokens: dict[str, str], clock: Clock | None = None) -> None:
        """Compile the chat template of a model. Raises IrregularError for invalid jinja."""
        import jinja2

        try:
            self.compiled = environment(clock).from_string(text)
        except (jinja2.TemplateError, RecursionError) as error:
            raise IrregularError(f"it cannot be read: {error}") from error
        self.tokens = tokens

    def render(
        self,
        messages: Messages,
        *,
        generation: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        has_tools: bool = True,
    ) -> str:
        """Render a conversation as transformers' apply_chat_template does.

        generation: whether the text ends with the beginning of an answer; variables: further ones
        such as enable_thinking; has_tools: False leaves `tools` undefined, which transformers never
        does. Raises IrregularError with the template's message.
        """
        import jinja2

        known: dict[str, Any] = {
            "messages": [as_transformers_has_it(message) for message in messages],
            "documents": None,
            "add_generation_prompt": generation,
        }
        if has_tools:
            known["tools"] = tools
        try:
            text: str = self.compiled.render(known | self.tokens | dict(variables or {}))
        except (jinja2.TemplateError, *MISTAKES) as error:
            raise IrregularError(f"it refuses a plain conversation: {error}") from error
        return text


def as_transformers_has_it(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without null fields, and with thoughts under all their names."""
    kept = {name: value for name, value in message.items() if value is not None}
    thoughts = next((kept[name] for name in THOUGHTS if name in kept), None)
    if thoughts is None:
        return kept
    return {"thinking": thoughts, **kept, "reasoning_content": thoughts}


def environment(clock: Clock | None = None) -> Any:  # jinja2's, imported where it is needed
    """A jinja environment as transformers sets it up, with strftime_now only if `clock` is given.

    Without a clock the rendered texts contain no date and are reproducible.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag `{% generation %}` marks answers for training; its contents are printed."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 requires a set

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    def tojson(
        x: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    if clock:
        made.globals["strftime_now"] = lambda form: clock().strftime(form)
    return made
