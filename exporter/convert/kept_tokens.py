"""The token keys of a tokenizer, kept on disk for the next export with the same files.

transformers takes a second to import and to load 128,000 tokens, and the converter another one to
write them. Kept are the keys as the converter's class wrote them, with the corrections that
tokenizer_keys.py made afterwards, and what was reported meanwhile. The verification of an export
still reads the tokenizer with transformers, unless it found the very same keys right before.
"""

from __future__ import annotations

import os
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.convert.config_prefetch import read_from
from exporter.convert.vocabulary_memo import copied as copied_value
from exporter.core.events import Event, Note, Report, Warn
from exporter.core.kept_values import KeptValues
from exporter.core.last_value import LastValue
from exporter.core.paths import tokenizers_folder

Keys = dict[str, Any]
"""GGUF values by key, as a GGUFWriter holds them."""
MOST = 8  # tokenizers, of 6 to 20 MB each
SCALARS = (str, int, float, bytes)
QUICK = 1  # zlib's level
BYTES = "latin-1"  # a character for each byte
EVENTS: dict[str, Callable[[str], Event]] = {"Note": Note, "Warn": Warn}


@dataclass(slots=True)
class TokenKeys:
    """The token keys of one tokenizer and model class."""

    written: Keys = field(default_factory=dict)
    """As the class wrote them; values that were corrected in place are corrected here."""
    removed: list[str] = field(default_factory=list)
    put: Keys = field(default_factory=dict)
    """Keys that were set after all others, in order."""
    events: list[Event] = field(default_factory=list)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files that complement or replace the tokenizer's for the converter."""

    def write(self, held: Keys) -> None:
        """Write what the class wrote."""
        held.update(copied(self.written))

    def settle(self, held: Keys, report: Report) -> None:
        """Make the corrections, and report what was reported."""
        for key in (*self.removed, *self.put):
            held.pop(key, None)
        held.update(copied(self.put))
        for event in self.events:
            report(event)

    def as_json(self) -> dict[str, Any] | None:
        """The keys for JSON; None if it cannot hold one of them as it is."""
        events = [event for event in self.events if isinstance(event, Note | Warn)]
        values = [*self.written.values(), *self.put.values()]
        if len(events) < len(self.events) or not all(is_plain(value.value) for value in values):
            return None
        return {
            "written": as_rows(self.written),
            "removed": self.removed,
            "put": as_rows(self.put),
            "events": [[type(event).__name__, event.message] for event in events],
            "files": {name: packed(content) for name, content in self.files.items()},
        }


def is_plain(value: Any) -> bool:
    """Whether `as_rows` writes a value that `from_rows` gives back as it is."""
    if not isinstance(value, list):
        return isinstance(value, SCALARS)
    kinds = set(map(type, value))
    is_whole = bool(kinds) and all(issubclass(kind, int) and kind is not bool for kind in kinds)
    return is_whole or kinds in ({str}, {float}, {bytes})


def copied(keys: Keys) -> Keys:
    """The keys with copies of their lists."""
    return {key: copied_value(value) for key, value in keys.items()}


def as_rows(keys: Keys) -> list[list[Any]]:
    """The keys for JSON: key, value, its types, and whether it is of bytes."""
    rows = []
    for key, one in keys.items():
        value, sub_type = one.value, None if one.sub_type is None else int(one.sub_type)
        of_bytes = isinstance(value, bytes) or (isinstance(value, list) and type(value[0]) is bytes)
        if of_bytes:
            value = each(value, lambda item: item.decode(BYTES))
        rows.append([key, value, int(one.type), sub_type, of_bytes])
    return rows


def from_rows(rows: Iterable[Sequence[Any]]) -> Keys:
    """The keys that `as_rows` wrote."""
    from gguf import GGUFValueType
    from gguf.gguf_writer import GGUFValue

    found: Keys = {}
    for key, written, kind, sub, of_bytes in rows:
        value = each(written, lambda item: item.encode(BYTES)) if of_bytes else written
        sub_type = None if sub is None else GGUFValueType(sub)
        found[key] = GGUFValue(value, GGUFValueType(kind), sub_type)
    return found


def each(value: Any, turn: Callable[[Any], Any]) -> Any:
    """A value, or each item of a list, turned into another."""
    return list(map(turn, value)) if isinstance(value, list) else turn(value)


def packed(content: bytes) -> str:
    return b64encode(zlib.compress(content, QUICK)).decode()


def unpacked(text: str) -> bytes:
    return zlib.decompress(b64decode(text))


class TokenStore:
    """Where the keys of one tokenizer and model class are kept."""

    def __init__(
        self, content: str, model_class: Any, hparams: Mapping[str, Any], build: str
    ) -> None:
        """content: hash of the tokenizer's files; build: of llama.cpp."""
        self.values = KeptValues(tokenizers_folder(os.environ), "tokens", MOST)
        classes = [str(kind) for kind in model_class.__mro__]
        settings = repr(read_from("", hparams))
        self.path = self.values.path([build, content, settings, *classes])

    def read(self) -> TokenKeys | None:
        if (last := MEMO.get(self.path)) is not None:
            return last
        value = self.values.read(self.path)
        if value is None:
            return None
        events: list[Event] = [EVENTS[kind](message) for kind, message in value["events"]]
        written, put = from_rows(value["written"]), from_rows(value["put"])
        files = {name: unpacked(text) for name, text in value["files"].items()}
        found = TokenKeys(written, value["removed"], put, events, files)
        MEMO.keep(self.path, found)
        return found

    def keep(self, found: TokenKeys) -> None:
        MEMO.keep(self.path, found)
        if (value := found.as_json()) is not None:
            self.values.write(self.path, value)


MEMO: LastValue[Path, TokenKeys] = LastValue()
"""The keys that were written or read last: a verification needs them again."""


class Recording:
    """Notes the token keys of a conversion while they are written and corrected."""

    def __init__(self, report: Report) -> None:
        self.forward = report
        self.keys: TokenKeys | None = None
        """None until the class has written them."""
        self.events: list[Event] = []
        self.files: Mapping[str, bytes] = {}
        self.seconds = 0.0
        """Time of the work that only the first export does."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the block's time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began

    def report(self, event: Event) -> None:
        self.events.append(event)
        self.forward(event)

    def wrote(self, before: Iterable[str], held: Keys) -> None:
        """The class has written its keys beside those `before`."""
        known = set(before)
        new = {key: value for key, value in held.items() if key not in known}
        self.keys = TokenKeys(copied(new))

    def corrected(self, before: Keys, held: Keys) -> TokenKeys | None:
        """The keys, after the corrections turned `before` into `held`.

        None if the class wrote none itself, or something else than its keys was corrected.
        """
        keys = self.keys
        if keys is None:
            return None
        last = list(held)
        order = iter(before)
        kept = 0  # keys at the beginning that were not set again
        for key in last:
            if not any(key == other for other in order):
                break
            kept += 1
        keys.put = copied({key: held[key] for key in last[kept:]})
        keys.removed = [key for key in before if key not in held]
        for key in last[:kept]:
            if held[key] != before[key]:
                if key not in keys.written:
                    return None
                keys.written[key] = copied({key: held[key]})[key]
        if any(key not in keys.written for key in (*keys.removed, *keys.put) if key in before):
            return None
        keys.events, keys.files = self.events, self.files
        return keys
