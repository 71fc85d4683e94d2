"""The command `decant export`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import click

from exporter.cli import completing
from exporter.cli.common_options import given, json_option, offline_option, quiet_option
from exporter.cli.outputs.output_format import ExportOptions
from exporter.cli.outputs.registry import FORMATS, check_output, formats_help
from exporter.cli.recipe_options import recipe_options
from exporter.core.errors import ToolchainError
from exporter.merge.operations import Combination
from exporter.merge.qlora import BaseRoundtrip

HELP = """Turn the adapter ADAPTER into a GGUF.

ADAPTER is what PEFT or mlx-lm saved: a folder, one of its files, a zip, a training run with its
checkpoints, a GGUF adapter; or a repo of the hub as ORG/NAME[@REVISION], or a link to one, which
is pulled. The base is taken from --base, else from where the adapter says it was trained. Without
ADAPTER (or with `-`) the base is converted as it is, and so is a whole model named as ADAPTER.
"""


@click.command(
    help=HELP, epilog="Example: decant export ./my-lora --base ./Llama-3.2-1B -q Q4_K_M -q Q8_0"
)
@click.argument("adapter", required=False, shell_complete=completing.paths)
@click.option("--revision", help="Branch, tag or commit of ADAPTER's repo.")
@click.option("--subfolder", help="The adapter's folder in ADAPTER's repo or folder.")
@click.option(
    "--adapter", "others", multiple=True, metavar="PATH[:SCALE]",
    help="Another adapter, merged after the first; give it again for more.",
)  # fmt: skip
@click.option(
    "--combine", type=click.Choice(get_args(Combination)),
    help="Make one LoRA of all adapters first, as peft's add_weighted_adapter does.",
)  # fmt: skip
@click.option(
    "--base", shell_complete=completing.paths,
    help="The base model: a folder, a GGUF, ollama:NAME, ORG/NAME, or a link.",
)  # fmt: skip
@click.option(
    "-q", "--quant", "quants", multiple=True, default=("Q4_K_M",), show_default=True,
    shell_complete=completing.quants,
    help="Quantization; give it again for several files from one pass.",
)  # fmt: skip
@recipe_options
@click.option(
    "--to", type=click.Choice(tuple(FORMATS)), default="gguf", show_default=True,
    help=formats_help(),
)  # fmt: skip
@click.option("--name", "served_name", help="Of --to vllm: the base's name for clients.")
@click.option(
    "--max-shard-size", default="5GB", show_default=True, help="Of a file of --to safetensors."
)
@click.option(
    "--split-max-size", metavar="SIZE",
    help="Largest file to write, e.g. 2GB; chat and llama.cpp load all files by the first one.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="FILE.gguf, or a folder. Without it: the store, for `decant chat NAME`.",
)  # fmt: skip
@click.option(
    "--merge-dtype", type=click.Choice(("float32", "base")), default="float32", show_default=True,
    help="float32 adds exactly; base rounds as peft, convert and llama-quantize do.",
)  # fmt: skip
@click.option(
    "--base-roundtrip", type=click.Choice(get_args(BaseRoundtrip)), default="auto",
    show_default=True,
    help="Merge onto the base as NF4 gave it in QLoRA training; auto goes by the adapter's folder.",
)  # fmt: skip
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="Weaken or strengthen the adapter."
)
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Quantizing threads; default: all cores."
)
@click.option(
    "--trust-remote-code", is_flag=True,
    help="Let the model's folder run its Python code. Read that code first.",
)  # fmt: skip
@click.option(
    "--no-verify", is_flag=True, help="Do not compare the file with base and adapter at the end."
)
@click.option(
    "--eval", "eval_data", metavar="DATA",
    help="Measure base, 16-bit model and files on DATA, and name the smallest without a loss.",
)  # fmt: skip
@click.option(
    "--push",
    metavar="ORG/NAME",
    help="Publish the GGUFs in this repo; see `decant push`.",
)
@click.option("--private", is_flag=True, help="Of --push: create the repo private.")
@click.option(
    "--trust-token", "trusted", metavar="HOST", multiple=True,
    help="Of --push: a host that gets the access token, as huggingface.co does.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be written, for a GGUF also in what time and memory, and stop.",
)
@offline_option
@json_option
@quiet_option
def export(
    *,
    to: str,
    **options: Any,  # ExportOptions' fields
) -> None:
    """Turn the adapter ADAPTER into a GGUF."""
    wanted = adapters_named(
        options["adapter"], options["scale"], options["others"], options["combine"]
    )
    named = frozenset(filter(given, options))
    request = ExportOptions(**options, adapters=tuple(wanted), given=named)
    chosen = check_output(to, request)
    refuse_nonsense(request)
    chosen.run(request)


def refuse_nonsense(options: ExportOptions) -> None:
    """Raise UsageError for options that exclude each other, ToolchainError for missing packages."""
    for what, value in (("ADAPTER", options.adapter), ("--base", options.base)):
        if value == "":
            raise click.UsageError(f"{what} is empty: is a variable of the shell not set?")
    if not options.adapters and options.base is None:
        raise click.UsageError("name an adapter folder, or a base with --base")
    if not options.has_first and (options.revision or options.subfolder):
        raise click.UsageError("--revision and --subfolder are ADAPTER's, and none is named")
    require_packages()


def adapters_named(
    first: str | None, scale: float, others: tuple[str, ...], combine: Combination | None
) -> list[tuple[str, float]]:
    """Every named adapter with its scale, in order."""
    if not math.isfinite(scale):
        raise click.UsageError(f"--scale {scale} is not a number to multiply with")
    here = [(first, scale)] if first and first != "-" else []
    wanted = [*here, *(parse_weighted(text) for text in others)]
    if combine and len(wanted) < 2:  # noqa: PLR2004 - nothing to combine with
        raise click.UsageError("--combine needs a second adapter: --adapter PATH:SCALE")
    return wanted


def parse_weighted(text: str) -> tuple[str, float]:
    """Parse PATH or PATH:SCALE; a colon in the name of an existing folder belongs to the name."""
    if Path(text).exists():
        return text, 1.0
    path, colon, scale = text.rpartition(":")
    try:
        weight = float(scale) if colon else 1.0
    except ValueError:
        path, weight = text, 1.0
    if not math.isfinite(weight):
        raise click.UsageError(f"--adapter {text}: {scale} is not a number to multiply with")
    return path or text, weight


def require_packages() -> None:
    """Raise ToolchainError, with the command to install them, if torch and others are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise ToolchainError(
            f"exporting needs {', '.join(missing)}, which this installation lacks",
            hint="pip install 'decant-llm[export]'",
        )
