"""The checks of `decant verify`: the light ones, then the full ones if the light ones pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.convert.to_gguf import has_projector
from exporter.core.errors import (
    AdapterError,
    CheckpointError,
    InputError,
    ModelError,
    SpaceError,
    UnsupportedError,
)
from exporter.core.events import Report, Step
from exporter.core.gguf import read_gguf
from exporter.model_store import projector_beside
from exporter.verify.expected import Expected, expected_of
from exporter.verify.full import split_text, verify_full
from exporter.verify.light import verify_light
from exporter.verify.pictures import verify_pictures
from exporter.verify.projector import (
    PROJECTOR,
    expected_projector,
    verify_projector,
)
from exporter.verify.requantized import is_of_gguf, verify_requantized
from exporter.verify.verification import Check, Verification

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.operations import MergePlan


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of one `decant verify`."""

    path: Path
    projector: Path | None
    """The projector's file; None looks beside `path`."""
    name: str
    """The export's name of the result: part of the projector's file name."""
    light: bool
    rows: int
    text: str
    tokens: int
    against_base: bool
    max_kl: float | None
    trust_remote_code: bool


def verify_file(
    options: VerifyOptions, plan: MergePlan, toolchain: Toolchain, *, report: Report
) -> Verification:
    """Run all checks of one file and its projector.

    Raises ModelError for a file that is not a model's GGUF, InputError for a text that is too
    short.
    """
    started = time.monotonic()
    file = read_gguf(options.path)
    if file.architecture == PROJECTOR:
        raise ModelError(
            f"`{options.path}` is a projector, which is verified beside its model",
            hint=f"decant verify MODEL.gguf --mmproj {options.path}",
        )
    if is_of_gguf(plan):
        return verify_requantized(options.path, plan, toolchain, rows=options.rows)
    report(Step("checking weights, tokenizer and settings"))
    trust = options.trust_remote_code
    with expected_of(plan, toolchain, rows=options.rows, trust_remote_code=trust) as expected:
        found = verify_light(options.path, expected, toolchain, report=report)
        projector, more = check_projector(options, expected, toolchain, report=report)
        checks = [*found.checks, *more]
        if not options.light and all(check.ok for check in checks):
            context = file.number(f"{file.architecture}.context_length") or options.tokens
            chunks = split_text(
                options.text, expected.tokenizer, context=context, most=options.tokens
            )
            checks += compare_answers(options, plan, chunks, projector, toolchain, report=report)
    return Verification(options.path, tuple(checks), time.monotonic() - started)


def check_projector(
    options: VerifyOptions, expected: Expected, toolchain: Toolchain, *, report: Report
) -> tuple[Path | None, list[Check]]:
    """The projector's path and its checks; empty for a model without one.

    Raises InputError if one is given for a model that has none.
    """
    plan = expected.plan
    if not has_projector(expected.folder, toolchain):
        if options.projector:
            raise InputError(
                f"{plan.checkpoint.name} has no projector that llama.cpp knows",
                hint="leave --mmproj out",
            )
        return None, []
    path = options.projector or projector_beside(options.path, (options.name,))
    if path is None:
        note = (
            f"no mmproj-{options.name}.gguf lies beside the file, without which it takes text alone"
        )
        return None, [Check("projector", (), "none", (note,), judged=False)]
    with expected_projector(
        plan, toolchain, rows=options.rows, trust_remote_code=options.trust_remote_code
    ) as wanted:
        found = verify_projector(path, options.path, wanted, toolchain, report=report)
    return path, [replace(check, name=f"projector {check.name}") for check in found.checks]


def compare_answers(
    options: VerifyOptions,
    plan: MergePlan,
    chunks: Sequence[Sequence[int]],
    projector: Path | None,
    toolchain: Toolchain,
    *,
    report: Report,
) -> list[Check]:
    """Compare the model's answers to a text, and to a picture, with the trained model's."""
    logits = partial(
        verify_full, options.path, plan, chunks, toolchain, against_base=options.against_base,
        most_kl=options.max_kl, report=report,
    )  # fmt: skip
    checks = [judged_or_noted("logits", logits)]
    if projector and checks[0].ok:
        pictures = partial(verify_pictures, projector, options.path, plan, toolchain, report=report)
        checks.append(judged_or_noted("pictures", pictures))
    return checks


def judged_or_noted(name: str, compare: Callable[[], Check]) -> Check:
    """Run a full check; if it cannot run, return a note."""
    try:
        return compare()
    except (UnsupportedError, AdapterError, CheckpointError, SpaceError) as error:
        reason = f"cannot be judged: {error.message}"
        return Check(name, (), "not compared", (reason,), judged=False)
