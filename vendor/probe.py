"""Tests whether this compiler's AMX code works on this CPU, by running some.

GCC 12.2 declares to its optimizer that loading a tile configuration reads 8 of the 64 bytes (GCC PR
114098). It then drops the stores that fill the rest, and the first quantized matrix product of a
native build crashes. Only running such code on such a CPU shows it.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .host import Compilers, Cpu
from .process import ending

WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
TIMEOUT_S = 60  # of the compiler, and of the probe
NOT_COMPILED_IN = 3  # this and the next two: exit codes in SOURCE
KERNEL_REFUSES = 4  # as above
CONFIGURATION_LOST = 5  # as above

Run = Callable[[Sequence[str]], int]
"""Runs a command and returns its exit code, negative for a signal."""

SOURCE = r"""
#ifndef __AMX_TILE__
int main() { return 3; } // -march=native does not switch AMX on: nothing to go wrong
#else
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct TileConfig {
    unsigned char palette, start_row, reserved[14];
    unsigned short bytes_per_row[16];
    unsigned char rows[16];
};

__attribute__((noinline)) static void configure(int rows, int bytes) {
    TileConfig config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.rows[i] = (unsigned char)rows;
        config.bytes_per_row[i] = (unsigned short)bytes;
    }
    _tile_loadconfig(&config);
}

int main(int argc, char **) {
    const long request_permission = 0x1023, tile_data = 18; // Linux: asm/prctl.h, XFEATURE
    if (syscall(SYS_arch_prctl, request_permission, tile_data)) return 4;
    configure(15 + argc, 64);
    unsigned char stored[64];
    _tile_storeconfig(stored);
    for (int i = 0; i < 8; i++)
        if (stored[48 + i] != 16 || stored[16 + 2 * i] != 64) return 5;
    _tile_zero(0);
    _tile_release();
    return 0;
}
#endif
"""


@dataclass(frozen=True, slots=True)
class AmxVerdict:
    """The probe's result for build.json, and the compiler flags that follow from it."""

    verdict: str
    flags: tuple[str, ...] = ()
    """Compiler flags for C and C++."""


def probe_amx(
    cpu: Cpu,
    compilers: Compilers,
    folder: Path,
    *,
    env: Mapping[str, str],
    source: str = SOURCE,
    system: str | None = None,
    run: Run | None = None,
) -> AmxVerdict:
    """Compile `source` in `folder` and run it, on a Linux machine whose CPU has AMX."""
    if "amx_tile" not in cpu.flags or (system or platform.system()) != "Linux":
        return AmxVerdict("not applicable")
    run = run or _runner(env)
    text, program = folder / "amx.cpp", folder / "amx"
    text.write_text(source, encoding="utf-8")
    native = ["-O3", "-march=native", "-o", str(program), str(text)]
    if run([*shlex.split(compilers.cxx), *native]):
        return AmxVerdict("not probed: the probe does not compile")
    return judge(run([str(program)]))


def judge(code: int) -> AmxVerdict:
    """Return the verdict on a probe with the exit code `code`."""
    if code == 0:
        return AmxVerdict("works")
    if code == NOT_COMPILED_IN:
        return AmxVerdict("not used by this compiler")
    if code == KERNEL_REFUSES:
        return AmxVerdict("switched off: the kernel does not grant it", WITHOUT_AMX)
    if code == CONFIGURATION_LOST:
        return AmxVerdict("switched off: the compiler loses tile configurations", WITHOUT_AMX)
    return AmxVerdict(f"switched off: the probe {ending(code)}", WITHOUT_AMX)


def _runner(env: Mapping[str, str]) -> Run:
    def run(argv: Sequence[str]) -> int:
        try:
            return subprocess.run(
                argv, env=dict(env), capture_output=True, timeout=TIMEOUT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return -9

    return run
