"""The command `decant launch`: a coding tool that asks a model of decant's."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from exporter.cli import completing
from exporter.cli.common_options import offline_option, quiet_option, store
from exporter.cli.terminal_renderer import print_table, reporting
from exporter.core.errors import DecantError, ModelError, ToolchainError
from exporter.core.events import Note, Report, Step, Warn
from exporter.core.paths import data_folder
from exporter.llamacpp.toolchain import find_toolchain
from exporter.model_store import StoredModel, list_models
from runtime.cli.from_folder import model_of
from runtime.engine.memory_fit import LEAST_CONTEXT
from runtime.engine.remote import check_key, parse_url, read_key
from runtime.launch.coding_tools import (
    KEY_VARIABLE,
    TOOLS,
    WANTED_CONTEXT,
    CodingTool,
    Endpoint,
)
from runtime.launch.model_service import (
    LocalModel,
    endpoint_at,
    endpoint_here,
    local_model,
    started,
)
from runtime.launch.shown_settings import file_text, shell_lines
from runtime.launch.tool_process import run_tool, wait_for_ctrl_c
from runtime.launch.written_settings import ToolSettings

PORT = 8080  # the default of `decant serve`
REST = "--"
LOG = "serve.log"
"""The log of the server that was started last, in the folder of the records."""


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the command line."""

    tool: CodingTool
    model: str
    arguments: tuple[str, ...]
    write: bool
    configure: bool
    context: int | None
    url: str | None
    key: str

    @property
    def settings(self) -> ToolSettings:
        return settings_of(self.tool)


class ToolCommand(click.Command):
    """A command whose words after `--` are another program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        place = args.index(REST) if REST in args else len(args)
        ctx.meta[REST] = tuple(args[place + 1 :])
        return super().parse_args(ctx, args[:place])


@click.command(
    cls=ToolCommand,
    epilog="Example: decant launch codex my-lora -- exec 'What does main.py do?'",
)
@click.argument("tool", required=False, type=click.Choice(tuple(TOOLS)))
@click.argument("model", required=False, shell_complete=completing.models)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENT...]")
@click.option(
    "--write", is_flag=True,
    help="Also write the tool's settings file, and put yours back when the tool ends.",
)  # fmt: skip
@click.option(
    "--config", "configure", is_flag=True,
    help="Print the settings, or with --write keep them written, and do not start the tool.",
)  # fmt: skip
@click.option("--restore", is_flag=True, help="Put your settings file back, and end.")
@click.option(
    "--ctx", "context", type=click.IntRange(1),
    help=f"Context in tokens; default: up to {WANTED_CONTEXT}, as model and memory allow.",
)  # fmt: skip
@click.option("--url", help="Use the `decant serve` at this address.")
@click.option(
    "--key-file", type=click.Path(path_type=Path),
    help=f"The file with that server's key; or {KEY_VARIABLE}.",
)  # fmt: skip
@offline_option
@quiet_option
def launch(
    tool: str | None,
    model: str | None,
    arguments: tuple[str, ...],
    write: bool,
    configure: bool,
    restore: bool,
    context: int | None,
    url: str | None,
    key_file: Path | None,
    quiet: bool,
) -> int:
    """Start the coding tool TOOL with MODEL, on a server that ends with the tool.

    Without TOOL it lists the tools. MODEL is what `decant serve` takes; if one is served at port
    8080 under that name, this server is used. What follows `--` is passed to the tool.

    The tool gets its settings by its command line and environment, so that your settings files
    stay as they are. --write also puts them into the tool's file, for windows that you open
    beside it; your file is kept beside it as NAME.before-decant.
    """
    if tool is None:
        list_tools()
        return 0
    chosen, rest = TOOLS[tool], (*arguments, *click.get_current_context().meta[REST])
    if restore:
        return restore_settings(chosen)
    if url is not None and context is not None:
        raise click.UsageError("--ctx is for a server that is started; --url names a running one")
    key = read_key(key_file) if key_file else os.environ.get(KEY_VARIABLE, "")
    options = Options(
        chosen, model or only_model(), rest, write, configure, context, url,
        check_key(key, f"the variable {KEY_VARIABLE}") if key else "",
    )  # fmt: skip
    offer_leftover(options)
    if configure:
        return show_settings(options, quiet=quiet)
    if shutil.which(chosen.program) is None:
        show_settings(options, quiet=quiet)
        raise ToolchainError(
            f"{chosen.title} is not installed: there is no program `{chosen.program}`",
            hint=f"install it ({chosen.install}), or start it elsewhere with the settings above",
        )
    return start(options, quiet=quiet)


def settings_of(tool: CodingTool) -> ToolSettings:
    path = tool.path(os.environ, Path.home())
    return ToolSettings(tool.name, path, tool.format, data_folder(os.environ) / "launch")


def list_tools() -> None:
    """Print the tools, and which of them are installed."""
    rows = [
        (tool.name, tool.title, shutil.which(tool.program) or f"not installed: {tool.install}")
        for tool in TOOLS.values()
    ]
    print_table(("TOOL", "NAME", "PROGRAM"), rows)


def only_model() -> str:
    """The store's only model. Raises ModelError if there are several, or none."""
    models = [model for model in list_models(store()) if not model.path.name.startswith("mmproj")]
    if len(models) == 1:
        return models[0].full_name
    names = ", ".join(model.full_name for model in models[:5])
    hint = f"name one: {names}" if models else "make one: decant export ADAPTER"
    raise ModelError(f"no MODEL is named, and the store has {len(models)}", hint=hint)


