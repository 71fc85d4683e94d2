"""What `decant verify` does: the light checks, then the full ones where they found nothing."""

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
from exporter.verify.full import split_text, verify_full
from exporter.verify.light import Expected, expected_of, verify_light
from exporter.verify.pictures import verify_pictures
from exporter.verify.projector import (
    PROJECTOR,
    expected_projector,
    projector_beside,
    verify_projector,
)
from exporter.verify.report import Check, Verification
from exporter.verify.requantized import is_of_gguf, verify_requantized

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.operations import MergePlan


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for."""

    path: Path
    projector: Path | None
    """None looks beside `path`."""
    name: str
    """What an export calls the result: part of the projector's name."""
    light: bool
    rows: int
    text: str
    tokens: int
    against_base: bool
    max_kl: float | None
    trust_remote_code: bool


def verify_asked(
    asked: Asked, plan: MergePlan, toolchain: Toolchain, *, report: Report
) -> Verification:
    """All checks of one file and its projector.

    Raises ModelError for what is no model's GGUF, InputError for a text that is too short.
    """
    started = time.monotonic()
    file = read_gguf(asked.path)
    if file.architecture == PROJECTOR:
        raise ModelError(
            f"`{asked.path}` is a projector, which is verified beside its model",
            hint=f"decant verify MODEL.gguf --mmproj {asked.path}",
        )
    if is_of_gguf(plan):
        return verify_requantized(asked.path, plan, toolchain, rows=asked.rows)
    report(Step("checking weights, tokenizer and settings"))
    trust = asked.trust_remote_code
    with expected_of(plan, toolchain, rows=asked.rows, trust_remote_code=trust) as expected:
        found = verify_light(asked.path, expected, toolchain, report=report)
        projector, more = check_projector(asked, expected, toolchain, report=report)
        checks = [*found.checks, *more]
        if not asked.light and all(check.ok for check in checks):
            context = file.number(f"{file.architecture}.context_length") or asked.tokens
            chunks = split_text(asked.text, expected.tokenizer, context=context, most=asked.tokens)
            checks += compare_answers(asked, plan, chunks, projector, toolchain, report=report)
    return Verification(asked.path, tuple(checks), time.monotonic() - started)


def check_projector(
    asked: Asked, expected: Expected, toolchain: Toolchain, *, report: Report
) -> tuple[Path | None, list[Check]]:
    """Where the projector lies, and what was found in it; nothing for a model that has none."""
    plan = expected.plan
    if not has_projector(expected.folder, toolchain):
        if asked.projector:
            raise InputError(
                f"{plan.checkpoint.name} has no projector that llama.cpp knows",
                hint="leave --mmproj out",
            )
        return None, []
    path = asked.projector or projector_beside(asked.path, asked.name)
    if path is None:
        note = (
            f"no mmproj-{asked.name}.gguf lies beside the file, without which it takes text alone"
        )
        return None, [Check("projector", (), "none", (note,), judged=False)]
    with expected_projector(
        plan, toolchain, rows=asked.rows, trust_remote_code=asked.trust_remote_code
    ) as wanted:
        found = verify_projector(path, asked.path, wanted, toolchain, report=report)
    return path, [replace(check, name=f"projector {check.name}") for check in found.checks]


def compare_answers(
    asked: Asked,
    plan: MergePlan,
    chunks: Sequence[Sequence[int]],
    projector: Path | None,
    toolchain: Toolchain,
    *,
    report: Report,
) -> list[Check]:
    """What the model makes of a text, and of a picture, beside the trained one."""
    logits = partial(
        verify_full, asked.path, plan, chunks, toolchain, against_base=asked.against_base,
        most_kl=asked.max_kl, report=report,
    )  # fmt: skip
    checks = [judged_or_noted("logits", logits)]
    if projector and checks[0].ok:
        pictures = partial(verify_pictures, projector, asked.path, plan, toolchain, report=report)
        checks.append(judged_or_noted("pictures", pictures))
    return checks


def judged_or_noted(name: str, compare: Callable[[], Check]) -> Check:
    """A full check; one that there is no way to make is a note."""
    try:
        return compare()
    except (UnsupportedError, AdapterError, CheckpointError, SpaceError) as error:
        told = f"cannot be judged: {error.message}"
        return Check(name, (), "not compared", (told,), judged=False)
