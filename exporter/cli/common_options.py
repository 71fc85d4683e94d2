"""Options and arguments that several commands share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from exporter.core.paths import store_folder


def go_offline(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Set HF_HUB_OFFLINE: huggingface_hub and transformers read it when they are imported."""
    del ctx, parameter
    if value:
        os.environ["HF_HUB_OFFLINE"] = "1"


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
offline_option = click.option(
    "--offline", is_flag=True, is_eager=True, expose_value=False, callback=go_offline,
    help="Do not use the network.",
)  # fmt: skip
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but warnings and errors.")


def store() -> Path:
    return store_folder(os.environ)


def given(parameter: str) -> bool:
    """Whether the user gave an option, as opposed to its default."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.COMMANDLINE
