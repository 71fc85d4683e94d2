"""The engine of a conversation that a remote server answers."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from exporter.core.errors import EngineError
from exporter.core.near_names import did_you_mean
from exporter.core.terminal_text import without_controls
from runtime.engine.local import RAW_LIMIT
from runtime.engine.openai_client import (
    Message,
    Piece,
    as_one_text,
    ask,
    ask_json,
    complete,
    get_json,
    listed,
    read_tokens,
)
from runtime.engine.remote import Remote
from runtime.engine.selection import AdapterSelection


class RemoteEngine:
    """A model of a remote server."""

    def __init__(self, remote: Remote, model: str | None, *, raw: bool = False) -> None:
        """Choose `model`, or the first that the server lists. Raises EngineError."""
        self.remote, self.raw = remote, raw
        ids = [one.get("id") for one in listed(get_json(remote, "/v1/models").get("data"))]
        names = tuple(without_controls(one) for one in ids if isinstance(one, str))
        if model is None and not names:
            raise EngineError(f"{remote} lists no model", hint="name one: --model NAME")
        if model is not None and names and model not in names:
            raise EngineError(
                f"{remote} has no model {model!r}",
                hint=did_you_mean(model, names, f"it lists {', '.join(names[:10])}", most=3),
            )
        self.name, self.names = model or names[0], names

    @property
    def model(self) -> str:
        return self.name

    @property
    def choices(self) -> tuple[str, ...]:
        return ()

    @property
    def sees(self) -> bool:
        return True

    def answer(
        self,
        messages: Sequence[Message],
        settings: Mapping[str, object],
        selection: AdapterSelection,
    ) -> Generator[Piece, None, None]:
        """Stream the answer. Raises the errors of `openai_client.ask`."""
        del selection
        if self.raw:
            rest = {**RAW_LIMIT, "model": self.name, **settings}
            yield from complete(self.remote, as_one_text(messages), rest)
            return
        yield from ask(self.remote, messages, {"model": self.name, **settings})

    def count(self, messages: Sequence[Message], selection: AdapterSelection) -> int | None:
        del messages, selection
        return None

    def tokens(self, text: str) -> list[tuple[int, str | bytes]]:
        body = {"content": text, "with_pieces": True, "add_special": False, "model": self.name}
        found = ask_json(self.remote, "/tokenize", body)
        return read_tokens(found)

    def facts(self) -> dict[str, str]:
        return {"server": str(self.remote), "model": self.name, "models": ", ".join(self.names)}

    def source(self) -> dict[str, Any]:
        found = {"url": str(self.remote), "remote_model": self.name}
        return found | ({"raw": True} if self.raw else {})

    def stop(self) -> None:
        """Do nothing: no process runs here."""
