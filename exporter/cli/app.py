"""The command `decant`: a lazy group, and the one place that prints errors."""

from __future__ import annotations

import copy
import errno
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from exporter.cli.other_names import ALIASES, advice_for, others_of
from exporter.cli.usage_hints import UnknownCommandError, usage_hint
from exporter.core.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USAGE, DecantError, InputError
from exporter.core.near_names import did_you_mean
from exporter.core.silence import no_collection
from exporter.core.terminal_text import without_controls
from exporter.hub.endpoints import settle_endpoints

# name: (module and object, line in --help); a command's module is imported when it runs
COMMANDS = {
    "setup": ("exporter.cli.setup_command:setup", "Build the pinned llama.cpp, once."),
    "doctor": ("exporter.cli.doctor:doctor", "Check this machine and say what to do."),
    "demo": (
        "runtime.cli.demo_command:demo",
        "Train, export and question a tiny model, start to end.",
    ),
    "pull": (
        "exporter.cli.pull_command:pull",
        "Download a model: resumable, verified, from mirrors.",
    ),
    "import": (
        "exporter.cli.import_command:import_",
        "Take a model that Ollama, LM Studio or the hub's cache has.",
    ),
    "export": ("exporter.cli.export_command:export", "Turn an adapter into a GGUF."),
    "extract": (
        "exporter.cli.extract_command:extract",
        "Make a LoRA of what a full fine-tune changed.",
    ),
    "verify": ("exporter.cli.verify_command:verify", "Compare a GGUF with its base and adapter."),
    "inspect": (
        "exporter.cli.inspect_command:inspect",
        "Show what a GGUF, model or adapter holds.",
    ),
    "eval": ("runtime.cli.eval_command:eval_", "Measure models on your data."),
    "push": ("exporter.cli.push_command:push", "Publish models on a hub, with a model card."),
    "link": (
        "exporter.cli.link_command:link",
        "Give a model to Ollama or LM Studio, without a copy.",
    ),
    "chat": ("runtime.cli.chat_command:chat", "Ask a model."),
    "serve": ("runtime.cli.serve_command:serve", "Serve models over HTTP."),
    "launch": (
        "runtime.cli.launch_command:launch",
        "Start a coding tool that asks a model of yours.",
    ),
    "worker": (
        "runtime.cli.worker_command:worker",
        "Compute a part of a model for another machine.",
    ),
    "tokens": ("runtime.cli.tokens_command:tokens", "Show how a model cuts a text into tokens."),
    "list": ("exporter.cli.models_command:list_", "List the exported models."),
    "rm": ("exporter.cli.models_command:rm", "Delete exported models."),
    "completion": (
        "exporter.cli.completion_command:completion",
        "Print a script for the shell's Tab key.",
    ),
    "update-check": (
        "exporter.cli.update_command:update_check",
        "Say which version this is and how to update.",
    ),
}

SHOWN = 60  # characters shown of a name in an error
EXAMPLES = """\
\b
Examples:
  decant demo                    see the whole way on a tiny model
  decant export ./my-lora        adapter to GGUF; the base is found or given by --base
  decant chat my-lora -p "Hi"    ask it
  decant serve my-lora           let programs and a web page ask it

\b
Exit codes: 0 done, 1 a bug, 2 command line, 3 input, 4 llama.cpp or a package missing,
5 disk or memory, 6 download or upload, 7 verification, 8 output, 9 engine, 130 interrupted.
"""


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines; it imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        others = ", ".join(f"decant {name}" for name in others_of(cmd_name))
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        with no_collection():  # importing makes no garbage
            command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        if others:
            command = copy.copy(command)
            command.epilog = f"{command.epilog}\n\nAlso: {others}"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = ALIASES.get(args[0], args[0])
        if name not in COMMANDS and not name.startswith("-"):
            advice = advice_for(name) or did_you_mean(
                name, [*COMMANDS, *ALIASES], "`decant --help` lists them", form="`decant {}`"
            )
            raise UnknownCommandError(name, advice, ctx)
        return super().resolve_command(ctx, [name, *args[1:]])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


def show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print decant's version, also in a checkout, and exit."""
    del parameter
    if value and not ctx.resilient_parsing:
        from exporter.core.version import own_version

        click.echo(f"decant, version {own_version()}")
        ctx.exit()


@click.command(
    cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version,
    help="Show the version and exit.",
)  # fmt: skip
def root() -> None:
    """Pour a LoRA fine-tune into one GGUF that a laptop runs."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `decant` and exit with the code of its error family."""
    code = run(argv, is_whole=True)
    gc.freeze()  # the last garbage collection need not scan all of torch
    sys.exit(code)


def run(  # noqa: PLR0911 - one return a family
    argv: Sequence[str] | None = None, *, is_whole: bool = False
) -> int:
    """Run `decant` and return its exit code; every error is handled here.

    is_whole: whether the process serves only this command, which may then fork it.
    """
    settle_endpoints(os.environ)
    try:
        status = root.main(args=argv, prog_name="decant", standalone_mode=False, obj=is_whole)
    except DecantError as error:
        return fail(error.message, error.hint, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        return fail(error.format_message(), usage_hint(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except SystemExit:  # click raises it when the pipe is closed: `decant list | head -1`
        return 0
    except Exception as error:  # noqa: BLE001 - the one boundary
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            name = str(error.filename)
            message = (
                f"{name[:SHOWN]!r}… is too long for the name of a file: {len(name)} characters"
            )
            return fail(message, "is the path right?", InputError.exit_code)
        hint = "this is a bug in decant; DECANT_DEBUG=1 shows where"
        return fail(f"{type(error).__name__}: {error}", hint, EXIT_BUG)
    return status if isinstance(status, int) else 0


def fail(message: str, hint: str | None, exit_code: int) -> int:
    """Print an error with its hint; with DECANT_DEBUG=1 also the traceback."""
    if os.environ.get("DECANT_DEBUG") == "1":
        traceback.print_exc()
    colour = colours(sys.stderr.isatty())
    message, hint = without_controls(message), without_controls(hint or "")
    click.echo(click.style("error:", fg="red", bold=True) + f" {message}", err=True, color=colour)
    if hint:
        click.echo("\n" + click.style("hint:", fg="cyan") + f" {hint}", err=True, color=colour)
    return exit_code


def colours(terminal: bool) -> bool:
    """Whether to use colour, by https://no-color.org and the terminal."""
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
