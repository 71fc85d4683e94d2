"""What this machine offers to this process."""

from __future__ import annotations

import ctypes
import os
import platform

M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 8 << 20  # bytes


def cores() -> int:
    """The processors this process may use, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_nbytes() -> int:
    """Bytes of memory the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back_large_blocks() -> None:
    """Have glibc return blocks of 8 MiB and more to the system as soon as they are freed.

    By itself it begins, when the first of 32 MiB is freed, to keep all smaller ones, and a
    process that handles matrices one by one grows by a few of them. Other systems are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
