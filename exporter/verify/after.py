"""The light verification after an export: a file that fails it loses its name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from exporter.core.events import Note, Report, Step, silent
from exporter.core.gguf import read_gguf
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.operations import MergePlan
from exporter.verify.report import Verification

REJECTED = ".rejected"


def verify_exported(
    paths: Sequence[Path],
    plan: MergePlan,
    toolchain: Toolchain,
    *,
    trust_remote_code: bool = False,
    report: Report = silent,
) -> tuple[Verification, ...]:
    """Verify files that were just written from a plan.

    Raises VerifyError when one fails; it is then called NAME.rejected.
    """
    from exporter.verify.light import expected_of, verify_light
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
                verify_light(path, expected, toolchain, report=report)
                if expected
                else verify_requantized(path, plan, toolchain)
            )
            if not result.ok:
                for shard in read_gguf(path).shards or (path,):
                    shard.rename(shard.with_name(shard.name + REJECTED))
                report(Note(f"the file is kept as {path.name}{REJECTED}"))
            found.append(result)
    for result in found:
        result.refuse()
        for note in result.notes:
            report(Note(note))
        report(Note(f"{result.path.name} is right, in {result.seconds:.1f} s: {result.summary}"))
    return tuple(found)
