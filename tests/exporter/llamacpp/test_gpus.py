"""The GPUs and their memory, told by a driver's library that is made up here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporter.cli import doctor
from exporter.llamacpp.gpus import Gpu, free_nbytes, listed_gpus, nvidia_gpus, visible
from exporter.llamacpp.toolchain import Toolchain

SOURCE = r"""
#include <stdio.h>
typedef struct { unsigned long long total, free, used; } Memory;
static int numbers[] = {0, 1};
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned n, void **handle) { *handle = &numbers[n]; return 0; }
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    snprintf(name, length, "NVIDIA Made Up %d", *(int *)handle); return 0;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    snprintf(text, length, "GPU-%c123", 'a' + *(int *)handle); return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    memory->total = 8ULL << 30; memory->free = (7ULL - *(int *)handle) << 30; return 0;
}
"""
FIRST = Gpu("NVIDIA Made Up 0", 8 << 30, 7 << 30, "GPU-a123")
SECOND = Gpu("NVIDIA Made Up 1", 8 << 30, 6 << 30, "GPU-b123")
LISTED = """Available devices:
  CUDA0: NVIDIA H100 80GB HBM3 (81090 MiB, 80567 MiB free)
  CUDA1: Tesla (x) T4 (15000 MiB, 0 MiB free)
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(SOURCE)
    library = folder / "libnvidia-ml.so.1"
    argv = ["cc", "-shared", "-fPIC", "-o", library, folder / "nvml.c"]
    subprocess.run(argv, check=True)
    return str(library)


def toolchain_that_lists(folder: Path, printed: str, backend: str = "cuda") -> Toolchain:
    tool = folder / "llama-server"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    tool.chmod(0o755)
    return Toolchain(SimpleNamespace(tool=lambda _: tool, info={"backend": backend}))


def test_the_driver_tells_names_and_memory(nvml):
    assert nvidia_gpus({}, nvml) == (FIRST, SECOND)
    assert nvidia_gpus({}, "libno-such-nvml.so") is None


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, (FIRST, SECOND)),
        ("1,0", (SECOND, FIRST)),
        ("GPU-b", (SECOND,)),
        ("", ()),
        ("-1,0", ()),
        ("0,7,1", (FIRST,)),
        ("0,0", (FIRST,)),
    ],
)
def test_only_the_gpus_count_that_cuda_may_use(allowed, expected):
    assert visible((FIRST, SECOND), allowed) == expected


def test_llama_cpp_tells_the_gpus_it_sees(tmp_path):
    found = listed_gpus(toolchain_that_lists(tmp_path, LISTED))

    assert [(gpu.name, gpu.total >> 20, gpu.free >> 20) for gpu in found] == [
        ("NVIDIA H100 80GB HBM3", 81090, 80567),
        ("Tesla (x) T4", 15000, 0),
    ]


def test_a_build_for_the_processor_has_no_gpu_memory(tmp_path):
    assert free_nbytes(toolchain_that_lists(tmp_path, "", "cpu")) is None
    assert listed_gpus(toolchain_that_lists(tmp_path, LISTED, "cpu")) == ()


@pytest.mark.parametrize(
    ("backend", "listed", "driver", "expected"),
    [
        (
            "cuda",
            LISTED,
            (),
            ["84.48 GB of 85.03 GB free, used by cuda", "0 bytes of 15.73 GB free"],
        ),
        ("cuda", "", ("NVIDIA L4",), ["built for cuda, but sees no GPU"]),
        ("cpu", "", ("NVIDIA L4",), ["NVIDIA L4, which llama.cpp does not use"]),
        ("cpu", "", (), []),
    ],
)
def test_doctor_tells_gpus_and_what_keeps_them_unused(
    backend, listed, driver, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        doctor, "find_toolchain", lambda: toolchain_that_lists(tmp_path, listed, backend)
    )
    monkeypatch.setattr(doctor, "driver_gpus", lambda: driver)
    found = list(doctor.gpu())

    assert len(found) == len(expected)
    assert all(text in check.found for text, check in zip(expected, found, strict=True))
    assert all(check.advice or check.status == "ok" for check in found)
