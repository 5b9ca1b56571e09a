"""What a training step frees is kept for the next one.

A step on a CPU frees hundreds of megabytes of activations, in large pieces, and the next one asks for as many
again. glibc gives large pieces back to the kernel at once, and the kernel clears each page before it hands it out
anew: an eighth of a step's time and more (docs/models.md).
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
NEVER = -1


def keep_freed_memory() -> bool:
    """Let malloc keep what this process frees, for as long as it lives; it never holds more than its peak, but for
    gaps. Returns whether it does: it is glibc's to give, and another C library's malloc stays as it is."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))
