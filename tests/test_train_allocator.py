"""Memory that a step frees stays with the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from train.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20
buffer = libc.malloc(size)
ctypes.memset(buffer, 1, size)
before = resident()
libc.free(buffer)
print((before - resident()) // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is what is set")
@pytest.mark.parametrize(("how", "least", "most"), [("keep", -1, 1), ("give back", 60, 68)])
def test_freed_memory_is_kept_where_asked(how: str, least: int, most: int) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], check=False, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("not glibc")
    assert least <= int(done.stdout) <= most, done.stderr
