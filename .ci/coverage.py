"""Prints what share of lines and branches the tests ran, and the least covered modules.

Reads the data that `pytest --cov` left in this folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LEAST = 10
FEWEST_LINES = 10  # modules of less say nothing


def main() -> None:
    for left in Path().glob(".coverage.*"):  # by processes that were killed while they wrote it
        left.unlink()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        argv = [sys.executable, "-m", "coverage", "json", "-q", "-o", str(path)]
        subprocess.run(argv, check=True)
        found = json.loads(path.read_text(encoding="utf-8"))
    total = found["totals"]
    print(f"lines:    {share(total['covered_lines'], total['num_statements'])}")
    print(f"branches: {share(total['covered_branches'], total['num_branches'])}")
    files = {name: file["summary"] for name, file in found["files"].items()}
    counted = {name: one for name, one in files.items() if one["num_statements"] >= FEWEST_LINES}
    least = sorted(counted, key=lambda name: counted[name]["percent_covered"])[:LEAST]
    print("least covered:")
    for name in least:
        print(f"  {counted[name]['percent_covered']:5.1f} %  {name}")


def share(covered: int, total: int) -> str:
    return f"{100 * covered / total:.1f} % ({covered} of {total})"


if __name__ == "__main__":
    main()
