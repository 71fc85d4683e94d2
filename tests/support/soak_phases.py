"""A soak test in phases, with a hostile client in every second one: its cost for the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.hostile_client import Hostile
from tests.support.soak_clients import Soak

AFTER_S = 5.0
"""The time after an attack in which slow answers still count as its effect."""
Span = tuple[float, float]
"""The begin and the end of something, in seconds of one clock."""


@dataclass
class Phases:
    """The times of the attacks, which divide the ordinary clients' answers."""

    attacks: list[Span] = field(default_factory=list)

    def run(self, soak: Soak, hostile: Hostile, seconds: float, phase_s: float) -> None:
        """Run the soak test; the first phase has no attack, the second has one, and so on."""
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
        """The sorted seconds of the answers that no attack can have delayed."""
        return sorted(there - asked for asked, there in took if not self.is_beside(asked, there))

    def beside(self, took: Sequence[Span]) -> list[float]:
        """The sorted seconds of all other answers."""
        return sorted(there - asked for asked, there in took if self.is_beside(asked, there))

    def is_beside(self, asked: float, there: float) -> bool:
        return any(asked < end + AFTER_S and there > begin for begin, end in self.attacks)


def percentile(times: Sequence[float], part: float) -> float:
    """The percentile of sorted times; part: from 0 to 1."""
    return times[int(part * (len(times) - 1))]
