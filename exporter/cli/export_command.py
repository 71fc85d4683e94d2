"""`decant export`."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from exporter.cli.common_options import given, json_option, offline_option, quiet_option, store
from exporter.cli.folder_outputs import export_folder, folder_name, parse_size
from exporter.cli.lora_output import export_lora, refuse_for_lora
from exporter.cli.peft_output import export_peft, refuse_for_peft
from exporter.cli.recipe_options import recipe_options
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.cli.vllm_output import export_vllm, refuse_for_vllm
from exporter.core.errors import InputError, ToolchainError
from exporter.core.ggml_types import parse_quant
from exporter.core.machine import cores
from exporter.core.paths import model_name, size_text
from exporter.merge.operations import Combination
from exporter.merge.qlora import BaseRoundtrip
from exporter.quantize.recipe import Recipe
from exporter.store import file_name

if TYPE_CHECKING:
    from exporter.export import ExportResult
    from exporter.formats.export_request import ExportRequest
    from exporter.hub.pull import Pulled
    from exporter.merge.operations import MergeDtype


LONGEST_NAME = 220  # bytes of 255: .NAME-00001-of-00002.gguf.partial is written first
FEW_CHARACTERS = 40
OTHER_FILES = (".bin", ".safetensors", ".pt", ".pth", ".ggml", ".zip", ".onnx")
HELP = """Turn the adapter ADAPTER into a GGUF.

ADAPTER is what PEFT or mlx-lm saved: a folder, one of its files, a zip, a training run with its
checkpoints, a GGUF adapter; or a repo of the hub as ORG/NAME[@REVISION], or a link to one, which
is pulled. The base is taken from --base, else from where the adapter says it was trained. Without
ADAPTER (or with `-`) the base is converted as it is, and so is a whole model named as ADAPTER.
"""


@click.command(
    help=HELP, epilog="Example: decant export ./my-lora --base ./Llama-3.2-1B -q Q4_K_M -q Q8_0"
)
@click.argument("adapter", required=False)
@click.option("--revision", help="Branch, tag or commit of ADAPTER's repo.")
@click.option("--subfolder", help="Where the adapter lies in ADAPTER's repo or folder.")
@click.option(
    "--adapter", "others", multiple=True, metavar="PATH[:SCALE]",
    help="Another adapter, merged after the first; give it again for more.",
)  # fmt: skip
@click.option(
    "--combine", type=click.Choice(get_args(Combination)),
    help="Make one LoRA of all adapters first, as peft's add_weighted_adapter does.",
)  # fmt: skip
@click.option("--base", help="The base model: a folder, a GGUF, ollama:NAME, ORG/NAME, or a link.")
@click.option(
    "-q", "--quant", "quants", multiple=True, default=("Q4_K_M",), show_default=True,
    help="Quantization; give it again for several files from one pass.",
)  # fmt: skip
@recipe_options
@click.option(
    "--to", type=click.Choice(("gguf", "lora", "safetensors", "ollama", "vllm", "peft")),
    default="gguf", show_default=True,
    help="gguf: the merged model; lora: the adapter alone, for llama-server's --lora;"
    " safetensors: a merged checkpoint; ollama: the GGUF with its Modelfile; vllm: the adapters,"
    " and how `vllm serve` is started with them; peft: an MLX or GGUF adapter as PEFT's.",
)  # fmt: skip
@click.option("--name", "served_name", help="Of --to vllm: what clients call the base.")
@click.option(
    "--max-shard-size", default="5GB", show_default=True, help="Of a file of --to safetensors."
)
@click.option(
    "--split-max-size", metavar="SIZE",
    help="Write files of at most so much, e.g. 2GB; chat and llama.cpp load them all by the first.",
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
    help="Let the model's folder run Python code of its own. Read that code first.",
)  # fmt: skip
@click.option(
    "--no-verify", is_flag=True, help="Do not compare the file with base and adapter at the end."
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@offline_option
@json_option
@quiet_option
def export(
    adapter: str | None,
    revision: str | None,
    subfolder: str | None,
    others: tuple[str, ...],
    combine: Combination | None,
    base: str | None,
    quants: tuple[str, ...],
    to: str,
    recipe: Recipe,
    output: Path | None,
    merge_dtype: MergeDtype,
    base_roundtrip: BaseRoundtrip,
    scale: float,
    threads: int | None,
    trust_remote_code: bool,
    no_verify: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    max_shard_size: str,
    split_max_size: str | None,
    served_name: str | None,
) -> None:
    """Turn the adapter ADAPTER into a GGUF."""
    wanted = adapters_named(adapter, scale, others, combine)
    refuse_output(to, adapter, recipe)
    refuse_nonsense(adapter, base, revision or subfolder, has_adapter=bool(wanted))
    if to == "vllm":
        return export_vllm(wanted, served_name)
    from exporter.formats.export_request import ExportRequest
    from exporter.inputs.locate import Sources, absent, bring

    sources = Sources(tuple(text for text, _ in wanted), base, revision, subfolder)
    with reporting(quiet=quiet) as report:
        if dry_run and (pulls := absent(sources, report=report)):
            return show_absent(pulls, as_json=as_json)
        folders, base_folder = bring(sources, report=report)
    if to in ("lora", "peft"):
        return (export_lora if to == "lora" else export_peft)(folders, base_folder)
    chosen, name = chosen_quants(quants), name_of(folders, base_folder)
    request = ExportRequest(
        tuple(zip(folders, (weight for _, weight in wanted), strict=False)),
        base_folder,
        chosen,
        outputs=output_paths(output, name, chosen),
        recipe=recipe,
        merge_dtype=merge_dtype,
        combine=combine,
        base_roundtrip=base_roundtrip,
        trust_remote_code=trust_remote_code,
        split_max=parse_size("--split-max-size", split_max_size) if split_max_size else 0,
        force=force,
        verify=not no_verify,
        threads=threads or cores(),
    )
    if to == "gguf":
        return export_gguf(request, dry_run=dry_run, as_json=as_json, quiet=quiet)
    return export_folder(to, request, output or folder_name(name, to), max_shard_size)


def chosen_quants(quants: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_quant(quant) for quant in quants))


def name_of(adapters: list[Path], base: Path | None) -> str:
    """What a person would call the result."""
    from exporter.gguf_inputs.gguf_base import gguf_name, is_gguf
    from exporter.inputs.adapter import open_adapter

    base = base or Path()
    named = gguf_name(base) if is_gguf(base) else model_name(base)
    return "-".join(open_adapter(folder).name for folder in adapters) or named


def export_gguf(request: ExportRequest, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Write the GGUF files and show them."""
    from exporter.calibrate import with_matrix
    from exporter.export import export as run
    from exporter.llamacpp.toolchain import find_toolchain

    toolchain = find_toolchain()
    with reporting(quiet=quiet) as report:
        request = with_matrix(request, toolchain, dry_run=dry_run, report=report)
        result = run(request, toolchain, dry_run=dry_run, report=report)
    show(result, dry_run=dry_run, as_json=as_json)


