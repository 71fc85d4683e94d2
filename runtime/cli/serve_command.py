"""The command `decant serve`: models over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, offline_option, quiet_option, store
from exporter.cli.sizes import parse_size
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.errors import InputError, ModelError
from exporter.core.machine import give_back_large_blocks
from exporter.core.near_names import near_files
from exporter.core.paths import prompts_folder
from exporter.llamacpp.toolchain import find_toolchain
from runtime.cli.answer_options import spec_option
from runtime.cli.served_models import Named, models_of, speculation_for_models, with_templates
from runtime.engine.purpose import ROUTE, WHAT, purpose_of
from runtime.engine.remote import check_key, read_key
from runtime.engine.template_choice import HELP, NO_TEMPLATE
from runtime.gateway.access import checked_host, checked_origin
from runtime.gateway.catalog import Catalog
from runtime.gateway.config_file import ModelTable, load_config
from runtime.gateway.request_limits import limits_of
from runtime.gateway.settings import Settings, check_tls, seconds
from runtime.process.network import is_loopback
from runtime.rpc.protocol import Spread, parse_workers, preflight

KEY_VARIABLE = "DECANT_API_KEY"


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the command line's options."""

    models: tuple[str, ...]
    adapters: tuple[str, ...]
    base: str | None
    host: str
    port: int
    key_files: tuple[Path, ...]
    admin_key_files: tuple[Path, ...]
    no_key: bool
    adapter_dir: Path | None
    adapter_paths: tuple[Path, ...]
    allow_pull: bool
    parallel: int | None
    context: int | None
    threads: int | None
    chat_template: str | None
    spec: str
    isolate: bool
    rpc: str | None
    rpc_unchecked: bool
    ttl: str
    keep_prompts: str
    linger: str
    grace: str
    max_queue: int
    max_per_client: int
    limits: tuple[str, ...]
    release: str
    max_tokens: int | None
    origins: tuple[str, ...]
    hosts: tuple[str, ...]
    media_hosts: tuple[str, ...]
    fields: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    tables: tuple[ModelTable, ...]
    as_json: bool
    quiet: bool


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(epilog="Example: decant serve BASE.gguf --adapter pirate=./my-lora --port 8080")
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=completing.models)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=PATH[:SCALE]",
    help="A LoRA beside its base, served as BASE:NAME. Repeatable.",
)  # fmt: skip
@click.option(
    "--adapter-dir", type=FOLDER,
    help="Serve the adapters in this folder, as they come and go.",
)  # fmt: skip
@click.option(
    "--allow-adapter-path", "adapter_paths", multiple=True, type=FOLDER, metavar="DIR",
    help="Let requests load adapters from this folder. Repeatable.",
)  # fmt: skip
@click.option(
    "--allow-pull", is_flag=True,
    help="Let requests load adapters from the hub, and download their bases.",
)  # fmt: skip
@click.option("--base", help="The base's folder or repo; default: the one a PEFT folder names.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; default: 127.0.0.1.")
@click.option("--port", default=8080, type=click.IntRange(0, 65535), help="Default: 8080.")
@click.option(
    "--api-key-file", "key_files", multiple=True, type=FILE,
    help=f"A file with a key that clients must send; or {KEY_VARIABLE}. Repeatable.",
)  # fmt: skip
@click.option(
    "--admin-key-file", "admin_key_files", multiple=True, type=FILE,
    help="A file with a key that may load and unload adapters. Repeatable.",
)  # fmt: skip
@click.option("--insecure-no-key", "no_key", is_flag=True, help="Serve the network without a key.")
@click.option(
    "--parallel", type=click.IntRange(1, 256), help="Answers at once; default: 4, as memory allows."
)
@click.option(
    "--ctx", "context", type=click.IntRange(1),
    help="Context of each conversation in tokens; default: the model's, up to 8192.",
)  # fmt: skip
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="Threads; default: one per physical core, fewer for a small model.",
)
@click.option(
    "--chat-template", metavar="NAME|FILE",
    help=HELP + " With several models, for those without one.",
)  # fmt: skip
@spec_option
@click.option(
    "--isolate", is_flag=True,
    help="Run a process per adapter, so that they compute at the same time, with shared weights.",
)  # fmt: skip
@click.option(
    "--rpc", metavar="HOST:PORT,…",
    help="Let workers on other machines compute layers: see `decant worker`.",
)  # fmt: skip
@click.option(
    "--rpc-unchecked", is_flag=True,
    help="Accept any worker: at a public address, with any llama.cpp.",
)  # fmt: skip
@click.option(
    "--ttl", default="10m", help="Unload a model that is idle this long; default: 10m; 0: never."
)
@click.option(
    "--keep-prompts", default="4GB", metavar="SIZE",
    help="Keep computed prompts on disk while a model is unloaded; default: 4GB; 0: none.",
)  # fmt: skip
@click.option(
    "--linger", default="0s",
    help="Accept requests this long after a SIGTERM, until balancers know; default: 0s.",
)  # fmt: skip
@click.option("--grace", default="30s", help="Time for answers to finish at the end; default: 30s.")
@click.option(
    "--max-queue",
    default=128,
    type=click.IntRange(0),
    help="Waiting requests per model; default: 128.",
)
@click.option(
    "--max-per-client", default=64, type=click.IntRange(1), help="Requests per client; default: 64."
)
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=NUMBER",
    help="Change a limit of one request, such as inputs=4096; docs/serve.md lists the names."
    " Repeatable.",
)  # fmt: skip
@click.option(
    "--release", default="20s",
    help="Restart an engine that works this long for a client that left; default: 20s.",
)  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), help="The most tokens in one answer.")
@click.option(
    "--allow-origin", "origins", multiple=True, metavar="ORIGIN",
    help="Allow requests of pages from https://HOST[:PORT]. Repeatable.",
)  # fmt: skip
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME",
    help="Another host name of this server. Repeatable.",
)  # fmt: skip
@click.option(
    "--allow-media-host", "media_hosts", multiple=True, metavar="NAME",
    help="Let the engine fetch images from this host. Repeatable.",
)  # fmt: skip
@click.option(
    "--allow-field", "fields", multiple=True, metavar="FIELD",
    help="Let clients set id_slot, cache_prompt, n_discard or lora. Repeatable.",
)  # fmt: skip
@click.option("--tls-cert", type=FILE, help="Certificate in PEM, to serve https.")
@click.option("--tls-key", type=FILE, help="Its key, if the certificate's file has none.")
@click.option(
    "--config", "tables", type=FILE, is_eager=True, callback=load_config, metavar="FILE.toml",
    help="Options, and models with their adapters; the command line overrides it.",
)  # fmt: skip
@offline_option
@json_option
@quiet_option
def serve(**given: Any) -> int:  # the values of the options above
    """Serve MODELs over HTTP: OpenAI's, Anthropic's and Ollama's APIs, and a page for chats.

    A MODEL is a name from `decant list`, a path to a GGUF, a folder that a trainer saved, or a
    repo of GGUFs; without any, the whole store is served. A model is loaded at its first request,
    a single one at once.
    """
    options = Options(**given)
    settings = with_changes(settings_of(options), options)
    with reporting(quiet=options.quiet) as report:
        named = Named(options.models, options.adapters, options.base, options.tables)
        models = with_templates(models_of(named, report), options.chat_template)
        speculation = speculation_for_models(options.spec, models, report)
    settings, catalog = replace(settings, speculation=speculation), Catalog(models)
    if not catalog.models:
        raise ModelError(
            f"there is no model in `{store()}`", hint="make one: decant export ADAPTER"
        )
    return run(options, settings, catalog)


