"""Makes an importance matrix from a text, by llama-imatrix on a Q8_0 of the result."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from exporter.core.atomic_file import explained, sha256_file
from exporter.core.errors import InputError, ToolchainError
from exporter.core.events import Note, Progress, Report, Step, silent
from exporter.export import export
from exporter.formats.export_request import ExportRequest, plan_request
from exporter.llamacpp.toolchain import Toolchain, cache_folder, follow_tool, run_tool
from exporter.merge.fingerprint import identity
from exporter.merge.operations import MergePlan
from exporter.model_store import file_name
from exporter.quantize.imatrix import read_imatrix
from exporter.quantize.type_recipe import Recipe, check_recipe, no_text

CONTEXT = 512  # tokens per chunk, llama-imatrix's default
CHUNKS = 2  # least number of chunks for llama-imatrix
COUNT = re.compile(r"computing over (\d+) chunks")
DONE = re.compile(r"\[(\d+)\]-?(?:[\d.]+|nan|inf),")
TOKENS = re.compile(r"Total number of tokens: (\d+)")


def with_matrix(
    request: ExportRequest,
    toolchain: Toolchain,
    *,
    folder: Path | None = None,
    dry_run: bool = False,
    report: Report = silent,
) -> ExportRequest:
    """`request` with the importance matrix of its text, made unless it is cached.

    folder: the cache; by default below the user's. Raises InputError for a text that is too short,
    or if a dry run would have to make one.
    """
    text = request.recipe.calibrate
    if text is None:
        return request
    check_recipe(request.recipe, request.quants)
    if not text.is_file():
        raise no_text(text)
    merge = plan_request(request, toolchain, report=report)
    context = context_of(merge)
    refuse_short(text, text.stat().st_size, context)
    folder = folder or cache_folder() / "imatrix"
    kept = folder / file_name(text.stem, measured_on(merge, text)[:16])
    if kept.exists():
        report(Note(f"using the importance matrix kept from before, `{kept.name}`"))
    elif dry_run:
        raise InputError(
            "a dry run measures nothing, and this text has not been measured for this model yet",
            hint="leave out --dry-run, or --calibrate",
        )
    else:
        make(request, kept, context, toolchain, report=report)
    recipe = replace(request.recipe, calibrate=None, imatrix=read_imatrix(kept))
    return replace(request, recipe=recipe)


def context_of(merge: MergePlan) -> int:
    longest = merge.checkpoint.config.get("max_position_embeddings")
    return min(CONTEXT, longest) if isinstance(longest, int) and longest > 0 else CONTEXT


def refuse_short(text: Path, nbytes: int, context: int) -> None:
    """Raise InputError for too few bytes: a token takes one at least, except the first."""
    if nbytes + 1 < CHUNKS * context:
        raise too_short(text, f"{nbytes} bytes, so no more tokens than that", CHUNKS * context)


def too_short(text: Path, found: str, needed: int) -> InputError:
    return InputError(
        f"`{text}` is too short to calibrate on: it has {found}, and {needed} are needed",
        hint="some hundred kilobytes of text like what the model will read make a good one",
    )


def refuse_few(text: Path, n_tokens: int, context: int) -> None:
    if n_tokens < CHUNKS * context:
        raise too_short(text, f"{n_tokens} tokens", CHUNKS * context)


def measured_on(merge: MergePlan, text: Path) -> str:
    """A hash of everything that the matrix depends on."""
    facts = [identity(merge), sha256_file(text)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def make(
    request: ExportRequest, kept: Path, context: int, toolchain: Toolchain, *, report: Report
) -> None:
    """Export a Q8_0, let llama-imatrix read the text, and cache its result."""
    text = request.recipe.calibrate
    assert text is not None
    folder = kept.with_name(f".{kept.stem}")
    model, measured = folder / "model-Q8_0.gguf", folder / kept.name
    report(Step("exporting a Q8_0 to calibrate with"))
    plain = replace(request, recipe=Recipe(), quants=("Q8_0",), outputs=(model,), force=True)
    plain = replace(plain, verify=False)  # it is deleted at once
    try:
        export(plain, toolchain, report=report)
        refuse_few(text, count_tokens(model, text, toolchain), context)
        report(Step(f"measuring {text.name}"))
        measure(model, text, measured, context, request.threads, toolchain, report=report)
        with explained(kept):
            measured.replace(kept)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def count_tokens(model: Path, text: Path, toolchain: Toolchain) -> int:
    """Number of tokens that llama-imatrix reads in `text`, with special ones read as text.

    Raises ToolchainError if llama-tokenize does not report it.
    """
    arguments = ["-m", str(model), "-f", str(text.absolute()), "--ids", "--show-count"]
    plain = ["--no-parse-special", "--no-escape"]
    printed = run_tool(toolchain, "llama-tokenize", [*arguments, *plain])
    if not (count := TOKENS.search(printed)):
        raise ToolchainError(
            f"llama-tokenize did not say how many tokens `{text}` has",
            hint="rebuild llama.cpp with `decant setup --force`",
        )
    return int(count[1])


def measure(
    model: Path,
    text: Path,
    measured: Path,
    context: int,
    threads: int,
    toolchain: Toolchain,
    *,
    report: Report,
) -> None:
    """Run llama-imatrix; its log may lack its last lines, so they are not needed."""
    total = 0

    def on_output(printed: str) -> None:
        nonlocal total
        if count := COUNT.search(printed):
            total = int(count[1])
            done = DONE.findall(printed, count.end())
            report(Progress("measuring", int(done[-1]) if done else 0, total, "steps"))

    arguments = [
        "-m", str(model), "-f", str(text.absolute()), "-o", str(measured), "-c", str(context),
        "-t", str(threads), "--output-format", "gguf",
    ]  # fmt: skip
    follow_tool(toolchain, "llama-imatrix", arguments, on_output)
    report(Progress("measuring", total, total, "steps"))
