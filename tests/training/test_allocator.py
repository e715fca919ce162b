"""A process that keeps what it frees is not given the same memory anew, page by page, in every step."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy
{first}
def step():
    return numpy.ones(64 << 20, dtype=numpy.uint8).sum()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEPING = "from tune_dlrml.system.allocator import keep_freed_memory; keep_freed_memory()"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    def faults(first: str) -> int:
        program = FAULTS.format(first=first)
        return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)

    pages = 4 * (64 << 20) // 4096
    assert faults("") > pages / 520  # of 2 MiB where the system has huge ones
    assert faults(KEEPING) < 64
