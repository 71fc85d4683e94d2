"""Options of an upload, which `decant push` and `decant export --push` share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from exporter.core.errors import InputError, UploadError
from exporter.core.events import Note, Report
from exporter.core.paths import size_text
from exporter.hub.access_token import HUB, LOOPBACK, TokenRule, find_token

if TYPE_CHECKING:
    from exporter.hub.endpoints import Endpoint
    from exporter.hub.upload.push_files import Pushed, PushRequest
    from exporter.share.shared_files import SharedModel

RUNTIME = "runtime.cli.eval_card"
"""The module that finds evaluations; the exporter names runtime in strings, as `app.py` does."""


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Where to publish, and how."""

    repo: str
    private: bool = False
    endpoint: str | None = None
    token: str | None = None
    trusted: tuple[str, ...] = ()
    verify: bool = True
    overwrite_card: bool = False
    evaluation: Path | None = None
    """A file with the evaluation's section; None looks among the reports of `decant eval`."""
    with_evaluation: bool = True


def parse_repo(text: str, endpoint: Endpoint) -> str:
    """ORG/NAME. Raises InputError for anything else, such as a file or a link to another hub."""
    from exporter.hub.repo_refs import is_link, parse_ref

    if Path(text).exists():
        raise InputError(
            f"`{text}` is a file or a folder, and the repo comes last",
            hint="decant push MODEL ORG/NAME-GGUF",
        )
    host = urlsplit(endpoint.url).hostname or ""
    ref = parse_ref(text, hosts=[host])
    named = urlsplit(text if "://" in text else f"https://{text}").hostname
    if is_link(text) and named != host and not (endpoint.is_reference and named in HUB):
        raise InputError(
            f"`{text}` is on {named}, and the endpoint is {endpoint.name}",
            hint=f"HF_ENDPOINT=https://{named}, or name the repo alone: {ref.repo}",
        )
    if "/" not in ref.repo:
        raise InputError(
            f"{text!r} names no owner: a repo to push to is ORG/NAME",
            hint=f"your user name or an organization in front: ORG/{ref.repo}",
        )
    if ref.revision != "main" or ref.file or ref.folder or ref.repo_type != "model":
        raise InputError(
            f"{text!r} is more than a repo: a push goes to the branch main",
            hint=f"name the repo alone: {ref.repo}",
        )
    return ref.repo


def push_request(options: PushOptions) -> PushRequest:
    """The request without its files: repo, hub and token.

    Raises InputError for a name that cannot be one, UploadError without a token, or for a host that
    does not get it.
    """
    from huggingface_hub import is_offline_mode

    from exporter.hub.upload.push_files import PushRequest

    endpoint = chosen_endpoint(options.endpoint)
    repo = parse_repo(options.repo, endpoint)
    if is_offline_mode():
        raise UploadError(
            "decant is offline, and a push needs the hub", hint="unset HF_HUB_OFFLINE"
        )
    token = find_token(options.token, os.environ)
    if not token:
        raise UploadError(
            "there is no access token to push with",
            hint="`hf auth login`, or HF_TOKEN, with a token that may write:"
            " https://huggingface.co/settings/tokens",
        )
    if not TokenRule(token, options.trusted).token_for(endpoint.url):
        host = endpoint.name.rpartition(":")[0] or endpoint.name
        is_plain = endpoint.url.startswith("http:") and host not in LOOPBACK
        raise UploadError(
            f"{endpoint.name} does not get the token: only {HUB[0]} and hosts of --trust-token do"
            + (", over https" if is_plain else ""),
            hint=f"--trust-token {endpoint.name} if that hub is yours;"
            " HF_ENDPOINT=https://huggingface.co for the public one",
        )
    return PushRequest(repo, endpoint, token, private=options.private)


