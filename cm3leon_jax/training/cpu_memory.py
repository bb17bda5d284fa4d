"""Memory of a training on a CPU: every step allocates the buffers of the step before."""

from __future__ import annotations

import ctypes
import platform

# glibc's mallopt: one arena, no block of its own map, nothing handed back (mallopt(3)).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, so that the pages of a step's buffers are not made anew each time.

    To be called before the first array. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            library.mallopt(option, value)
