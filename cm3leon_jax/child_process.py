"""Calls a function in a process of its own, so that what it imports never enters the caller's."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

from cm3leon_jax.errors import EXIT_RESTART

P = ParamSpec("P")
T = TypeVar("T")


def call_in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function that can be pickled, in a process that ends with this one, however that ends."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent) as child:
        return child.submit(function, *args, **kwargs).result()


def _end_with_parent() -> None:
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(EXIT_RESTART)
