"""Ends a command's process with SIGKILL before its n-th change in a folder.

The command gets the code as `sitecustomize`, which each Python imports when it starts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CODE = """
import os, signal, sys

WATCHED, NUMBER, MARK = {watched!r}, {number}, {mark!r}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PLACES = {{  # of each call's paths, and of what those are relative to
    "open": ((0, None),), "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.remove": ((0, 1),),
    "os.chmod": ((0, 2),), "os.rename": ((0, 2), (1, 3)), "os.symlink": ((1, 2),),
    "os.link": ((1, 3),), "os.truncate": ((0, None),),
}}
left = [NUMBER]


def place(args, at, base):
    path = args[at]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return ""
    path = os.fsdecode(path)
    if base is not None and args[base] not in (None, -1):
        path = os.path.join(os.readlink("/proc/self/fd/%d" % args[base]), path)
    return path


def hook(event, args):
    if event not in PLACES or event == "open" and not (args[2] or 0) & WRITES:
        return
    if any(place(args, *one).startswith(WATCHED) for one in PLACES[event]):
        left[0] -= 1
        if left[0] < 0:
            os.close(os.open(MARK, os.O_WRONLY | os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(hook)
"""


@dataclass(frozen=True, slots=True)
class KilledCommand:
    """A command that is killed before its change `number`, the first of which is 0."""

    folder: Path
    """For the code; used by this command only."""
    watched: Path
    """The folder whose changes count."""
    number: int

    @property
    def mark(self) -> Path:
        return self.folder / "killed"

    def env(self) -> dict[str, str]:
        """The environment of the command."""
        self.folder.mkdir()
        told = {"watched": str(self.watched), "number": self.number, "mark": str(self.mark)}
        (self.folder / "sitecustomize.py").write_text(CODE.format(**told))
        paths = filter(None, (str(self.folder), os.environ.get("PYTHONPATH")))
        return {"PYTHONPATH": os.pathsep.join(paths)}

    def was_killed(self) -> bool:
        """Whether the command came so far."""
        return self.mark.exists()
