"""Turns an abort by JAX's runtime into a message and the exit code that asks for a restart.

It aborts this process (SIGABRT) when another one is gone or hung; JAX offers no callback. A handler of Python's
`signal` module would run only on the main thread, which may wait in a collective forever; a C function runs at once.
"""

from __future__ import annotations

import ctypes
import os
import signal

from cm3leon_jax.errors import EXIT_RESTART

_message = b""


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    os.write(2, _message)
    os._exit(EXIT_RESTART)


def restart_on_abort(reason: str) -> None:
    """Makes an abort of this process print `reason` and exit with `EXIT_RESTART`."""
    global _message
    _message = (
        f"cm3leon: {reason} (see above). Exit code {EXIT_RESTART}: start all of them again to continue\n".encode()
    )
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
