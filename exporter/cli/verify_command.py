"""The command `decant verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, offline_option, quiet_option, store
from exporter.cli.export_command import adapters_named, require_packages
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.core.errors import InputError, UnsupportedError
from exporter.core.gguf import read_gguf
from exporter.merge.operations import Combination
from exporter.merge.qlora import BaseRoundtrip
from exporter.model_store import find_model

if TYPE_CHECKING:
    from exporter.verify.verification import Verification


@click.command(epilog="Example: decant verify my-lora --base ./Llama-3.2-1B --adapter ./my-lora")
@click.argument("gguf", shell_complete=completing.models)
@click.option("--base", help="The base model: a folder, ORG/NAME[@REVISION], or a link to it.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="PATH[:SCALE]",
    help="The adapter it was made with; give it again for more, in order.",
)  # fmt: skip
@click.option(
    "--combine", type=click.Choice(get_args(Combination)),
    help="How several adapters were combined; with --light.",
)  # fmt: skip
@click.option(
    "--base-roundtrip", type=click.Choice(get_args(BaseRoundtrip)), default="auto",
    show_default=True, help="As for `decant export`.",
)  # fmt: skip
@click.option(
    "--mmproj", "projector", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The projector of a model that sees or hears; default: the one beside GGUF.",
)  # fmt: skip
@click.option("--light", is_flag=True, help="Only weights, tokenizer, template and settings.")
@click.option(
    "--rows", type=click.IntRange(0), default=16, show_default=True,
    help="Rows of each tensor to compute again; 0 for all of them.",
)  # fmt: skip
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The text that both models read; default: a page of English.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.IntRange(8), default=2048, show_default=True,
    help="Maximum number of tokens to read of the text.",
)  # fmt: skip
@click.option(
    "--against-base", is_flag=True,
    help="Allow twice the divergence of the base alone, quantized alike; by default, of the same"
    " values requantized.",
)  # fmt: skip
@click.option(
    "--max-kl", type=click.FloatRange(0), help="Mean KL divergence to allow, instead of a default."
)
@click.option(
    "--trust-remote-code", is_flag=True,
    help="Let the model's folder run its Python code. Read that code first.",
)  # fmt: skip
@offline_option
@json_option
@quiet_option
def verify(
    gguf: str,
    base: str | None,
    adapters: tuple[str, ...],
    combine: Combination | None,
    base_roundtrip: BaseRoundtrip,
    projector: Path | None,
    light: bool,
    rows: int,
    text: Path | None,
    tokens: int,
    against_base: bool,
    max_kl: float | None,
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare GGUF (a file, or a stored model's name) with the base and adapters it is made of.

    Rows of every merged tensor are computed again in float64, and tokenizer, chat template and
    settings are compared with the base's; then both models read a text, and their predictions are
    compared. A model with vision also encodes a picture on both sides. Exits with 7 if something is
    wrong.
    """
    if not adapters and base is None:
        raise click.UsageError("name what it was made of: --base, and --adapter if there was one")
    if combine and not light:
        raise click.UsageError("combined adapters can be compared with --light only")
    wanted = adapters_named(None, 1.0, adapters, combine)
    require_packages()
    with reporting(quiet=quiet) as report:
        path = Path(gguf) if Path(gguf).is_file() else find_model(gguf, store(), report=report)
    refuse_adapter(path)
    content = read_text(text)
    from exporter.core.silence import one_numpy_thread
    from exporter.formats.export_request import ExportRequest, plan_request, result_name
    from exporter.inputs.locate import Sources, bring
    from exporter.llamacpp.toolchain import find_toolchain
    from exporter.verify.verified_record import record
    from exporter.verify.verify_file import VerifyOptions, verify_file

    one_numpy_thread()
    toolchain = find_toolchain()
    with reporting(quiet=quiet) as report:
        sources = Sources(tuple(named for named, _ in wanted), base)
        folders, base_folder = bring(sources, report=report)
        weighted = tuple(zip(folders, (weight for _, weight in wanted), strict=False))
        request = ExportRequest(
            weighted, base_folder, (), (), combine=combine, base_roundtrip=base_roundtrip,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        plan = plan_request(request, toolchain, report=report)
        chosen_options = VerifyOptions(
            path, projector, result_name(plan), light, rows, content, tokens, against_base,
            max_kl, trust_remote_code,
        )  # fmt: skip
        found = verify_file(chosen_options, plan, toolchain, report=report)
    record(found)
    show(found, as_json=as_json)
    found.refuse()


def refuse_adapter(path: Path) -> None:
    """Raise UnsupportedError for a GGUF adapter: only whole models are compared."""
    if read_gguf(path).is_adapter:
        raise UnsupportedError(
            f"`{path}` is a GGUF adapter, and only whole models are compared",
            hint=f"`decant chat BASE.gguf --adapter {path}` tries it on a GGUF of its base",
        )


def read_text(path: Path | None) -> str:
    """The text to read. Raises InputError for a file that is not UTF-8."""
    from exporter.verify.texts import PARAGRAPH

    if path is None:
        return PARAGRAPH
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` is not UTF-8 text: {error}", hint="convert it first") from error


def show(found: Verification, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found) | {"ok": found.ok})
        return
    print_table(
        ("CHECK", "", "FOUND"),
        [(check.name, check.verdict, check.detail) for check in found.checks],
    )
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{found.seconds:.1f} s", err=True)
