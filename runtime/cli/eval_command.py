"""The command `decant eval`: measures models on a user's data."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, offline_option, quiet_option
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.core.errors import EXIT_INTERRUPTED, DecantError, InputError
from exporter.core.events import Note, Report
from exporter.core.paths import evaluations_folder
from exporter.core.terminal_text import without_controls
from runtime.cli.eval_options import EvalOptions, share_of
from runtime.cli.loaded_beside import LoadedBeside

if TYPE_CHECKING:
    from runtime.evaluation.data.dataset import Dataset
    from runtime.evaluation.evaluation import Evaluation
    from runtime.evaluation.run_evaluation import Run
    from runtime.evaluation.summary import Summary

ROLES = ("prompt", "answer", "label", "text", "rejected", "system", "id")


@dataclass(frozen=True, slots=True)
class Finished:
    """An evaluation with its report on the disk."""

    evaluation: Evaluation
    folder: Path
    ended_by: BaseException | None
    """The error or the interrupt that ended it early."""


@click.command("eval", epilog="Example: decant eval ./my-lora --data test.jsonl")
@click.argument("models", metavar="[MODEL]...", nargs=-1, shell_complete=completing.models)
@click.option("--data", help="JSONL, JSON, CSV, Parquet or Arrow, or a hub dataset.")
@click.option(
    "--tasks", metavar="NAME,…", help="In place of --data: tasks of lm-evaluation-harness."
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=PATH[:SCALE]",
    help="Measure this LoRA on the MODEL, too. Repeatable.",
)  # fmt: skip
@click.option("--base", help="The base's folder or repo; default: the one an adapter names.")
@click.option("--against", metavar="NAME", help="The model that the others are compared with.")
@click.option("--url", help="Measure a model of this server, too (OpenAI's API).")
@click.option("--model", "remote_model", metavar="NAME", help="The model of that server.")
@click.option(
    "--key-file", type=click.Path(path_type=Path), help="The file with that server's key."
)
@click.option("--split", metavar="NAME|SHARE", help="A dataset's split, or a share such as 0.1.")
@click.option("--limit", type=click.IntRange(1), help="Measure a sample of this many items.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of samples and intervals.")
@click.option("--layout", help="How rows are read, if that is not recognized rightly.")
@click.option(
    "--column", "columns", multiple=True, metavar="ROLE=NAME",
    help=f"The column of a role: {', '.join(ROLES)}. Repeatable.",
)  # fmt: skip
@click.option("--system", help="A system message for conversations without one.")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be used.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="[-]NAME|FILE.py:FUNCTION",
    help="Add or remove a metric; also regex=PATTERN, json_schema=FILE. Repeatable.",
)  # fmt: skip
@click.option("--trust-code", is_flag=True, help="Allow --metric to run a Python file.")
@click.option("--by", multiple=True, metavar="COLUMN", help="Group results by this column.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Limit of an answer.")
@click.option("--ctx", "context", type=click.IntRange(1), help="Context in tokens.")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="Default: one per physical core, fewer for a small model.",
)
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=1, show_default=True,
    help="Answers at once; of more than 1, two runs may differ in a few words.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Load a model even if it seems not to fit.")
@click.option("--judge", metavar="URL", help="Have this server's model compare the answers.")
@click.option("--judge-model", metavar="NAME", help="The judge's name there.")
@click.option("--judge-key-file", type=click.Path(path_type=Path), help="The judge's key.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report here, too."
)
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False),
    help="Write a table for a model card.",
)  # fmt: skip
@offline_option
@json_option
@quiet_option
def eval_(**given: Any) -> int:  # the values of the options above
    """Measure MODELs on your data, and say whether they differ.

    A MODEL is a name from `decant list`, a GGUF, a repo, or a folder that a trainer saved: an
    adapter is measured beside its base. Answers are greedy. What was answered is kept, so that the
    same command goes on where it was ended.
    """
    options = EvalOptions(**given)
    if (options.data is None) == (options.tasks is None):
        raise click.UsageError("name your data with --data, or benchmarks with --tasks")
    if not options.models and not options.url:
        raise click.UsageError("name a MODEL: `decant list` shows them; or --url")
    if (options.key_file or options.remote_model) and not options.url:
        raise click.UsageError("--key-file and --model go with --url")
    if (options.judge_model or options.judge_key_file) and not options.judge:
        raise click.UsageError("--judge-model and --judge-key-file go with --judge")
    if options.tasks is not None:
        from runtime.cli.eval_tasks import run_tasks

        return run_tasks(options)
    return evaluate(options)


def evaluate(options: EvalOptions) -> int:
    """Run the evaluation; return the exit code. Raises the error that ended it early."""
    with reporting(quiet=options.quiet) as report:
        found = run_evaluation(options, report)
    show(options, found.evaluation, found.folder)
    if isinstance(found.ended_by, DecantError):
        raise found.ended_by
    if found.ended_by is not None:
        click.echo("interrupted: the same command goes on where this one was ended", err=True)
        return EXIT_INTERRUPTED
    return 0


def run_evaluation(options: EvalOptions, report: Report) -> Finished:
    """Run the evaluation and write its report. Raises the error that left it without results."""
    from runtime.cli.prepared_run import prepared
    from runtime.evaluation.outcome_cache import OutcomeCache

    root = evaluations_folder(os.environ)
    with OutcomeCache(root / "outcomes.sqlite") as cache:
        dataset = opened_data(options, report)
        run = prepared(options, dataset, cache, report)
        evaluation, folder = measured(options, run, root, report)
    return Finished(evaluation, folder, run.ended_by)


def measured(options: EvalOptions, run: Run, root: Path, report: Report) -> tuple[Evaluation, Path]:
    """Ask the models, and write the report; returns the results and the report's folder.

    The run keeps the error that ended it early. Raises the errors of a run without results.
    """
    from runtime.evaluation.report.report_folder import write_report

    beside = LoadedBeside(report, run.comparison.metrics)
    run.ask(report=beside)
    beside.wait()
    try:
        summary, evaluation = results(options, run, root, report)
    except DecantError:
        if isinstance(run.ended_by, DecantError):
            raise run.ended_by from None
        raise
    folder = root / evaluation.id
    write_report(folder, evaluation, summary.cases())
    return evaluation, folder


def opened_data(options: EvalOptions, report: Report) -> Dataset:
    """Open the data, and report its size and its layout. Raises InputError."""
    from runtime.evaluation.data.open_data import DataRequest, open_data

    share = share_of(options.split)
    assert options.data is not None
    request = DataRequest(
        source=options.data,
        layout=options.layout,
        columns=dict(column_role(text) for text in options.columns),
        split=options.split if share is None else None,
        held_out=share,
        limit=options.limit,
        seed=options.seed,
        skip_bad=options.skip_bad,
        system=options.system,
    )

    def pull(name: str, split: str | None) -> Path:
        from exporter.hub.resolve import hub_here
        from runtime.evaluation.data.hub_dataset import dataset_ref, pull_dataset

        pulled = hub_here().request(dataset_ref(name)[0])
        return pull_dataset(name, split, request=pulled, report=report)

    dataset = open_data(request, pull=pull)
    facts = dataset.facts
    report(Note(f"{facts.items} of {facts.rows} rows, {facts.task}: {facts.layout}"))
    for note in facts.notes:
        report(Note(note))
    for bad in dataset.skipped:
        report(Note(f"left out: {bad.words}"))
    return dataset


def column_role(text: str) -> tuple[str, str]:
    """The parts of ROLE=NAME. Raises InputError."""
    role, equals, name = text.partition("=")
    if not equals or role not in ROLES or not name:
        raise InputError(
            f"--column {text!r} is not ROLE=NAME", hint=f"a role is one of {', '.join(ROLES)}"
        )
    return role, name


def results(
    options: EvalOptions, run: Run, root: Path, report: Report
) -> tuple[Summary, Evaluation]:
    """The results, named by the time and the last model. Raises EngineError for no item."""
    from exporter.core.version import own_version
    from exporter.model_store import plain_name

    began = time.time() - (time.monotonic() - run.began)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    name = f"{stamp}-{plain_name(run.models[-1].name)}"
    number = 2
    while (root / name).exists():
        name = f"{stamp}-{plain_name(run.models[-1].name)}-{number}"
        number += 1
    settings = {
        "answers": f"greedy, at most {run.plan.settings.max_tokens} tokens",
        "seed": str(options.seed),
        "at once": str(options.parallel),
        "decant": own_version(),
    }
    if options.system:
        settings["system message"] = options.system
    return run.results(
        report=report,
        id=name,
        began=time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
        settings=settings,
    )


def show(options: EvalOptions, evaluation: Evaluation, folder: Path) -> None:
    """Print the results, and write the copies that were asked for. Raises OutputError."""
    from exporter.core.atomic_file import atomic_write
    from runtime.evaluation.report.card_section import model_card
    from runtime.evaluation.report.report_folder import PAGE, read_cases
    from runtime.evaluation.report.stored_fields import plain
    from runtime.evaluation.report.terminal_table import (
        terminal_sentences,
        terminal_tables,
        worst_table,
    )

    if options.html is not None:
        with atomic_write(options.html, force=True) as file, (folder / PAGE).open("rb") as page:
            shutil.copyfileobj(page, file)
    if options.markdown is not None:
        with atomic_write(options.markdown, force=True) as file:
            file.write(model_card(evaluation).encode())
    path = folder / PAGE
    if options.as_json:
        print_json({**plain(asdict(evaluation)), "report": str(path)})
        return
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 200
    tables = terminal_tables(evaluation)
    if not options.quiet:
        tables.append(worst_table(evaluation, read_cases(folder), width=width))
    for table in tables:
        click.echo(f"{table.title}:")
        print_table(table.columns, table.rows)
        click.echo()
    for sentence in terminal_sentences(evaluation):
        click.echo(without_controls(sentence))
    click.echo(f"\nreport: {path}")
