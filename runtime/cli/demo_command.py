"""The command `decant demo`: trains, exports and asks a tiny model."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from exporter.cli.common_options import json_option, quiet_option, store
from exporter.cli.export_command import require_packages
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.core.errors import VerifyError
from exporter.core.events import Note, Progress, Report, Step
from exporter.core.machine import cores
from exporter.core.paths import size_text
from exporter.core.silence import quiet_libraries
from exporter.demo import DemoModels, make_demo_models
from exporter.llamacpp.toolchain import Toolchain, build_toolchain, cache_folder
from exporter.model_store import file_name
from runtime.cli.demo_evaluation import Verdict, measure_demo
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import Delta, ask

NAME, QUANT = "demo-pirate", "Q4_K_M"
AGREEING = 0.9  # the least share of equal answers; 4 bits may change one in ten
MAX_TOKENS = 32  # of an answer; the trained ones are shorter


@dataclass(frozen=True, slots=True)
class Row:
    """One question and the three answers to it."""

    question: str
    base: str
    adapter: str
    gguf: str

    @property
    def agrees(self) -> bool:
        """Whether the 4-bit GGUF answers as transformers and peft do."""
        return self.gguf == self.adapter

    @property
    def differs(self) -> bool:
        """Whether the adapter changes the answer."""
        return self.gguf != self.base


@click.command(epilog="Example: decant demo")
@json_option
@quiet_option
def demo(as_json: bool, quiet: bool) -> None:
    """Train a tiny base and a LoRA, export them to a 4-bit GGUF and ask all three.

    Then measures the GGUF against its base on 30 questions, as `decant eval` does.
    Ends with 7 if the GGUF answers differently from transformers and peft.
    """
    require_packages()
    began = time.monotonic()
    with reporting(quiet=quiet) as report:
        toolchain = build_toolchain(report=report)
        models = make_demo_models(cache_folder() / "demo", report=report)
        output = export_models(models, toolchain, report)
        rows = ask_all(models, output, toolchain, report)
        verdict = measure_demo(models, output, QUANT, toolchain, report=report)
    agreeing = sum(row.agrees for row in rows)
    differing = sum(row.differs for row in rows)
    if as_json:
        print_json(
            {
                "rows": [asdict(row) | {"agrees": row.agrees} for row in rows],
                "agreeing": agreeing,
                "differing": differing,
                "evaluation": asdict(verdict) if verdict else None,
                "path": output,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    else:
        show(rows, agreeing, output, verdict)
    if agreeing < AGREEING * len(rows) or differing < len(rows):
        raise VerifyError(
            f"the GGUF agrees with transformers in {agreeing} of {len(rows)} answers,"
            f" and differs from the base in {differing}",
            hint="run `decant doctor`; if all is well there, this is a bug in decant",
        )


def export_models(models: DemoModels, toolchain: Toolchain, report: Report) -> Path:
    from exporter.export import export
    from exporter.formats.export_request import ExportRequest

    output = store() / file_name(NAME, QUANT)
    request = ExportRequest(
        ((models.adapter, 1.0),), models.base, (QUANT,), (output,), force=True, verify=True
    )
    result = export(request, toolchain, report=report)
    report(Note(f"{size_text(result.files[0].nbytes)} in {result.seconds:.1f} s: `{output}`"))
    return output


def ask_all(models: DemoModels, gguf: Path, toolchain: Toolchain, report: Report) -> list[Row]:
    from exporter.demo.train import answer_with_transformers

    report(Step("asking transformers: the base, and the base with the adapter"))
    with quiet_libraries():
        base, adapter = (
            answer_with_transformers(models.base, lora, models.questions, max_tokens=MAX_TOKENS)
            for lora in (None, models.adapter)
        )
    answers = ask_gguf(gguf, models.questions, toolchain, report)
    rows = zip(models.questions, base, adapter, answers, strict=True)
    return [Row(*row) for row in rows]


def ask_gguf(
    gguf: Path, questions: tuple[str, ...], toolchain: Toolchain, report: Report
) -> list[str]:
    """The greedy answers of the built llama.cpp."""
    answers = []
    settings = {"temperature": 0, "max_tokens": MAX_TOKENS, "cache_prompt": False}
    spec = ServerSpec(gguf, context=0, threads=cores())
    with ExitStack() as stack:
        server = stack.enter_context(Server(spec, toolchain, report=report))
        for number, question in enumerate(questions, 1):
            pieces = ask(server, [{"role": "user", "content": question}], settings)
            text = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
            answers.append(text.strip())
            report(Progress("asking the GGUF", number, len(questions), "steps"))
    return answers


def show(rows: list[Row], agreeing: int, output: Path, verdict: Verdict | None) -> None:
    """Print the answers and the evaluation's sentence, and as the last line the GGUF's path."""
    print_table(
        ("QUESTION", "BASE", "BASE + ADAPTER", "4-BIT GGUF"),
        [(row.question, row.base, row.adapter, row.gguf) for row in rows],
    )
    click.echo(
        f"\nThe {QUANT} GGUF gives the adapter's answer in {agreeing} of {len(rows)} cases.\n"
        f'It is kept: decant chat {NAME} -p "{rows[0].question}"\n',
        err=True,
    )
    if verdict is not None:
        click.echo(
            f"On {verdict.items} questions that it was trained on, {verdict.headline}\n"
            f"The report: {verdict.report}\n",
            err=True,
        )
    click.echo(output)
