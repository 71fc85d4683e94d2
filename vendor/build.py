"""Builds one pinned llama.cpp per machine in the user's cache, and finds it there.

    python -m vendor.build [--json] [--force]

A finished build is a folder `<cache>/llama.cpp/<key>` that contains a `build.json`.
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
    "Build",
    "BuildError",
    "BuildEvent",
    "Recipe",
    "Report",
    "build",
    "build_key",
    "cache_root",
    "find",
    "read_recipe",
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
    """Return the finished build for this machine; build it if there is none or with `force`.

    If two processes build at once, one waits for the other. An interrupted or failed build
    publishes nothing, and the next one continues from the compiled objects. Raises BuildError.
    """
    host = host or read_host(env)
    choice = choose_backend(recipe, env, host)
    place = folder(recipe, choice.backend, env, host)
    if not force and (there := find(recipe, env=env, host=host)):
        return there
    waited = False

    def waiting() -> None:
        nonlocal waited
        waited = True
        report(BuildEvent("wait", "another process is building llama.cpp; waiting for it"))

    with file_lock(place.with_name(f"{place.name}.lock"), waiting=waiting) as lock:
        there = finished(place)
        if there and (waited or not force):
            return there
        # Imported here: most calls return above, and these imports are slow.
        from .job import BuildJob, prove

        job = BuildJob(recipe, choice, host, place, env, report, smoke or prove, lock)
        return job.run(from_scratch=force)


def _build_native(console: Report) -> None:
    """Compile decant's K-quant kernels; if that fails, ggml's slower ones are used."""
    from .native import build_native

    try:
        build_native(env=os.environ, report=console)
    except (BuildError, OSError) as error:
        console(BuildEvent("done", f"K-quants will be quantized by ggml itself: {error}"))


def main(argv: list[str] | None = None) -> int:
    """Build llama.cpp, print its folder, and return the exit code."""
    import argparse

    from .console import Console

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
        _build_native(console)
    except (BuildError, OSError) as error:
        console.close()
        hint = getattr(error, "hint", "")
        print(f"error: {error}" + (f"\n\nhint: {hint}" if hint else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.close()
        print("interrupted; the next run continues from here", file=sys.stderr)
        return 130
    console.close()
    result = {"dir": str(built.dir), **built.info}
    print(json.dumps(result, indent=2) if arguments.json else built.dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
