"""What a verification says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from exporter.core.errors import VerifyError

MAIN = ("weights", "tokenizer")
FEW = 5  # problems that a message shows


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    problems: tuple[str, ...]
    """Sentences about what is wrong; none when all is well."""
    detail: str
    """What was looked at and how it came out, for people."""
    notes: tuple[str, ...] = ()
    """What a person should know though it is not wrong."""
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Verification:
    """All that was found about one file."""

    path: Path
    checks: tuple[Check, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def summary(self) -> str:
        """Weights and tokens in a few words."""
        return "; ".join(check.detail for check in self.checks if check.name in MAIN)

    def refuse(self) -> None:
        """Raise VerifyError, naming the first few problems, if there are any."""
        problems = [problem for check in self.checks for problem in check.problems]
        if not problems:
            return
        more = f"\n  and {len(problems) - FEW} more" if len(problems) > FEW else ""
        raise VerifyError(
            f"`{self.path}` is not what its base and adapter make:\n  "
            + "\n  ".join(problems[:FEW])
            + more,
            hint="is it of this base, adapter and scale? if so, export it again",
        )