def chosen_endpoint(given: str | None) -> Endpoint:
    """The one hub to push to: --endpoint, else that of HF_ENDPOINT; of a list, the hub itself.

    Raises InputError for several mirrors, and for ModelScope, which takes no push.
    """
    from exporter.hub.endpoints import endpoints_from, parse_endpoint

    if given is not None:
        found = parse_endpoint(given)
        if found.kind == "modelscope":
            raise InputError(
                "ModelScope has another interface for uploads",
                hint="push to a hub: HF_ENDPOINT=https://huggingface.co",
            )
        return found
    hubs = [one for one in endpoints_from((), os.environ) if one.kind == "hub"]
    own = [one for one in hubs if one.is_reference] or hubs
    if len(own) > 1:
        raise InputError(
            f"HF_ENDPOINT names {len(own)} hubs, and a push goes to one",
            hint=f"HF_ENDPOINT={own[0].url}, or `decant push … --endpoint {own[0].url}`",
        )
    return own[0]


def push_models(
    options: PushOptions, models: Sequence[SharedModel], *, dry_run: bool, report: Report
) -> Pushed:
    """Push models with their card. Raises the errors of `push_request` and of an upload."""
    from dataclasses import replace

    from exporter.hub.upload.push_files import push
    from exporter.share.shared_card import SharedCard
    from exporter.share.shared_files import upload_files

    request = push_request(options)
    files = upload_files(models, report=report)
    card = SharedCard(
        models,
        request.repo,
        request.endpoint,
        options.overwrite_card,
        evaluation_of(options, report),
        report,
    )
    return push(replace(request, files=files), card, dry_run=dry_run, report=report)


def evaluation_of(options: PushOptions, report: Report) -> Callable[[Mapping[str, str]], str]:
    """A function that gives the evaluation's section for files of certain hashes.

    Raises InputError for a file of --evaluation that is no text.
    """
    if options.evaluation is not None:
        try:
            text = options.evaluation.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"`{options.evaluation}` is not UTF-8 text",
                hint="`decant eval … --markdown FILE.md` writes one",
            ) from error
        return lambda _: text
    if not options.with_evaluation:
        return lambda _: ""
    found: dict[str, str] = {}

    def search(hashes: Mapping[str, str]) -> str:
        if "text" not in found:
            section = importlib.import_module(RUNTIME).newest_section(frozenset(hashes.values()))
            found["text"], what = section or ("", "")
            if what:
                report(Note(f"the card has the evaluation {what}"))
        return found["text"]

    return search


def show_pushed(pushed: Pushed, *, dry_run: bool) -> None:
    """Print the address, or after a dry run the files; the summary goes to stderr."""
    from exporter.cli.outputs.request_options import files_text
    from exporter.cli.terminal_renderer import print_table

    missing = [file for file in pushed.files if file.state == "to send"]
    if dry_run:
        there = {"to send": "no", "stored": "sent, not published", "there": "yes"}
        rows = [(f.name, size_text(f.nbytes), there[f.state]) for f in pushed.files]
        print_table(("FILE", "SIZE", "THERE"), [*rows, card_row(pushed)])
    else:
        click.echo(pushed.url)
    seen = {True: "private", False: "public", None: "as its owner's settings say"}
    made = ("would be created, " if dry_run else "created, ") if pushed.is_new else ""
    done = "to send" if dry_run else "sent"
    commit = f"; commit {pushed.commit[:12]}" if pushed.commit else ""
    click.echo(
        f"{pushed.repo} ({made}{seen[pushed.is_private]}): {files_text(len(pushed.files))}, {done}:"
        f" {files_text(len(missing))}, {size_text(pushed.sent)}{commit}",
        err=True,
    )


def card_row(pushed: Pushed) -> tuple[str, str, str]:
    size = size_text(len(pushed.card.encode())) if pushed.card else "–"
    there = {"to send": "no", "there": "yes", "kept": "yes, another's: kept"}
    return ("README.md", size, there[pushed.card_state])


def pushed_value(pushed: Pushed, *, dry_run: bool) -> dict[str, object]:
    """The result as JSON's values."""
    return {
        "repo": pushed.repo,
        "url": pushed.url,
        "commit": pushed.commit or None,
        "created": pushed.is_new,
        "private": pushed.is_private,
        "files": [
            {"path": f.name, "nbytes": f.nbytes, "sha256": f.sha256, "was": f.state}
            for f in pushed.files
        ],
        "card": pushed.card or None,
        "card_was": pushed.card_state,
        "sent": pushed.sent,
        "dry_run": dry_run,
    }
