"""What the C library does with freed memory: a training step needs the same again a moment later.

By default large blocks go back to the kernel when they are freed, and each page of the next one is
faulted in and zeroed anew: a tenth of a packed step on two cores.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in this process; return whether the C library can (glibc can)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_MMAP_MAX, 0))