def restore_settings(tool: CodingTool) -> int:
    """Put the user's settings file back, and say what was done."""
    settings = settings_of(tool)
    with settings.locked():
        done = settings.restore()
    click.echo(done or f"there is nothing to restore: {tool.title} has your settings", err=True)
    return 0


def offer_leftover(options: Options) -> None:
    """Put back settings that an earlier launch has left behind, or say how."""
    settings = options.settings
    if settings.is_locked():  # their launch still runs
        return
    if (record := settings.leftover()) is None:
        return
    click.echo(f"warning: `{record.path}` still has the settings of an earlier launch", err=True)
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    if options.write or (can_ask and click.confirm("Put yours back?", default=True, err=True)):
        restore_settings(options.tool)
    else:
        click.echo(f"`decant launch {options.tool.name} --restore` puts yours back", err=True)


def show_settings(options: Options, *, quiet: bool) -> int:
    """Print the settings for a server at the default port, or write them to stay."""
    tool, settings = options.tool, options.settings
    with reporting(quiet=quiet) as report:
        endpoint = running_endpoint(options)
        if endpoint is None:
            local = found_model(options, report)
            endpoint = unstarted(options, local)
            words = " ".join(["decant serve", *serve_words(options, local)])
            report(Note(f"these settings are for a server that you start: {words}"))
        warn_of_context(tool, endpoint, report)
        if options.write and options.configure:
            with settings.locked():
                settings.write(tool.content(endpoint), has_key=bool(endpoint.key))
            report(Step(f"written: `{settings.path}`" + used_by(tool)))
            report(Note(f"`decant launch {tool.name} --restore` puts yours back"))
    click.echo(settings_text(options, endpoint))
    return 0


def settings_text(options: Options, endpoint: Endpoint) -> str:
    """The settings of a tool: its file's content, or its variables and command line."""
    if options.tool.needs_file:
        return file_text(options.tool, endpoint, options.settings.path)
    return shell_lines(options.tool, endpoint, options.arguments)


def used_by(tool: CodingTool) -> str:
    """How the written file is used, if not by starting the tool."""
    return f"; {tool.after}" if tool.after else ""


def running_endpoint(options: Options) -> Endpoint | None:
    """The model on the server of --url, or on the one at the default port; None without it."""
    if options.context is not None:
        return None  # a running server's context is fixed
    if options.url is not None:
        return endpoint_at(parse_url(options.url, options.key or None), options.model)
    return endpoint_here(PORT, options.model, options.key)


def found_model(options: Options, report: Report) -> LocalModel:
    """The model on this machine, which may be exported or pulled first."""
    found = model_of(options.model, None, store(), report=report)
    return local_model(found.path, found.adapter, options.context, find_toolchain())


def serve_words(options: Options, local: LocalModel) -> list[str]:
    """The arguments of `decant serve` for a server that the user starts."""
    context = [] if local.context is None else ["--ctx", str(local.context)]
    return [shlex.quote(options.model), *context]


def unstarted(options: Options, local: LocalModel) -> Endpoint:
    """The model as a server at the default port will have it."""
    name = StoredModel(local.path).name
    name = f"{name}:{local.adapter.name}" if local.adapter else name
    return Endpoint(f"http://127.0.0.1:{PORT}", name, local.context or LEAST_CONTEXT, options.key)


def warn_of_context(tool: CodingTool, endpoint: Endpoint, report: Report) -> None:
    """Warn if a conversation of the tool does not fit into the model's context."""
    has = f"{endpoint.model} has {endpoint.context} tokens of context"
    if endpoint.context < tool.least:
        report(
            Warn(
                f"{has}, and {tool.title} sends about {tool.least} with your first question:"
                " it will be refused"
            )
        )
    elif endpoint.context < WANTED_CONTEXT:
        report(Warn(f"{has}; {WANTED_CONTEXT} are recommended for {tool.title}"))


def start(options: Options, *, quiet: bool) -> int:
    """Run the tool, on a new server if none has the model; returns its exit code."""
    tool = options.tool
    for number in (signal.SIGTERM, signal.SIGHUP):  # end as by Ctrl-C: everything is put back
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        with reporting(quiet=quiet) as report:
            endpoint = running_endpoint(options)
            if endpoint is None:
                model, log = found_model(options, report), options.settings.folder / LOG
                served = started(model, options.key, log, report=report)
                endpoint = stack.enter_context(served)
            else:
                report(Note(f"{endpoint.model} on {endpoint.url} is used"))
            warn_of_context(tool, endpoint, report)
            if options.write:
                stack.enter_context(written(options, endpoint))
        if not quiet:
            click.echo(settings_text(options, endpoint), err=True)
        given = (*tool.arguments(endpoint), *tool.overrides(endpoint), *options.arguments)
        code = run_tool([tool.program, *given], tool.env(endpoint))
        if tool.returns_at_once and not code:
            click.echo(f"{tool.title} goes on; Ctrl-C ends the server", err=True)
            wait_for_ctrl_c()
    return code


@contextmanager
def written(options: Options, endpoint: Endpoint) -> Iterator[None]:
    """Keep the tool's settings file written until the block ends."""
    settings = options.settings
    with settings.locked():
        try:
            settings.write(options.tool.content(endpoint), has_key=bool(endpoint.key))
            click.echo(f"written: `{settings.path}`" + used_by(options.tool), err=True)
            yield
        finally:
            try:
                done = settings.restore()
            except DecantError as error:
                done = f"warning: {error.message}; {error.hint}"
            if done:
                click.echo(done, err=True)
