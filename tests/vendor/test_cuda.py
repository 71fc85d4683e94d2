"""CUDA builds, as far as they can be seen without a GPU: toolkits are folders made up here."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mini_sdist import HOST, Mini, make_mini, no_smoke
from vendor import cuda as cuda_module
from vendor.build import build, build_key, find
from vendor.buildtools import find_buildtools
from vendor.cmake import CompilePlan, _configure_argv
from vendor.cuda import (
    EVERY,
    NATIVE,
    Cuda,
    checked_toolkit,
    every_architecture,
    find_gpus,
    read_cuda,
    toolkit_of,
)
from vendor.host import expected_time, find_compilers, find_nvcc, read_host
from vendor.recipe import read_recipe
from vendor.report import BuildError, silent

H100 = Cuda("13.0", NATIVE, ("NVIDIA H100 80GB HBM3",))
EVERYWHERE = Cuda("13.0", EVERY)


def toolkit(folder: Path, *, number: int = 13000, headers: tuple[str, ...] = ("cublas_v2.h",)):
    """A toolkit's folder as NVIDIA's installer lays it out; gives its nvcc."""
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True)
    (folder / "include" / "cuda.h").write_text(f"#define CUDA_VERSION {number}\n")
    for name in headers:
        (folder / "include" / name).touch()
    (folder / "lib64" / "libcudart.so.13").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return nvcc


def configured(mini: Mini, cuda: Cuda, env: dict[str, str]) -> dict[str, str]:
    """CMake's options of a CUDA build."""
    plan = CompilePlan(
        recipe=replace(mini.recipe, backends={"cuda": {}}),
        backend="cuda",
        compilers=find_compilers(os.environ, system="Linux"),
        **find_buildtools(mini.recipe, Path("/nowhere"), env=os.environ, report=silent),
        flags=(),
        jobs=2,
        cuda=cuda,
    )
    argv = _configure_argv(plan, Path("source"), Path("build"), env)
    return dict(one[2:].split("=", 1) for one in argv if one.startswith("-D"))


def test_toolkit_is_found_from_its_compiler_wherever_that_lies(tmp_path: Path):
    nvcc = toolkit(tmp_path / "cuda-13.0")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(nvcc)  # as a module, or NVIDIA's /usr/local/cuda
    found = toolkit_of(str(tmp_path / "bin" / "nvcc"))
    assert (found.root, found.version) == (tmp_path / "cuda-13.0", "13.0")
    assert found.libraries == tmp_path / "cuda-13.0" / "lib64"


def test_toolkit_of_conda_has_its_files_by_target(tmp_path: Path):
    target = tmp_path / "targets" / "x86_64-linux"
    for folder in (tmp_path / "bin", target / "include", target / "lib"):
        folder.mkdir(parents=True)
    (tmp_path / "bin" / "nvcc").touch()
    (target / "include" / "cuda.h").write_text("#  define CUDA_VERSION 12090 /* 12.9 */\n")
    (target / "lib" / "libcudart.so").touch()
    found = toolkit_of(str(tmp_path / "bin" / "nvcc"))
    assert (found.root, found.version, found.libraries) == (tmp_path, "12.9", target / "lib")


def test_toolkit_without_cublas_is_refused_with_its_package(tmp_path: Path, monkeypatch):
    nvcc = toolkit(tmp_path / "cuda", headers=())
    (tmp_path / "apt-get").write_text("#!/bin/sh\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no cublas_v2\.h") as caught:
        checked_toolkit(str(nvcc))
    assert "sudo apt install libcublas-dev-13-0" in caught.value.hint
    assert "DECANT_BACKEND=cpu" in caught.value.hint


def test_cuda_build_without_a_compiler_says_what_to_install(tmp_path: Path):
    mini = make_mini(tmp_path)
    recipe = replace(mini.recipe, backends={"cuda": {}})
    env = {**mini.env, "DECANT_BACKEND": "cuda", "PATH": os.environ["PATH"]}
    with pytest.raises(BuildError, match="no nvcc") as caught:
        build(recipe, env=env, smoke=no_smoke, host=replace(HOST, cuda=EVERYWHERE))
    assert "CUDA_HOME" in caught.value.hint


