"""Sets up `.venv` in the checkout with the pinned packages, and again when the pins change.

    python3 vendor/bootstrap.py

It needs Python 3.10 or newer with venv, and a package index.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
VENV = CHECKOUT / ".venv"
STAMP = VENV / "decant-setup"
LOG = CHECKOUT / ".venv-setup.log"
LOCK, VERSIONS = "packages.lock", "constraints.txt"
INPUTS = ("pyproject.toml", VERSIONS, LOCK)
EXTRAS = "export,eval,dev"
OLDEST = (3, 10)
NEWER_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3.10")
LAST_LINES = 20  # of the log, in an error message
SILENT = "nothing\n"  # what is said of a pip that ended without output
WRONG_HASH = "DO NOT MATCH THE HASHES"  # in pip's error
# pip's lines that show progress, as (pattern, message).
PIP_STEPS = (
    (re.compile(r"^Collecting (\S+)"), "looking up {}"),
    (re.compile(r"^\s*Downloading (\S+)"), "downloading {}"),
    (re.compile(r"^\s*(Preparing editable|Building editable)"), "building decant"),
    (re.compile(r"^Installing collected packages: (.*)"), "unpacking the packages"),
)


def main() -> int:
    if sys.version_info < OLDEST:
        return use_newer_python()
    with (CHECKOUT / ".venv-setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_current():
            return 0
        return install()


def use_newer_python() -> int:
    """Run this file again with a newer Python, if the machine has one; return the exit code."""
    for name in NEWER_PYTHONS:
        if (path := shutil.which(name)) and subprocess.call([path, "-c", ""]) == 0:
            return subprocess.call([path, __file__])
    found = ".".join(map(str, sys.version_info[:2]))
    print(
        f"error: decant needs Python 3.10 or newer, and `{sys.executable}` is {found}\n\n"
        "hint: install a newer one and run: make PYTHON=/path/to/python3 setup",
        file=sys.stderr,
    )
    return 4


def fingerprint() -> str:
    """Hash the checkout's path, Python's version and the pinned files; packages depend on these."""
    digest = hashlib.sha256(f"{CHECKOUT} {sys.version} {EXTRAS}".encode())
    for name in INPUTS:
        digest.update((CHECKOUT / name).read_bytes())
    return digest.hexdigest()


def is_current() -> bool:
    try:
        return STAMP.read_text() == fingerprint()
    except OSError:
        return False


def install() -> int:
    """Create the environment, install the packages, write the stamp last; return the exit code."""
    began = time.monotonic()
    say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    STAMP.unlink(missing_ok=True)
    with LOG.open("w") as log:
        made = subprocess.call(
            [sys.executable, "-m", "venv", "--clear", str(VENV)], stdout=log, stderr=log
        )
    if made != 0:
        output = LOG.read_text(errors="replace").splitlines(keepends=True)
        hint = "on Debian: apt install python3-venv"
        return fail("making the virtual environment failed", hint, output)
    # pip refuses hashes for `-e .`: the locked files come first, then the checkout itself.
    checkout = ["-c", VERSIONS, "-e", f".[{EXTRAS}]"]
    numbers = itertools.count(1)
    for together in (parts(), [checkout]):
        if failed := run_pips(together, numbers):
            return fail("installing the packages failed", hint_of(failed), failed)
    STAMP.write_text(fingerprint())
    LOG.unlink()
    say(f"packages are ready ({time.monotonic() - began:.0f} s)")
    return 0


def parts() -> list[list[str]]:
    """pip's arguments for what is installed at the same time, since pip unpacks on one core: the
    locked files in two halves, and torch, which the lock leaves out.
    """
    _, *entries = re.split(r"^(?=\w)", "\n" + (CHECKOUT / LOCK).read_text(), flags=re.MULTILINE)
    found = []
    for number, half in enumerate((entries[::2], entries[1::2])):
        if half:
            path = VENV / f"half-{number}.lock"
            path.write_text("".join(half))
            found.append(["--require-hashes", "--no-deps", "-r", str(path)])
    if re.search(r"^torch==", (CHECKOUT / VERSIONS).read_text(), flags=re.MULTILINE):
        found.append(["--no-deps", "-c", VERSIONS, "torch"])
    return found


def run_pips(jobs: list[list[str]], numbers: Iterator[int]) -> list[str]:
    """Run `pip install` with each of these arguments at the same time.

    numbers: the counter of the packages. Returns the lines of output of one that failed, else none.
    """
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-input"]
    pip += ["--progress-bar", "off"]
    with ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(lambda job: run_pip([*pip, *job], numbers), jobs))
    return next((lines or [SILENT] for code, lines in results if code != 0), [])


def hint_of(lines: list[str]) -> str:
    if any(WRONG_HASH in line for line in lines):
        return f"the index serves another file than the one in `{LOCK}`: use another index"
    return "is the package index reachable?"


def run_pip(argv: list[str], numbers: Iterator[int]) -> tuple[int, list[str]]:
    """Run pip, write its output to the log, and show its progress.

    numbers: the counter of the packages. Returns the exit code and the lines of output.
    """
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    total = sum(bool(re.match(r"\w", line)) for line in (CHECKOUT / VERSIONS).open())
    collected, lines = 0, []
    with LOG.open("a") as log:
        process = subprocess.Popen(
            argv, cwd=CHECKOUT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            for pattern, message in PIP_STEPS:
                if found := pattern.match(line):
                    collected = next(numbers) if line.startswith("Collecting") else collected
                    live(f"packages {collected}/{total}: {message.format(found[1])}")
        live("")
        return process.wait(), lines


def live(text: str) -> None:
    """Show `text` on a line that the next call replaces.

    Without a terminal, print only the count at every fifth package.
    """
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)
    elif re.match(r"packages \d*[05]0?/\d+: looking", text):
        say(text.partition(":")[0])


def say(text: str) -> None:
    print(f"  {text}" if text.startswith("packages") else text, file=sys.stderr, flush=True)


def fail(what: str, hint: str, output: list[str]) -> int:
    shown = "".join(f"  {line}" for line in output[-LAST_LINES:])
    print(
        f"error: {what}; the last lines of its output, which `{LOG}` has:\n{shown}\n\nhint: {hint}",
        file=sys.stderr,
    )
    return 4


if __name__ == "__main__":
    raise SystemExit(main())
