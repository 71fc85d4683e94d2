"""Runs upstream's tests by hand, and writes the list of those that pass against llama-server.

python -m tests.upstream.run [--bare] [--times N] [--folder F] [--write] [-- PYTEST OPTIONS]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.llamacpp.toolchain import Toolchain, find_toolchain
from tests.upstream.forks import forking
from tests.upstream.suite import Suite, make_suite, run_suite

BARE = Path(__file__).with_name("bare.txt")


def kept_suite(folder: Path, toolchain: Toolchain) -> Suite:
    """The one that an earlier run left in the folder, or a new one."""
    kept = folder / "suite.json"
    if not kept.exists():
        made = make_suite(folder, toolchain)
        kept.write_text(json.dumps([str(made.tests), made.files, made.pictures]))
    tests, files, pictures = json.loads(kept.read_text())
    return Suite(Path(tests), files, tuple(pictures))


@contextmanager
def program(folder: Path, toolchain: Toolchain, *, bare: bool) -> Iterator[Path]:
    """What is tested."""
    if bare:
        yield toolchain.tool("llama-server")
        return
    with forking(folder) as found:
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bare", action="store_true", help="llama-server instead of the gateway")
    parser.add_argument("--times", type=int, default=1, help="passes that a test must pass")
    parser.add_argument("--only", type=Path, help="a file of ids, such as this folder's bare.txt")
    parser.add_argument("--folder", type=Path, help="where to leave tests, models and the log")
    parser.add_argument("--write", action="store_true", help=f"write {BARE.name}")
    parser.add_argument("options", nargs="*", help="for upstream's pytest")
    asked = parser.parse_args()
    toolchain = find_toolchain()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        suite = kept_suite(folder, toolchain)
        only = asked.only.read_text().split() if asked.only else None
        with program(folder, toolchain, bare=asked.bare) as server:
            runs = [
                run_suite(suite, server, only=only, options=asked.options)
                for _ in range(asked.times)
            ]
    always = sorted(t for t in runs[0] if all(run[t].outcome == "passed" for run in runs))
    for test in sorted(runs[0].keys() - set(always)):
        whys = sorted({f"{run[test].outcome}: {run[test].why}" for run in runs})
        sys.stdout.write("\n  ".join([test, *whys]) + "\n")
    for run in runs:
        sys.stdout.write(f"{dict(Counter(outcome.outcome for outcome in run.values()))}\n")
    sys.stdout.write(f"{len(always)} passed every time\n")
    if asked.write:
        BARE.write_text("".join(f"{test}\n" for test in always), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
