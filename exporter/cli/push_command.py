"""The command `decant push`."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.common_options import json_option, quiet_option, store
from exporter.cli.push_options import (
    PushOptions,
    push_models,
    push_request,
    pushed_value,
    show_pushed,
)
from exporter.cli.terminal_renderer import print_json, reporting


@click.command(epilog="Example: decant push my-lora ORG/my-lora-GGUF --private")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Create the repo private; stop if it is public.")
@click.option("--endpoint", help="The hub. Default: HF_ENDPOINT, else https://huggingface.co.")
@click.option("--token", help="Access token; default: HF_TOKEN, else that of `hf auth login`.")
@click.option(
    "--trust-token", "trusted", metavar="HOST", multiple=True,
    help="Send the token to this host too; without it only to huggingface.co.",
)  # fmt: skip
@click.option(
    "--overwrite-card", is_flag=True,
    help="Replace a README.md that decant did not write, or that was changed since.",
)  # fmt: skip
@click.option(
    "--evaluation", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Put this section into the card (`decant eval --markdown FILE`). Default: that of the"
    " newest evaluation of one of the files.",
)  # fmt: skip
@click.option("--no-evaluation", is_flag=True, help="Leave evaluations out of the card.")
@click.option("--no-verify", is_flag=True, help="Push files even if their verification failed.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and stop.")
@json_option
@quiet_option
def push(
    models: tuple[str, ...],
    repo: str,
    private: bool,
    endpoint: str | None,
    token: str | None,
    trusted: tuple[str, ...],
    overwrite_card: bool,
    evaluation: Path | None,
    no_evaluation: bool,
    no_verify: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish MODELs as GGUFs in the repo ORG/NAME of a hub, with a model card.

    MODEL is a stored model (all its quantizations, or NAME-QUANT), FILE.gguf or a folder with
    GGUFs. A split GGUF goes whole, a projector and a Modelfile beside it go along, and nothing
    else. All files appear in one commit; what the repo has already is not sent again.
    """
    from exporter.share.shared_files import shared_models

    options = PushOptions(
        repo, private, endpoint, token, trusted, not no_verify, overwrite_card, evaluation,
        not no_evaluation,
    )  # fmt: skip
    push_request(options)
    with reporting(quiet=quiet) as report:
        found = shared_models(models, store(), verify=not no_verify, report=report)
        pushed = push_models(options, found, dry_run=dry_run, report=report)
    if as_json:
        print_json(pushed_value(pushed, dry_run=dry_run))
    else:
        show_pushed(pushed, dry_run=dry_run)
