"""Compiles decant's native code: one source with its includes, once per compiler.

The library is in the user's cache beside the builds of llama.cpp, not inside them, so that a change
of one does not rebuild the other.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .host import Compilers, Host, find_compilers, read_host
from .process import run_logged
from .report import BuildError, BuildEvent, Report, silent
from .store import cache_root

LIBRARY = "libkquants.so"
PART = re.compile(r'#include "(\w+\.h)"')
# No fused or reordered operations: the bytes must equal those of ggml's scalar code.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-w",  # g++ 12 prints many warnings on AVX-512's intrinsics
)
X86 = ("x86_64", "amd64")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("-mavx2",),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}


@dataclass(frozen=True, slots=True)
class NativeLibrary:
    """A compiled library."""

    path: Path

    @property
    def key(self) -> str:
        """A short hash of the source, the flags and the compiler."""
        return self.path.parent.name


def source_path() -> Path:
    """Return the source's path: beside this package in the wheel, below exporter in a checkout."""
    above = Path(__file__).resolve().parents[1]
    inside = Path("quantize") / "native" / "kquants.cpp"
    return next(path for path in (above / "exporter" / inside, above / inside) if path.exists())


def source_text(path: Path | None = None) -> str:
    """Return the source with its includes inlined."""
    path = path or source_path()
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        part = PART.match(line)
        lines.append(source_text(path.with_name(part[1])) if part else line)
    return "\n".join(line for line in lines if line != "#pragma once") + "\n"


def build_native(
    *,
    env: Mapping[str, str],
    report: Report = silent,
    host: Host | None = None,
    source: Path | None = None,
) -> NativeLibrary:
    """Return the library, compiled if it is missing, which takes seconds. Raises BuildError.

    Without a compiler, a library that another compiler made from the same source is used.
    """
    host, source = host or read_host(env), source or source_path()
    text = source_text(source)
    folder = cache_root(env) / "kquants"
    stem = digest(text, *FLAGS, *variants(host), host.system, host.cpu.machine)
    try:
        compilers = find_compilers(env, system=host.system)
    except BuildError:
        for there in sorted(folder.glob(f"{stem}-*/{LIBRARY}")):
            return NativeLibrary(there)
        raise
    place = folder / f"{stem}-{digest(compilers.cxx, compilers.version)}"
    if not (place / LIBRARY).exists():
        report(BuildEvent("compile", f"compiling decant's K-quants with {compilers.version}"))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=folder) as work:
            log = folder / f"{place.name}.log"
            compile_library(source, Path(work), compilers, variants(host), log, env=env)
            publish(Path(work) / LIBRARY, place)
    return NativeLibrary(place / LIBRARY)


def variants(host: Host) -> list[str]:
    """Return the variants that this kind of processor can have."""
    return list(VARIANTS) if host.cpu.machine.lower() in X86 else ["baseline"]


def digest(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:12]


def compile_library(
    source: Path,
    folder: Path,
    compilers: Compilers,
    wanted: list[str],
    log: Path,
    *,
    env: Mapping[str, str],
) -> None:
    """Compile each variant and link them into `folder`. Raises BuildError."""
    objects = [str(folder / f"{name}.o") for name in (*wanted, "dispatch")]
    log.write_text("", encoding="utf-8")
    for argv in commands(source, objects, compilers, wanted):
        run_logged(argv, log, env=env, what="compiling decant's K-quants")
    argv = [*shlex.split(compilers.cxx), "-shared", "-o", str(folder / LIBRARY), *objects]
    run_logged(argv, log, env=env, what="linking decant's K-quants")


def commands(
    source: Path, objects: list[str], compilers: Compilers, wanted: list[str]
) -> Iterator[list[str]]:
    compiler = [*shlex.split(compilers.cxx), *FLAGS]
    defines = [f"-DKQ_ENTRY=decant_kquants_{name}" for name in wanted] + ["-DKQ_DISPATCH"]
    flags = [VARIANTS[name] for name in wanted] + [()]
    for define, extra, target in zip(defines, flags, objects, strict=True):
        yield [*compiler, *extra, define, "-c", str(source), "-o", target]


def publish(library: Path, place: Path) -> None:
    """Move the complete library to `place`; if two are made at once, the first one stays."""
    staged = library.with_name("finished")
    staged.mkdir()
    shutil.move(library, staged / LIBRARY)
    try:
        staged.rename(place)
    except OSError:
        if not (place / LIBRARY).exists():
            raise
