"""Writes and restores a tool's settings in forks that are killed at each of their file accesses.

Arguments: FOLDER, `write` or `restore`, and the user's text or nothing. It prints a JSON list with
an entry for each kill: the file after it, whether a copy was there, and the file after a restore.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from runtime.launch.settings_formats import JsonFile
from runtime.launch.written_settings import BACKUP, ToolSettings

OURS = {"env": {"A": "decant"}}
COUNTED = ("open", "os.rename", "os.remove", "os.link", "os.mkdir")


def settings_in(folder: Path) -> ToolSettings:
    return ToolSettings("tool", folder / "settings.json", JsonFile(), folder / "records")


def act(folder: Path, action: str) -> None:
    if action == "write":
        settings_in(folder).write(OURS, has_key=False)
    else:
        settings_in(folder).restore()


def killed_at(folder: Path, action: str, count: int) -> bool:
    """Run the action in a fork that is killed at its access number `count`; False if it ended."""
    pid = os.fork()
    if not pid:
        left = [count]

        def hook(event: str, _: object) -> None:
            if event in COUNTED:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act(folder, action)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def text_of(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def main(folder: Path, action: str, text: str | None) -> None:
    found, was_killed = [], True
    while was_killed:
        place = folder / str(len(found))
        place.mkdir()
        path = place / "settings.json"
        if text is not None:
            path.write_text(text)
        if action == "restore":
            act(place, "write")
        was_killed = killed_at(place, action, len(found) + 1)
        after, backup = text_of(path), text_of(path.with_name(path.name + BACKUP))
        settings_in(place).restore()
        left = [one.name for one in place.iterdir() if one.is_file() and one.name[0] != "."]
        found.append({"after": after, "backup": backup, "restored": text_of(path), "left": left})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *(sys.argv[3:] or [None]))
