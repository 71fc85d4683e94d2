"""Puts text into the user's clipboard."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys

# each is there only where its kind of desktop is; none of them over ssh
PROGRAMS = (
    ("pbcopy",),
    ("wl-copy",),
    ("xclip", "-selection", "clipboard"),
    ("xsel", "--clipboard", "--input"),
)
WAIT_S = 3


def copy(text: str) -> str:
    """Copy by the first program that can, else by asking the terminal itself; gives by which.

    The terminal is asked with OSC 52, which most of today's obey, through ssh and tmux too.
    """
    for argv in PROGRAMS:
        if shutil.which(argv[0]) and run(argv, text):
            return argv[0]
    encoded = base64.b64encode(text.encode()).decode()
    sys.stdout.write(f"\x1b]52;c;{encoded}\x07")
    sys.stdout.flush()
    return "the terminal"


def run(argv: tuple[str, ...], text: str) -> bool:
    try:
        done = subprocess.run(
            argv,
            input=text.encode(),
            stdout=subprocess.DEVNULL,  # xclip stays and would hold a pipe open
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