def settings_of(options: Options) -> Settings:
    """The settings. Raises UsageError for contradictory options, InputError for wrong values."""
    keys = [read_key(path) for path in options.key_files]
    variable = os.environ.pop(KEY_VARIABLE, "")  # child processes must not see it
    if variable:
        keys.append(check_key(variable, f"the variable {KEY_VARIABLE}"))
    if not (keys or options.no_key or is_loopback(options.host)):
        raise click.UsageError(
            f"{options.host} is reached from the network: give --api-key-file FILE or set"
            f" {KEY_VARIABLE}, or --insecure-no-key to serve it without one"
        )
    if options.tls_key and not options.tls_cert:
        raise click.UsageError("--tls-key needs --tls-cert")
    for path in (options.tls_cert, options.tls_key):
        if path is not None and not path.exists():
            raise InputError(
                f"there is no file `{path}`", hint=near_files(path, "is the path right?")
            )
    if options.tls_cert is not None:
        check_tls(options.tls_cert, options.tls_key)
    if options.rpc_unchecked and not options.rpc:
        raise click.UsageError("--rpc-unchecked goes with --rpc")
    kept = parse_size("--keep-prompts", options.keep_prompts) if options.keep_prompts != "0" else 0
    return Settings(
        host=options.host,
        keys=tuple(keys),
        origins=frozenset(map(checked_origin, options.origins)),
        hosts=frozenset(checked_host("--allow-host", name) for name in options.hosts),
        parallel=options.parallel,
        context=options.context,
        threads=options.threads,
        isolate=options.isolate,
        rpc=Spread(parse_workers(options.rpc), unchecked=options.rpc_unchecked)
        if options.rpc
        else None,
        prompt_folder=prompts_folder(os.environ),
        prompt_nbytes=kept,
        ttl_s=seconds(options.ttl),
        linger_s=seconds(options.linger),
        grace_s=seconds(options.grace),
        max_queue=options.max_queue,
        max_per_client=options.max_per_client,
        limits=limits_of(options.limits),
        release_s=seconds(options.release),
        max_tokens=options.max_tokens,
        allow_fields=frozenset(options.fields),
        media_hosts=frozenset(
            checked_host("--allow-media-host", name) for name in options.media_hosts
        ),
    )


