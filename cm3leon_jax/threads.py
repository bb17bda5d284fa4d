"""Work that is done a little ahead of where its results are needed, in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

NUM_THREADS = min(16, os.cpu_count() or 1)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def mapped_ahead(
    function: Callable[[_Item], _Result], examples: Iterable[tuple[int, _Item]], num_ahead: int
) -> Iterator[tuple[int, _Result]]:
    """The numbers of examples with what a function makes of each, in their order; at most `num_ahead` wait."""
    running: deque[tuple[int, Future[_Result]]] = deque()
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        try:
            for index, item in examples:
                running.append((index, threads.submit(function, item)))
                if len(running) > num_ahead:
                    index, future = running.popleft()
                    yield index, future.result()
            while running:
                index, future = running.popleft()
                yield index, future.result()
        finally:
            for _, future in running:
                future.cancel()
