"""The result of a verification: problems, llama.cpp's limits, and checks that could not run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from exporter.core.errors import VerifyError

MAIN = ("weights", "tokenizer")
FEW = 5  # problems shown in a message


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    problems: tuple[str, ...]
    """Sentences about problems; empty if all is well."""
    detail: str
    """The scope of the check and its result, for people."""
    notes: tuple[str, ...] = ()
    """Facts about a file that is right: limits of llama.cpp, and parts that could not be judged.
    """
    numbers: dict[str, float] = field(default_factory=dict)
    judged: bool = True
    """Whether the check could tell right from wrong; if not, the notes say why."""
    hint: str = ""
    """Advice about the problems."""

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def verdict(self) -> str:
        """One or two words for a table."""
        if self.problems:
            return "WRONG"
        return "right" if self.judged else "not judged"


@dataclass(frozen=True, slots=True)
class Verification:
    """All results about one file."""

    path: Path
    checks: tuple[Check, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def summary(self) -> str:
        """Weights and tokens in a few words, and the checks that could not run."""
        parts = [check.detail for check in self.checks if check.name in MAIN]
        parts += [f"{check.name} not judged" for check in self.checks if not check.judged]
        return "; ".join(parts)

    @property
    def notes(self) -> list[str]:
        """Every note, with the name of its check."""
        return [f"{check.name}: {note}" for check in self.checks for note in check.notes]

    def refuse(self) -> None:
        """Raise VerifyError with the first problems, if there are any."""
        failed = [check for check in self.checks if check.problems]
        problems = [problem for check in failed for problem in check.problems]
        if not problems:
            return
        more = f"\n  and {len(problems) - FEW} more" if len(problems) > FEW else ""
        hint = next((check.hint for check in failed if check.hint), "")
        raise VerifyError(
            f"`{self.path}` is not right:\n  " + "\n  ".join(problems[:FEW]) + more,
            hint=hint or "export it again, with the version of decant that verifies it",
        )
