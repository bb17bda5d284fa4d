"""Memory of a training on a CPU: every step allocates the buffers of the step before."""

from __future__ import annotations

import ctypes
import platform

from cm3leon_jax.accelerators import host_has_gpu, host_has_tpu

# glibc's mallopt: one arena, no block of its own map, nothing handed back (mallopt(3)).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, so that the pages of a step's buffers are not made anew each time.

    To be called before JAX's first use of a device: the threads that it starts keep the arenas they have, and none but
    the first arena can keep a large block. Where the host has an accelerator nothing is done. Other C libraries are
    left as they are.
    """
    if platform.libc_ver()[0] == "glibc" and not (host_has_gpu() or host_has_tpu()):
        library = ctypes.CDLL(None)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            library.mallopt(option, value)
