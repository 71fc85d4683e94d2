"""The resources this machine gives to this process."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import time
from pathlib import Path

M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 8 << 20  # bytes: a matrix
CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")
CPU_MAX = CGROUP / "cpu.max"
MEMINFO = Path("/proc/meminfo")
THREAD_NBYTES = 4 << 20  # weights that are worth a thread
STATUS, STAT = Path("/proc/self/status"), Path("/proc/self/stat")
STARTED = 19  # place of the start time in STAT, after the program's name


def cores() -> int:
    """The number of processors that this process may use; a container may have only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """The physical cores this process may use; hardware threads of one core count once.

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


def useful_threads(weights: int, most: int) -> int:
    """How many threads, `most` at the most, speed up a model with `weights` bytes.

    With fewer bytes each they wait for one another longer than they compute, above all beside
    another busy process: benchmarks/threads.py.
    """
    return max(1, min(most, weights // THREAD_NBYTES))


def quota() -> int:
    """The number of whole processors that a container's limit allows; `cores()` without a limit."""
    try:
        limit, period = CPU_MAX.read_text().split()
        return max(1, int(limit) // int(period))
    except (OSError, ValueError):  # no cgroup, or "max"
        return cores()


def sysctl(name: str) -> int:
    """A number that macOS's sysctl gives by name; 0 for an unknown name."""
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    found = ctypes.CDLL(None).sysctlbyname(
        name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0
    )
    return value.value if found == 0 else 0


def available_nbytes() -> int:
    """Bytes of memory free without swapping, within a container's limit.

    Half of all memory where the system gives no number.
    """
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return memory_nbytes() // 2
    found = next((line for line in lines if line.startswith("MemAvailable")), None)
    machine = int(found.split()[1]) * 1024 if found else memory_nbytes() // 2
    return max(0, min(machine, container_nbytes()))


def container_nbytes() -> int:
    """Bytes that a container's memory limit leaves; sys.maxsize without a limit."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no cgroup, or "max"
        return sys.maxsize
    return limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))


def memory_nbytes() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_in_use() -> tuple[int, int]:
    """Bytes of memory that this process has now, and the most that it has had."""
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        now, most = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError):  # not Linux
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        most *= 1 if sys.platform == "darwin" else 1024
        return most, most
    return now, most


def process_age_s() -> float:
    """Seconds since this process was started; of its computing where the system does not say."""
    try:
        fields = STAT.read_text().rpartition(")")[2].split()
        began = int(fields[STARTED]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux
        return time.process_time()


def give_back_large_blocks(large_nbytes: int = LARGE_BLOCK) -> None:
    """Make glibc return freed blocks of this size and more to the system at once.

    By default glibc raises its threshold with the first freed block of up to 32 MiB and keeps all
    smaller ones, so that a process which handles matrices in turn grows by several of them. Other
    systems stay unchanged.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, large_nbytes)
