"""What a verification says: what is wrong, what llama.cpp cannot do, what cannot be judged."""

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
    """What a person should know though the file is right: what llama.cpp cannot do, or what
    could not be judged."""
    numbers: dict[str, float] = field(default_factory=dict)
    judged: bool = True
    """Whether there was a way to tell right from wrong; the notes say why not."""
    hint: str = ""
    """What to do about the problems."""

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
    """All that was found about one file."""

    path: Path
    checks: tuple[Check, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def summary(self) -> str:
        """Weights and tokens in a few words, and what could not be judged."""
        told = [check.detail for check in self.checks if check.name in MAIN]
        told += [f"{check.name} not judged" for check in self.checks if not check.judged]
        return "; ".join(told)

    @property
    def notes(self) -> list[str]:
        """Every note, with the name of its check."""
        return [f"{check.name}: {note}" for check in self.checks for note in check.notes]

    def refuse(self) -> None:
        """Raise VerifyError, naming the first few problems, if there are any."""
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
