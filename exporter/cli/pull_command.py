"""The command `decant pull`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.common_options import json_option, quiet_option
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.core.paths import size_text
from exporter.hub.repo_refs import REPO_TYPES, Ref, RepoType, parse_ref

if TYPE_CHECKING:
    from exporter.hub.pull import Pulled, PullRequest


@click.command(epilog="Example: decant pull Qwen/Qwen3-0.6B --endpoint https://hf-mirror.com")
@click.argument("repo", required=False)
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option("--revision", help="Branch, tag or commit; also as REPO@REVISION.")
@click.option("--include", multiple=True, help="Only files that match this glob; repeatable.")
@click.option("--exclude", multiple=True, help="No files that match this glob; repeatable.")
@click.option(
    "--endpoint", "endpoints", multiple=True,
    help="Hub or mirror, in order of preference; `modelscope:` for its bytes. Default: HF_ENDPOINT"
    " (may be a list with commas), else https://huggingface.co.",
)  # fmt: skip
@click.option(
    "--local-dir", type=click.Path(path_type=Path, file_okay=False),
    help="Put plain files here, with a decant.lock.json, instead of into the hub cache.",
)  # fmt: skip
@click.option(
    "--locked", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Download exactly what this decant.lock.json lists, or stop.",
)  # fmt: skip
@click.option(
    "--connections", type=click.IntRange(1, 32), default=4, show_default=True,
    help="Ranges of one file at a time; over all files twice as many.",
)  # fmt: skip
@click.option("--repo-type", type=click.Choice(REPO_TYPES), help="If it is not a model.")
@click.option("--token", help="Access token; default: HF_TOKEN, else that of `hf auth login`.")
@click.option(
    "--trust-token", "trusted", metavar="HOST", multiple=True,
    help="Send the token to this host too; without it only to huggingface.co.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be downloaded, and stop.")
@click.option(
    "--offline", is_flag=True, help="Do not use the network; stop if something is missing."
)
@json_option
@quiet_option
def pull(
    repo: str | None,
    files: tuple[str, ...],
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    endpoints: tuple[str, ...],
    local_dir: Path | None,
    locked: Path | None,
    connections: int,
    repo_type: RepoType | None,
    token: str | None,
    trusted: tuple[str, ...],
    dry_run: bool,
    offline: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Download REPO (ORG/NAME[@REVISION], or a link to it), or only FILEs of it.

    After a kill, a lost connection or a change of endpoint it resumes. Every byte is verified. The
    files go into the hub cache, where transformers and llama.cpp find them, too.
    """
    from exporter.hub.access_token import TokenRule, find_token
    from exporter.hub.endpoints import endpoints_from
    from exporter.hub.lockfile import read_plan
    from exporter.hub.probe_history import usual_history
    from exporter.hub.pull import PullRequest
    from exporter.hub.pull import pull as run
    from exporter.hub.pull_plan import FileFilter
    from exporter.hub.timeouts import Limits

    plan = read_plan(locked) if locked else None
    hosts = endpoints_from(endpoints, os.environ)
    request = PullRequest(
        ref=plan.ref if plan else wanted(repo, revision, repo_type, [e.url for e in hosts]),
        endpoints=hosts,
        cache=hub_cache(),
        choice=FileFilter(files, include, exclude),
        local_dir=local_dir,
        locked=plan,
        rule=TokenRule(None if offline else find_token(token, os.environ), trusted),
        offline=offline or hub_is_offline(),
        limits=Limits(connections=connections),
        memory=usual_history(),
    )
    if plan and (repo or files or include or exclude or revision):
        raise click.UsageError("a lock file says all of what to pull; leave out the rest")
    with reporting(quiet=quiet) as report:
        pulled = run(request, dry_run=dry_run, report=report)
    show(request, pulled, dry_run=dry_run, as_json=as_json)


def wanted(
    repo: str | None, revision: str | None, repo_type: RepoType | None, urls: list[str]
) -> Ref:
    from urllib.parse import urlsplit

    if repo is None:
        raise click.UsageError("name a repo, such as Qwen/Qwen3-0.6B, or a lock file with --locked")
    hosts = [urlsplit(url).hostname or "" for url in urls]
    return parse_ref(repo, revision=revision, repo_type=repo_type, hosts=hosts)


def hub_cache() -> Path:
    """The folder of huggingface_hub's cache: HF_HUB_CACHE, HF_HOME, or its default."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def hub_is_offline() -> bool:
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def show(request: PullRequest, pulled: Pulled, *, dry_run: bool, as_json: bool) -> None:
    missing = {file.path for file in pulled.missing}
    if as_json:
        print_json(as_value(pulled, missing, dry_run=dry_run))
        return
    if dry_run:
        rows = [
            (file.path, size_text(file.size), "no" if file.path in missing else "yes")
            for file in pulled.plan.files
        ]
        print_table(("FILE", "SIZE", "HERE"), rows)
    elif request.choice.files == () and request.ref.file:
        click.echo(pulled.folder / request.ref.file)
    else:
        click.echo(pulled.folder)
    absent = sum(file.size for file in pulled.missing)
    verb = "to download" if dry_run else "downloaded"
    click.echo(
        f"{len(pulled.plan.files)} files, {size_text(pulled.plan.nbytes)};"
        f" {verb}: {len(missing)} files, {size_text(absent)}; commit {pulled.plan.commit[:12]}",
        err=True,
    )


def as_value(pulled: Pulled, missing: set[str], *, dry_run: bool) -> dict[str, object]:
    plan = pulled.plan
    return {
        "repo": plan.ref.repo,
        "repo_type": plan.ref.repo_type,
        "revision": plan.ref.revision,
        "commit": plan.commit,
        "hashes_from": plan.hashes_from,
        "hashes_from_reference": plan.is_reference,
        "folder": str(pulled.folder),
        "files": [
            {
                "path": file.path,
                "nbytes": file.size,
                "hash": file.etag,
                "was_here": file.path not in missing,
            }
            for file in plan.files
        ],
        "nbytes": plan.nbytes,
        "received": pulled.received,
        "served_by": pulled.served,
        "seconds": round(pulled.seconds, 3),
        "dry_run": dry_run,
    }
