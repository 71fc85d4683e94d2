"""Sizes as people type them."""

from __future__ import annotations

import re

import click

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(option: str, text: str) -> int:
    """Parse a size such as 5GB, 500MB, 2GiB or a plain number to bytes, as transformers does.

    Raises UsageError for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG](?:I?B)?|)", text.strip().upper())
    if not found or not float(found[1]):
        last = "; without a size it stands last" if option == "--fit" else ""
        raise click.UsageError(f"{option} {text!r} is not a size such as 5GB or 500MB{last}")
    return int(float(found[1]) * UNITS.get(found[2], UNITS.get(found[2][:1], 1)))