def refuse_nonsense(
    adapter: str | None, base: str | None, within: str | None, *, has_adapter: bool
) -> None:
    """UsageError for options that do not go together, ToolchainError for missing packages."""
    for what, value in (("ADAPTER", adapter), ("--base", base)):
        if value == "":
            raise click.UsageError(f"{what} is empty: is a variable of the shell not set?")
    if not has_adapter and base is None:
        raise click.UsageError("name an adapter folder, or a base with --base")
    if adapter in (None, "-") and within:
        raise click.UsageError("--revision and --subfolder are ADAPTER's, and none is named")
    require_packages()


def refuse_output(to: str, adapter: str | None, recipe: Recipe) -> None:
    """UsageError for options that say nothing about this output."""
    if to == "lora":
        refuse_for_lora(adapter)
    if to == "vllm":
        refuse_for_vllm(adapter)
    if to == "peft":
        refuse_for_peft(adapter)
    if to != "vllm" and given("served_name"):
        raise click.UsageError("--name is for --to vllm; -o names the output")
    if to in ("lora", "safetensors", "vllm", "peft") and recipe != Recipe():
        raise click.UsageError(f"types and importance matrices are for GGUF models, not --to {to}")
    if to == "safetensors" and given("quants"):
        raise click.UsageError("-q is for GGUF: --to safetensors keeps the base's own type")
    if to in ("lora", "safetensors") and given("split_max_size"):
        raise click.UsageError(f"--split-max-size is for GGUF models, not --to {to}")
    if to != "safetensors" and given("max_shard_size"):
        raise click.UsageError("--max-shard-size is for --to safetensors")


