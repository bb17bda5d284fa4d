"""Memory of a training on a CPU: every step allocates the buffers of the step before."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

# glibc's mallopt: one arena, no block of its own map, nothing handed back (mallopt(3)).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, so that the pages of a step's buffers are not made anew each time.

    To be called before JAX's first use of a device: the threads that it starts keep the arenas they have, and none but
    the first arena can keep a large block. So whether the host has an accelerator, where nothing is to be done, is
    told from its files. Other C libraries are left as they are.
    """
    has_accelerator = any(found for pattern in _ACCELERATORS for found in Path("/dev").glob(pattern))
    if platform.libc_ver()[0] == "glibc" and not has_accelerator:
        library = ctypes.CDLL(None)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            library.mallopt(option, value)