def with_changes(settings: Settings, options: Options) -> Settings:
    """The settings, with those for adapters that come while the server runs. Raises InputError."""
    watched = (options.adapter_dir,) if options.adapter_dir is not None else ()
    folders = (*watched, *options.adapter_paths)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no folder `{folder}`", hint=f"mkdir -p {folder}")
    admin_keys = tuple(read_key(path) for path in options.admin_key_files)
    if set(admin_keys) & set(settings.keys):
        raise InputError(
            "a key of --admin-key-file is an API key, too: all clients could change adapters",
            hint="make another key for them",
        )
    return replace(
        settings,
        admin_keys=admin_keys,
        adapter_dir=options.adapter_dir,
        adapter_folders=tuple(folder.resolve() for folder in folders),
        adapter_base=options.base,
        allow_pull=options.allow_pull,
    )


def run(options: Options, settings: Settings, catalog: Catalog) -> int:
    """Listen, print the address, and serve until the end; return the exit code."""
    from exporter.core.paths import evaluations_folder
    from runtime.gateway.adapter_folder import begin
    from runtime.gateway.asgi_app import build_app
    from runtime.gateway.call import Gateway
    from runtime.gateway.evaluation_reports import Reports
    from runtime.gateway.fault_log import Faults, listened
    from runtime.gateway.page_files import page_routes
    from runtime.gateway.request_log import Lines, Table
    from runtime.gateway.scheduling.pool import EnginePool
    from runtime.gateway.server import READ_BLOCK, Tls, Ways, allow_many_files, listening, url_of
    from runtime.gateway.server import serve as serving

    toolchain = find_toolchain()
    allow_many_files()
    give_back_large_blocks(READ_BLOCK)
    journal = Table() if sys.stderr.isatty() and not options.quiet else Lines()
    if settings.rpc is not None:
        preflight(settings.rpc, toolchain, report=journal.event)
    pool = EnginePool(settings, toolchain, journal.event)
    gateway = Gateway(settings, catalog, pool, reports=Reports(evaluations_folder(os.environ)))
    app = build_app(gateway, more=page_routes(), log=journal.request)
    tls = Tls(options.tls_cert, options.tls_key) if options.tls_cert else None
    with listening(options.host, options.port) as listener:
        url = url_of(listener, options.host, has_tls=tls is not None)
        tell(options, settings, catalog, url)

        async def beside() -> None:
            chores = [begin(gateway)]
            if isinstance(journal, Table):
                chores.append(journal.draw(gateway))
            await asyncio.gather(*chores)

        faults = Faults(journal.event)
        try:
            with listened(faults):
                return asyncio.run(serving(gateway, app, listener, Ways(tls, faults), beside))
        finally:
            journal.close()


def tell(options: Options, settings: Settings, catalog: Catalog, url: str) -> None:
    """Print the address, the models and an example of a request."""
    if options.as_json:
        print_json({"url": url, "models": catalog.ids()})
        return
    click.echo(f"decant serves on {url}")
    for resolved in catalog:
        click.echo(f"  {resolved.id}")
        purpose = purpose_of(resolved.model.header)
        if purpose != "answers":
            click.echo(f"    {WHAT[purpose]}: {ROUTE[purpose]}")
        elif not resolved.can_chat:
            click.echo(f"    {NO_TEMPLATE}: /v1/completions; --chat-template gives it one")
    key = ' -H "Authorization: Bearer $(cat KEY_FILE)"' if settings.keys else ""
    route, body = example_of(catalog)
    click.echo(f"\ncurl {url}{route}{key} -H 'Content-Type: application/json' -d '{body}'\n")
    if not settings.keys and not is_loopback(settings.host):
        click.echo("warning: anyone who reaches this address can use the models", err=True)
    if settings.keys and not options.tls_cert and not is_loopback(settings.host):
        click.echo("warning: keys and texts cross the network unencrypted (http)", err=True)


def example_of(catalog: Catalog) -> tuple[str, str]:
    """A route and a body that one of the models answers."""
    chats = (one for one in catalog if one.can_chat and purpose_of(one.model.header) == "answers")
    resolved = next(chats, next(iter(catalog)))
    purpose = purpose_of(resolved.model.header)
    if purpose == "vectors":
        fields: dict[str, object] = {"input": "Hello"}
    elif purpose == "ranks":
        fields = {"query": "Hello", "documents": ["Good day", "Good night"]}
    elif not resolved.can_chat:
        text = {"model": resolved.id, "prompt": "Once upon a time", "max_tokens": 32}
        return "/v1/completions", json.dumps(text)
    else:
        fields = {"messages": [{"role": "user", "content": "Hello"}]}
    return ROUTE[purpose], json.dumps({"model": resolved.id, **fields})
