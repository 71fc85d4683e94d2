from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mini_sdist import HOST, program
from vendor.host import choose_backend, count_jobs, find_compilers, find_nvcc, read_cpu
from vendor.recipe import read_recipe
from vendor.report import BuildError

X86 = """processor	: 0
model name	: AMD EPYC 7B13
flags		: fpu sse2 avx2 fma

processor	: 1
model name	: another
flags		: nothing
"""
ARM = """processor	: 0
Features	: fp asimd i8mm
CPU implementer	: 0x41
CPU part	: 0xd40
"""


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (X86, "AMD EPYC 7B13", {"fpu", "sse2", "avx2", "fma"}),
        (ARM, "0x41 0xd40", {"fp", "asimd", "i8mm"}),
    ],
)
def test_cpu_is_the_first_of_the_list(tmp_path: Path, text: str, model: str, flags: set[str]):
    (tmp_path / "cpuinfo").write_text(text)
    cpu = read_cpu(tmp_path / "cpuinfo")
    assert (cpu.model, cpu.flags) == (model, flags)


def test_cpu_without_a_list_is_known_by_its_machine(tmp_path: Path):
    cpu = read_cpu(tmp_path / "missing")
    assert cpu.machine == os.uname().machine
    assert cpu.flags == frozenset()


@pytest.mark.parametrize(
    ("system", "nvcc", "nvidia", "backend", "reason"),
    [
        ("Darwin", False, False, "metal", "macOS"),
        ("Linux", True, True, "cuda", "are here"),
        ("Linux", True, False, "cpu", "no NVIDIA GPU"),
        ("Linux", False, True, "cpu", "no nvcc"),
        ("Linux", False, False, "cpu", "no GPU toolkit"),
    ],
)
def test_backend_is_what_the_machine_can_use(
    system: str, nvcc: bool, nvidia: bool, backend: str, reason: str
):
    host = replace(HOST, system=system, nvidia=nvidia, nvcc="/cuda/bin/nvcc" if nvcc else None)
    choice = choose_backend(read_recipe(), {}, host)
    assert choice.backend == backend
    assert reason in choice.reason


@pytest.mark.parametrize("backend", ["cpu", "cuda", "metal", "vulkan"])
def test_backend_that_is_asked_for_is_taken(backend: str):
    env = {"DECANT_BACKEND": backend.upper()}
    assert choose_backend(read_recipe(), env, HOST).backend == backend


def test_nvcc_is_found_on_path_or_in_cuda_home(tmp_path: Path):
    (tmp_path / "home").mkdir()
    on_path, in_home = program(tmp_path, "nvcc"), program(tmp_path / "home" / "bin", "nvcc")
    home = {"CUDA_HOME": str(tmp_path / "home")}
    assert find_nvcc({**home, "PATH": str(tmp_path)}) == str(on_path)
    assert find_nvcc({**home, "PATH": ""}) == str(in_home)


def test_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(BuildError, match="'rocm'") as caught:
        choose_backend(read_recipe(), {"DECANT_BACKEND": "rocm"}, HOST)
    assert caught.value.hint == "use one of: auto, cpu, cuda, metal, vulkan"


def test_named_compilers_go_first_and_may_carry_arguments(tmp_path: Path):
    cxx = program(tmp_path, "my-cxx", 'echo "mine $1"')
    compilers = find_compilers({"CC": str(cxx), "CXX": f"{cxx} -m64"}, system="Linux")
    assert (compilers.cc, compilers.cxx, compilers.version) == (
        str(cxx),
        f"{cxx} -m64",
        "mine -m64",
    )


def test_clang_is_found_where_gcc_is_not(tmp_path: Path):
    for name in ("clang", "clang++"):
        program(tmp_path, name)
    assert find_compilers({"PATH": str(tmp_path)}, system="Linux").cxx == "clang++"


def test_compiler_that_only_asks_to_be_installed_is_none(tmp_path: Path):
    for name in ("cc", "c++"):
        program(tmp_path, name, "echo xcode-select: note >&2; exit 1")
    with pytest.raises(BuildError) as caught:
        find_compilers({"PATH": str(tmp_path)}, system="Darwin")
    assert caught.value.hint == "run `xcode-select --install`"


def test_missing_compiler_of_cc_is_named():
    with pytest.raises(BuildError, match="`no-such-cc`"):
        find_compilers({"CC": "no-such-cc"}, system="Linux")


@pytest.mark.parametrize("asked", ["", "0", "many"])
def test_jobs_are_the_cpus_unless_a_number_is_asked_for(asked: str):
    assert 1 <= count_jobs({"CMAKE_BUILD_PARALLEL_LEVEL": asked}) <= (os.cpu_count() or 1)
    assert count_jobs({"CMAKE_BUILD_PARALLEL_LEVEL": "77"}) == 77
