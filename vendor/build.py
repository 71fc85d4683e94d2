"""One pinned llama.cpp, built once per machine into the user's cache, and found again.

    python -m vendor.build [--json] [--force]

A finished build is a folder `<cache>/llama.cpp/<key>` with a `build.json` in it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .host import Host, choose_backend, read_host
from .lock import file_lock
from .recipe import Recipe, read_recipe
from .report import BuildError, BuildEvent, Report, silent
from .store import Build, build_key, cache_root, find, finished, folder

if TYPE_CHECKING:
    from .job import Smoke

__all__ = [
    "Build", "BuildError", "BuildEvent", "Recipe", "Report",
    "build", "build_key", "cache_root", "find", "read_recipe",
]


def build(
    recipe: Recipe,
    *,
    env: Mapping[str, str],
    report: Report = silent,
    force: bool = False,
    smoke: Smoke | None = None,
    host: Host | None = None,
) -> Build:
    """The finished build for this machine, made if it is not there or if `force` is given.

    Of two builds at once, one builds and the other waits for it. An interrupted or failed
    one publishes nothing; the next goes on from what it compiled.
    """
    host = host or read_host(env)
    choice = choose_backend(recipe, env, host)
    folder = folder(recipe, choice.backend, env, host)
    if not force and (finished := finished(folder)):
        return finished
    waited = False

    def waiting() -> None:
        nonlocal waited
        waited = True
        report(BuildEvent("wait", "another process is building llama.cpp; waiting for it"))

    with file_lock(folder.with_name(f"{folder.name}.lock"), waiting=waiting) as lock:
        finished = finished(folder)
        if finished and (waited or not force):
            return finished
        job = _Job(recipe, choice, host, folder, env, report, smoke or _smoke, lock)
        return job.run()


def main(argv: list[str] | None = None) -> int:
    """Build llama.cpp and print where it lies; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vendor.build",
        description="Build the pinned llama.cpp, or find it built; print its folder.",
    )
    parser.add_argument("--json", action="store_true", help="print build.json and the folder")
    parser.add_argument("--force", action="store_true", help="build again even if it is there")
    arguments = parser.parse_args(argv)
    console = Console(sys.stderr)
    try:
        built = build(read_recipe(), env=os.environ, report=console, force=arguments.force)
    except BuildError as error:
        console.close()
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        print(f"error: {error.message}{hint}", file=sys.stderr)
        return 1
    except OSError as error:
        console.close()
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.close()
        print("interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    console.close()
    result = {"dir": str(built.dir), **built.info}
    print(json.dumps(result, indent=2) if arguments.json else built.dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
