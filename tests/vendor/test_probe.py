from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vendor.host import Compilers, Cpu, find_compilers
from vendor.probe import SOURCE, WITHOUT_AMX, AmxVerdict, judge, probe_amx

AMX = Cpu("x86_64", "Xeon", frozenset({"avx2", "amx_tile", "amx_int8"}))


@pytest.fixture(scope="module")
def compilers() -> Compilers:
    return find_compilers(os.environ, system="Linux")


def verdict(tmp_path: Path, compilers: Compilers, source: str, cpu: Cpu = AMX) -> AmxVerdict:
    return probe_amx(cpu, compilers, tmp_path, env=os.environ, source=source, system="Linux")


def test_probe_that_crashes_switches_amx_off(tmp_path: Path, compilers: Compilers):
    found = verdict(tmp_path, compilers, "#include <csignal>\nint main() { raise(SIGSEGV); }\n")
    assert found == AmxVerdict("switched off: the probe died with SIGSEGV", WITHOUT_AMX)


def test_probe_that_ends_well_leaves_amx_on(tmp_path: Path, compilers: Compilers):
    assert verdict(tmp_path, compilers, "int main() {}\n") == AmxVerdict("works")


def test_probe_that_does_not_compile_decides_nothing(tmp_path: Path, compilers: Compilers):
    found = verdict(tmp_path, compilers, "no C++ at all\n")
    assert found == AmxVerdict("not probed: the probe does not compile")


def test_cpu_without_amx_is_not_probed(tmp_path: Path, compilers: Compilers):
    other = Cpu("x86_64", "EPYC", frozenset({"avx2"}))
    assert verdict(tmp_path, compilers, "no C++ at all\n", other) == AmxVerdict("not applicable")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words", "flags"),
    [
        (0, "works", ()),
        (3, "not used by this compiler", ()),
        (4, "kernel does not grant it", WITHOUT_AMX),
        (5, "loses tile configurations", WITHOUT_AMX),
        (-4, "died with SIGILL", WITHOUT_AMX),
        (1, "exit code 1", WITHOUT_AMX),
    ],
)
def test_every_end_of_the_probe_has_its_verdict(code: int, words: str, flags: tuple[str, ...]):
    assert words in judge(code).verdict
    assert judge(code).flags == flags


@pytest.mark.lasting
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AMX is x86's")
def test_the_probe_itself_compiles_with_and_without_amx(tmp_path: Path, compilers: Compilers):
    (tmp_path / "amx.cpp").write_text(SOURCE)
    for flag in ("-mamx-tile", "-mno-amx-tile"):
        argv = [compilers.cxx, "-O3", flag, "-Wall", "-Werror", "-fsyntax-only", "amx.cpp"]
        subprocess.run(argv, cwd=tmp_path, check=True)