def adapters_named(
    first: str | None, scale: float, others: tuple[str, ...], combine: Combination | None
) -> list[tuple[str, float]]:
    """Every adapter that was named, with its scale, in order."""
    if not math.isfinite(scale):
        raise click.UsageError(f"--scale {scale} is not a number to multiply with")
    here = [(first, scale)] if first and first != "-" else []
    wanted = [*here, *(parse_weighted(text) for text in others)]
    if combine and len(wanted) < 2:  # noqa: PLR2004 - nothing to combine with
        raise click.UsageError("--combine needs a second adapter: --adapter PATH:SCALE")
    return wanted


def parse_weighted(text: str) -> tuple[str, float]:
    """PATH or PATH:SCALE; a colon in the name of a folder that is here is part of the name."""
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
    """ToolchainError, saying how to install them, when torch and its kin are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise ToolchainError(
            f"exporting needs {', '.join(missing)}, which this installation lacks",
            hint="pip install 'decant-llm[export]'",
        )


def output_paths(output: Path | None, name: str, quants: tuple[str, ...]) -> tuple[Path, ...]:
    """Where each quantization goes: the one file that was named, a folder, or the store."""
    if output:
        refuse_name(output)
    if output is None or output.suffix.lower() != ".gguf" or output.is_dir():
        folder = output or store()
        return tuple(folder / file_name(name, quant) for quant in quants)
    if len(quants) > 1:
        raise InputError(
            f"{len(quants)} quantizations cannot all be written to `{output}`",
            hint=f"name a folder: -o {output.with_suffix('')}",
        )
    return (output,)


def refuse_name(output: Path) -> None:
    """Raise InputError for a name that cannot be a GGUF's or a folder's."""
    is_gguf = output.suffix.lower() == ".gguf"
    if len(os.fsencode(output.name)) > LONGEST_NAME:
        raise InputError(
            f"`{output.name[:FEW_CHARACTERS]}…` is a longer name than {LONGEST_NAME} bytes, which"
            " is all that file systems take beside what a writing needs",
            hint="-o with a shorter name",
        )
    if output.suffix in OTHER_FILES and not output.is_dir():
        raise InputError(
            f"`{output}` has the name of a file that is no GGUF",
            hint=f"-o {output.with_suffix('.gguf')}, or a folder; --to safetensors writes the"
            " merged model for transformers",
        )
    if output.exists() and not output.is_dir() and not is_gguf:
        raise InputError(f"`{output}` is a file, and no GGUF", hint="-o FILE.gguf, or a folder")


def show_absent(pulls: tuple[Pulled, ...], *, as_json: bool) -> None:
    """Say what an export would pull first; what it would write is known only then."""
    if as_json:
        print_json({"to_pull": [pull_value(pulled) for pulled in pulls], "dry_run": True})
        return
    rows = [
        (pulled.plan.ref.repo, file.path, size_text(file.size))
        for pulled in pulls
        for file in pulled.missing
    ]
    print_table(("REPO", "FILE", "SIZE"), rows)
    nbytes = sum(file.size for pulled in pulls for file in pulled.missing)
    click.echo(
        f"an export would first pull {len(rows)} files, {size_text(nbytes)};"
        " what it would write is known when they are here",
        err=True,
    )


def pull_value(pulled: Pulled) -> dict[str, object]:
    return {
        "repo": pulled.plan.ref.repo,
        "commit": pulled.plan.commit,
        "files": [{"path": file.path, "nbytes": file.size} for file in pulled.missing],
        "nbytes": sum(file.size for file in pulled.missing),
    }


def show(result: ExportResult, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result) | {"dry_run": dry_run})
        return
    for file in result.files:
        types = ", ".join(f"{count} {name}" for name, count in file.types.items())
        click.echo(f"{file.path}")
        parts = f" in {len(file.shards)} files" if file.shards else ""
        click.echo(f"  {file.quant}, {size_text(file.nbytes)}{parts}: {types}", err=True)
    done = "would change" if dry_run else f"{result.seconds:.1f} s; merged"
    click.echo(f"{done} {result.merged} of {result.tensors} tensors", err=True)
