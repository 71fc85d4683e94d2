"""What this machine offers to this process."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 8 << 20  # bytes: a matrix
CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")
CPU_MAX = CGROUP / "cpu.max"
MEMINFO = Path("/proc/meminfo")


def cores() -> int:
    """The processors this process may use, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """The cores this process may use: of hardware threads that share one, the first.

    llama.cpp's products keep a core's units busy, so that a second thread on it only waits.
    """
    if sys.platform == "darwin":
        return sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu") or cores()
    if not hasattr(os, "sched_getaffinity"):
        return cores()
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        try:
            siblings.add((CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            return cores()
    return max(1, min(len(siblings), quota()))


def quota() -> int:
    """Whole processors that a container's limit comes to; all of them where there is none."""
    try:
        limit, period = CPU_MAX.read_text().split()
        return max(1, int(limit) // int(period))
    except (OSError, ValueError):  # no cgroup, or "max"
        return cores()


def sysctl(name: str) -> int:
    """One of macOS's numbers about itself; 0 where it has none of that name."""
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    found = ctypes.CDLL(None).sysctlbyname(
        name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0
    )
    return value.value if found == 0 else 0


def available_nbytes() -> int:
    """Bytes of memory that can be had without swapping, within a container's limit.

    Half the memory where the system does not say.
    """
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return memory_nbytes() // 2
    found = next((line for line in lines if line.startswith("MemAvailable")), None)
    machine = int(found.split()[1]) * 1024 if found else memory_nbytes() // 2
    return max(0, min(machine, container_nbytes()))


def container_nbytes() -> int:
    """What a container's limit leaves; more than any machine has where there is none."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no cgroup, or "max"
        return sys.maxsize
    return limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))


def memory_nbytes() -> int:
    """Bytes of memory the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back_large_blocks(large_nbytes: int = LARGE_BLOCK) -> None:
    """Have glibc return blocks of so many bytes and more to the system as soon as they are freed.

    By itself it begins, when the first of up to 32 MiB is freed, to keep all smaller ones, and a
    process that handles matrices one by one grows by a few of them. Other systems are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, large_nbytes)
