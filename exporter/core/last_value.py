"""Keeps the last value that was made, with the content that it was made from."""

from __future__ import annotations

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LastValue(Generic[Key, Value]):
    """One value and its key: the contents that the value was made from, never their names."""

    def __init__(self) -> None:
        self.last: tuple[Key, Value] | None = None
        """One tuple, so that neither part is set or restored alone."""

    def get(self, key: Key) -> Value | None:
        """The value, if it was made from an equal key."""
        return self.last[1] if self.last is not None and self.last[0] == key else None

    def keep(self, key: Key, value: Value) -> None:
        """Keep a value in place of the one before."""
        self.last = key, value

    def forget(self) -> None:
        """Free the value."""
        self.last = None
