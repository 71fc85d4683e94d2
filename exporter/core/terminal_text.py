"""What a terminal would obey, taken out of texts that are not ours."""

from __future__ import annotations

import re

# all control characters but tab and newline, and those that turn the text around them
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def without_controls(text: str) -> str:
    """The text with everything removed that a terminal would obey."""
    return CONTROLS.sub("", text)
