"""Reading the next pieces of a batch while one is in work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def read_ahead(read: Callable[[int], _T], count: int, *, ahead: int) -> Generator[_T, None, None]:
    """``read(0)``, ``read(1)``, … ``read(count - 1)``, called in this order by a thread.

    Args:
        read: of a piece by its number.
        count: how many there are.
        ahead: pieces that are read while one is in work; memory for so many more.
    """
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(1, "read") as thread:
        try:
            for number in range(count):
                waiting.append(thread.submit(read, number))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # an error, or nobody wants the rest
            for future in waiting:
                future.cancel()
