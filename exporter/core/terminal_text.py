"""Removes control characters from texts that decant did not write."""

from __future__ import annotations

import re

# all control characters except tab and newline, and the bidirectional ones
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def without_controls(text: str) -> str:
    """The text without characters that a terminal obeys."""
    return CONTROLS.sub("", text)
