"""How often the 95 % intervals of evaluations cover the truth, by simulation.

`python benchmarks/coverage.py [--draws N] [--seed N]` draws data of many distributions, computes
the intervals and differences as `decant eval` does, and prints the percentage of draws whose
interval covers the true figure, and the mean width. docs/eval.md gives the figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.known_figures import cells, coverage

ITEMS = (20, 50, 200, 1000)


def main() -> None:
    """Print a row for each distribution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(f"{'':36}" + "".join(f"{f'n = {n}':>18}" for n in ITEMS))
    for cell in cells():
        found = [coverage(cell, n, asked.draws, asked.seed) for n in ITEMS]
        row = "".join(f"{100 * covered:10.1f} {width:7.3f}" for covered, width in found)
        print(f"{cell.name:36}{row}", flush=True)


if __name__ == "__main__":
    main()
