"""The light verification after an export: a file that fails it is renamed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from exporter.core.events import Note, Report, Step, silent
from exporter.core.gguf import read_gguf
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.operations import MergePlan
from exporter.verify.verification import Verification
from exporter.verify.verified_record import record

REJECTED = ".rejected"


def verify_exported(
    paths: Sequence[Path],
    plan: MergePlan,
    toolchain: Toolchain,
    *,
    projector: Path | None = None,
    trust_remote_code: bool = False,
    report: Report = silent,
) -> tuple[Verification, ...]:
    """Verify files just written from a plan, and the projector beside the first.

    Raises VerifyError if one fails; that file is then called NAME.rejected.
    """
    from exporter.verify.expected import expected_of
    from exporter.verify.light import verify_light
    from exporter.verify.projector import expected_projector, verify_projector
    from exporter.verify.requantized import is_of_gguf, verify_requantized

    report(Step("verifying"))
    found = []
    with (
        nullcontext()
        if is_of_gguf(plan)
        else expected_of(plan, toolchain, trust_remote_code=trust_remote_code)
    ) as expected:
        for path in paths:
            result = (
                verify_light(path, expected, toolchain, again=False, report=report)
                if expected
                else verify_requantized(path, plan, toolchain)
            )
            found.append(kept_or_rejected(result, report))
    right = next((result.path for result in found if result.ok), None)
    if projector and right:
        with expected_projector(plan, toolchain, trust_remote_code=trust_remote_code) as expected:
            seeing = verify_projector(projector, right, expected, toolchain, report=report)
        found.append(kept_or_rejected(seeing, report))
    for result in found:
        result.refuse()
        for note in result.notes:
            report(Note(note))
        report(Note(f"{result.path.name} is right, in {result.seconds:.1f} s: {result.summary}"))
    return tuple(found)


def kept_or_rejected(result: Verification, report: Report) -> Verification:
    """Record the verification, and rename a wrong file. Returns the verification."""
    record(result)
    if not result.ok:
        for shard in read_gguf(result.path).shards or (result.path,):
            shard.rename(shard.with_name(shard.name + REJECTED))
        report(Note(f"the file is kept as {result.path.name}{REJECTED}"))
    return result
