"""The GPUs that llama.cpp may use on this machine, and their memory.

NVIDIA's management library (NVML, a part of the driver) reports free memory in milliseconds and
uses no GPU memory. llama.cpp reports free memory for every backend, but takes half a second.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from exporter.llamacpp.toolchain import Toolchain, run_tool

NVML = "libnvidia-ml.so.1"
NAME_MAX = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
UUID_MAX = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE
DEVICE = re.compile(r"^\s+(\w+?\d+): (.+) \((\d+) MiB, (\d+) MiB free\)$", re.MULTILINE)
VISIBLE = "CUDA_VISIBLE_DEVICES"
WITH_GPU = ("cuda", "vulkan", "metal")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU with its memory at this moment."""

    name: str
    total: int
    """Its memory in bytes."""
    free: int
    uuid: str = ""


class NvmlMemory(ctypes.Structure):
    """The struct nvmlMemory_t of nvml.h."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def free_nbytes(toolchain: Toolchain, env: Mapping[str, str] = os.environ) -> int | None:
    """Free bytes on the GPUs that llama.cpp may use; None where unknown."""
    if toolchain.info["backend"] != "cuda":
        return None
    found = nvidia_gpus(env)
    return None if found is None else sum(gpu.free for gpu in found)


def nvidia_gpus(env: Mapping[str, str], library: str = NVML) -> tuple[Gpu, ...] | None:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES allows; None without NVML."""
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2():
            return None
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        found = tuple(nvidia_gpu(nvml, number) for number in range(count.value))
    except (OSError, AttributeError):  # no driver, or one from before 2012
        return None
    return visible(found, env.get(VISIBLE))


def nvidia_gpu(nvml: ctypes.CDLL, number: int) -> Gpu:
    handle, memory = ctypes.c_void_p(), NvmlMemory()
    name, uuid = ctypes.create_string_buffer(NAME_MAX), ctypes.create_string_buffer(UUID_MAX)
    nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle))
    nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(NAME_MAX))
    nvml.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(UUID_MAX))
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    texts = [one.value.decode(errors="replace") for one in (name, uuid)]
    return Gpu(texts[0], int(memory.total), int(memory.free), texts[1])


def visible(gpus: tuple[Gpu, ...], allowed: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, up to the first unknown one, as CUDA reads it."""
    if allowed is None:
        return gpus
    found: list[Gpu] = []
    for one in allowed.split(","):
        name = one.strip()
        if name.isdigit():
            matching = gpus[int(name) : int(name) + 1]
        else:
            matching = tuple(gpu for gpu in gpus if name and gpu.uuid.startswith(name))
        if len(matching) != 1 or matching[0] in found:
            break
        found += matching
    return tuple(found)


def listed_gpus(toolchain: Toolchain) -> tuple[Gpu, ...]:
    """The GPUs as llama.cpp lists them; takes half a second. Raises ToolchainError."""
    if toolchain.info["backend"] not in WITH_GPU:
        return ()
    printed = run_tool(toolchain, "llama-server", ["--list-devices"], gpu=True)
    return tuple(
        Gpu(name, int(total) << 20, int(free) << 20)
        for _, name, total, free in DEVICE.findall(printed)
    )


def driver_gpus(env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver shows, independent of llama.cpp's backend."""
    with suppress(OSError):
        return tuple(gpu.name for gpu in nvidia_gpus(env) or ())
    return ()