def test_compiler_and_toolkit_are_of_one_folder(tmp_path: Path):
    nvcc = toolkit(tmp_path / "cuda")
    mini = make_mini(tmp_path / "mini")
    options = configured(mini, H100, {"CUDACXX": str(nvcc), "PATH": ""})
    assert options["CUDAToolkit_ROOT"] == str(tmp_path / "cuda")
    assert "CMAKE_CUDA_ARCHITECTURES" not in options  # llama.cpp asks CMake for the GPU here
    options = configured(
        mini, H100, {"CUDACXX": str(nvcc), "PATH": "", "CUDAToolkit_ROOT": "/other"}
    )
    assert "CUDAToolkit_ROOT" not in options


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (13000, "75-virtual;80-virtual;86-real;89-real;90-virtual;120a-real;121a-real"),
        (
            12040,
            "50-virtual;61-virtual;70-virtual;75-virtual;80-virtual;86-real;89-real;90-virtual",
        ),
        (11040, "50-virtual;61-virtual;70-virtual;75-virtual;80-virtual;86-real"),
    ],
)
def test_without_a_gpu_all_that_the_toolkit_knows_is_compiled_for(number: int, expected: str):
    assert every_architecture(number) == expected


def test_architectures_come_from_cudaarchs_else_the_gpu_else_are_all(tmp_path: Path, monkeypatch):
    nvcc = toolkit(tmp_path / "cuda")
    mini = make_mini(tmp_path / "mini")
    monkeypatch.setattr(cuda_module, "GPU_DEVICES", (tmp_path / "none",))
    here = read_cuda({}, str(nvcc))
    assert here == EVERYWHERE
    env = {"CUDACXX": str(nvcc), "PATH": ""}
    assert "90-virtual" in configured(mini, here, env)["CMAKE_CUDA_ARCHITECTURES"]
    named = read_cuda({"CUDAARCHS": "90-real"}, str(nvcc))
    assert configured(mini, named, env)["CMAKE_CUDA_ARCHITECTURES"] == "90-real"
    monkeypatch.setattr(cuda_module, "GPU_DEVICES", (nvcc,))
    assert read_cuda({}, str(nvcc)).architectures == NATIVE


def test_gpus_are_named_by_the_driver_else_by_the_bus(tmp_path: Path):
    for number, model in ((0, "NVIDIA L4"), (1, "NVIDIA A10"), (2, "NVIDIA L4")):
        folder = tmp_path / "driver" / str(number)
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ: 36\n")
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x8086", "0x030000"),
    ):
        folder = tmp_path / "pci" / name
        folder.mkdir(parents=True)
        for file, text in (("vendor", vendor), ("class", kind), ("device", f"0x{name}")):
            (folder / file).write_text(f"{text}\n")
    assert find_gpus(tmp_path / "driver", tmp_path / "pci") == ("NVIDIA A10", "NVIDIA L4")
    assert find_gpus(tmp_path / "none", tmp_path / "pci") == ("0xa",)


def test_key_of_a_cuda_build_knows_its_gpus_and_the_toolkit():
    recipe = read_recipe()
    kinds = [H100, replace(H100, gpus=("NVIDIA L4",)), replace(H100, version="12.9"), EVERYWHERE]
    hosts = [replace(HOST, cuda=cuda) for cuda in kinds]
    assert len({build_key(recipe, "cuda", host) for host in hosts}) == len(kinds)
    assert {build_key(recipe, "cpu", host) for host in hosts} == {build_key(recipe, "cpu", HOST)}


