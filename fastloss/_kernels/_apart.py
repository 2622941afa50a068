"""What must be finished once it has begun, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def apart(task: Callable[[], Result]) -> Result:
    """Return `task()`, run by another thread: what a signal handler raises, as at Ctrl-C, cannot stop it half-way.

    It is raised when the task is done. Numba would not work again if it were stopped while it loads its own modules.
    """
    pool = ThreadPoolExecutor(1)
    try:
        future = pool.submit(task)
    except RuntimeError:  # the interpreter shuts down, and starts no more threads
        return task()
    with pool:
        return future.result()
