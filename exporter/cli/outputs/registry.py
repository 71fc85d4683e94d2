"""The formats of `decant export --to`, in the order of --help."""

from __future__ import annotations

import click

from exporter.cli.outputs.gguf_output import GGUF
from exporter.cli.outputs.lora_output import LORA
from exporter.cli.outputs.ollama_output import OLLAMA
from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.peft_output import PEFT
from exporter.cli.outputs.safetensors_output import SAFETENSORS
from exporter.cli.outputs.vllm_output import VLLM

FORMATS = {format_.name: format_ for format_ in (GGUF, LORA, SAFETENSORS, OLLAMA, VLLM, PEFT)}


def check_output(to: str, options: ExportOptions) -> OutputFormat:
    """The format of that name. Raises UsageError for options without a meaning for it."""
    chosen = FORMATS[to]
    chosen.check(options)
    for other in FORMATS.values():
        for parameter, reason in other.own.items():
            if other is not chosen and parameter in options.given:
                raise click.UsageError(reason)
    return chosen


def formats_help() -> str:
    """The line of --to in --help."""
    return "; ".join(f"{format_.name}: {format_.line}" for format_ in FORMATS.values()) + "."


def formats_table() -> str:
    """The table of the formats in docs/export.md."""
    rows = [f"| `--to {format_.name}` | {format_.line} |" for format_ in FORMATS.values()]
    return "\n".join(("| output | what it is |", "|---|---|", *rows)) + "\n"