@pytest.mark.parametrize(
    ("made", "here", "is_found"),
    [
        (H100, H100, True),
        (H100, replace(H100, gpus=("NVIDIA L4",)), False),
        (H100, replace(H100, version="12.9"), False),
        (H100, replace(H100, version=""), True),  # an image that runs without its toolkit
        (EVERYWHERE, H100, True),  # an image that was built without a GPU
        (Cuda("13.0", "90-real"), H100, False),
        (Cuda("13.0", "90-real"), Cuda("", "90-real"), True),
    ],
)
def test_build_is_found_where_its_kernels_run(
    tmp_path: Path, made: Cuda, here: Cuda, is_found: bool
):
    recipe = read_recipe()
    env = {"DECANT_CACHE": str(tmp_path), "DECANT_BACKEND": "cuda"}
    key = build_key(recipe, "cuda", replace(HOST, cuda=made))
    folder = tmp_path / "llama.cpp" / key
    folder.mkdir(parents=True)
    gpus = str(list(made.gpus)).replace("'", '"')
    (folder / "build.json").write_text(
        f'{{"schema": 1, "cuda": {{"version": "{made.version}",'
        f' "architectures": "{made.architectures}", "gpus": {gpus}}}}}'
    )
    found = find(recipe, env=env, host=replace(HOST, cuda=here))
    assert (found is not None) == is_found


def test_build_runs_without_the_loader_knowing_the_toolkit(tmp_path: Path):
    """As with NVIDIA's runfile, conda and modules, and from a systemd unit."""
    nvcc = toolkit(tmp_path / "cuda")
    lib = tmp_path / "cuda" / "lib64"
    (tmp_path / "runtime.c").write_text("int cuda_answer(void) { return 21; }\n")
    so = lib / "libcudart.so.13"
    make = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcudart.so.13", "-o", so, "runtime.c"]
    subprocess.run(make, cwd=tmp_path, check=True)
    (lib / "libcudart.so").symlink_to(so.name)
    mini = make_mini(
        tmp_path / "mini",
        {
            "vendor/llama.cpp/base.c": (
                "int cuda_answer(void);\nint answer(void) { return 2 * cuda_answer(); }\n"
            ),
            # the compiler's own folders, as nvcc's are, get no RPATH from CMake
            "vendor/llama.cpp/CMakeLists.txt": """
                cmake_minimum_required(VERSION 3.14)
                project(mini C)
                set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
                set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
                add_library(ggml-base SHARED base.c)
                target_link_libraries(ggml-base "-L${CUDAToolkit_ROOT}/lib64 -lcudart")
                add_executable(llama-server server.c)
                target_link_libraries(llama-server ggml-base)
            """,
        },
    )
    recipe = replace(mini.recipe, backends={"cuda": {}})
    env = {**mini.env, "DECANT_BACKEND": "cuda", "CUDACXX": str(nvcc)}
    host = replace(HOST, nvcc=str(nvcc), cuda=H100)
    made = build(recipe, env=env, smoke=no_smoke, host=host)
    assert subprocess.run([made.tool("llama-server")], env={}, check=False).returncode == 42
    assert made.info["cuda"] == {
        "version": "13.0",
        "architectures": "native",
        "gpus": ("NVIDIA H100 80GB HBM3",),
    }


def test_named_compiler_of_cuda_goes_first(tmp_path: Path):
    nvcc = toolkit(tmp_path / "cuda")
    assert find_nvcc({"CUDACXX": str(nvcc), "PATH": ""}) == str(nvcc)
    assert read_host({"CUDACXX": str(nvcc), "PATH": ""}).cuda.version == "13.0"


@pytest.mark.parametrize(
    ("backend", "cuda", "jobs", "expected"),
    [
        ("cpu", EVERYWHERE, 2, "about 10 min on 2 cores, once"),
        ("cuda", H100, 16, "about 4 min on 16 cores, once"),
        ("cuda", H100, 4, "about 18 min on 4 cores, once"),
        ("cuda", EVERYWHERE, 4, "about 88 min on 4 cores, once"),
        ("cpu", H100, 1, "about 20 min on 1 core, once"),
    ],
)
def test_time_of_a_build_depends_on_backend_and_cores(
    backend: str, cuda: Cuda, jobs: int, expected: str
):
    assert expected_time(backend, cuda, jobs) == expected
