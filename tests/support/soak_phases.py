"""A soak in phases, every other one beside a hostile client: what that costs the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.hostile_client import Hostile
from tests.support.soak_clients import Soak

AFTER_S = 5.0
"""For so long after an attack, what is slow is put down to it."""
Span = tuple[float, float]
"""When something began and when it was over, in seconds of one clock."""


@dataclass
class Phases:
    """What the ordinary clients saw beside an attack and without one."""

    attacks: list[Span] = field(default_factory=list)

    def run(self, soak: Soak, hostile: Hostile, seconds: float, phase_s: float) -> None:
        """Soak for so long; the first phase is without an attack, the next beside one."""
        clients = threading.Thread(target=soak.run, args=(seconds,))
        clients.start()
        number = 0
        while clients.is_alive():
            if number % 2:
                began = time.monotonic()
                with hostile.attacking(seed=number):
                    clients.join(phase_s)
                self.attacks.append((began, time.monotonic()))
            else:
                clients.join(phase_s)
            number += 1

    def quiet(self, took: Sequence[Span]) -> list[float]:
        """Seconds of each answer that no attack can have touched."""
        return sorted(there - asked for asked, there in took if not self.is_beside(asked, there))

    def beside(self, took: Sequence[Span]) -> list[float]:
        """Seconds of each other answer."""
        return sorted(there - asked for asked, there in took if self.is_beside(asked, there))

    def is_beside(self, asked: float, there: float) -> bool:
        return any(asked < end + AFTER_S and there > begin for begin, end in self.attacks)


def percentile(times: Sequence[float], part: float) -> float:
    """The time within which this part of them was there; `times` are sorted."""
    return times[int(part * (len(times) - 1))]
