"""Settings of the C library for the memory that a step frees."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGEST = 2**31 - 1
NEVER = -1


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next step, instead of returning it to the system.

    glibc maps every large block again and unmaps it when it is freed, so that each step faults in gigabytes of zeroed
    pages. A step of SmolLM2-135M over 4 pairs of 160 tokens takes 2.55 s without that and 3.5 s with it (bfloat16, two
    threads). The process holds the memory of its largest step. Without glibc nothing is done.

    This affects only glibc's main arena. Ray Train trains in a thread, whose own arena keeps no block above 64 MB; so
    blocks of a step and of a held-out pass are kept below that (`batches.CPU_HEAD_TILE`, `held_out.KL_TILE`). Before
    they were, a pass over 49 pairs faulted in 7 GB, a fifth of its time. MALLOC_ARENA_MAX=1 would also end that, and
    make the threads of every product wait for one lock: a search of the toy then takes 58 s in place of 48 s.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
