"""Options and arguments that several commands share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from exporter.core.folders import store_folder

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but warnings and errors.")


def store() -> Path:
    return store_folder(os.environ)
