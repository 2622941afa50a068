"""When a kernel runs on the calling thread, when on all, and how work is cut into blocks: the one place that knows."""

from __future__ import annotations

import os
import threading
from typing import Any

import numba

SERIAL_ELEMENTS = 1 << 15
"""Below so many elements the calling thread is faster alone: starting the others costs 3 to 10 microseconds."""

BLOCK_ELEMENTS = 1 << 13
"""A block has at least so many elements, which take some microseconds,"""

BLOCKS = 512
"""and there are at most so many blocks, enough to keep 64 threads evenly busy."""

_limit = threading.local()
"""Its `threads` is the most that calls of this Python thread may use; without it, as many as Numba has."""

_launch = threading.Lock()
"""Numba's workqueue layer aborts the process when two threads launch parallel work at once."""

_alone = False
"""Whether this process was forked from one whose threads, of a layer other than tbb, it cannot use."""


def _after_fork_in_child() -> None:
    """Run serially from now on where the parent's threading layer would kill this process or hang."""
    global _alone, _launch
    _launch = threading.Lock()
    _alone = _alone or _threading_layer() not in (None, "tbb")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def block_length(units: int, elements_per_unit: int) -> int:
    """Return how many of `units` pieces of work make a block, which depends on the shape alone."""
    return max(-(-units // BLOCKS), -(-BLOCK_ELEMENTS // max(elements_per_unit, 1)), 1)


def block_count(units: int, length: int) -> int:
    """Return how many blocks of `length` units there are, at least one."""
    return max(-(-units // length), 1)


class at_most:
    """A context in which kernels that this Python thread runs use at most so many threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        self._outer = getattr(_limit, "threads", None)
        _limit.threads = self._threads

    def __exit__(self, *exception: object) -> None:
        _limit.threads = self._outer


def run(kernel: Any, elements: int, *arguments: Any) -> None:
    """Call `kernel` on all threads where its `elements` are worth it, else on the calling thread."""
    if elements < SERIAL_ELEMENTS or _alone:
        kernel.serial(*arguments)
        return
    available = numba.get_num_threads()
    threads = min(getattr(_limit, "threads", None) or available, available)
    if threads == 1:
        kernel.serial(*arguments)
    elif threads == available:
        _launched(kernel, arguments)
    else:
        numba.set_num_threads(threads)
        try:
            _launched(kernel, arguments)
        finally:
            numba.set_num_threads(available)


def _launched(kernel: Any, arguments: tuple[Any, ...]) -> None:
    if _threading_layer() in ("tbb", "omp"):
        kernel.parallel(*arguments)
    else:
        with _launch:
            kernel.parallel(*arguments)


def _threading_layer() -> str | None:
    """Return the name of Numba's threading layer, None before its first parallel call has chosen one."""
    try:
        name: str = numba.threading_layer()  # type: ignore[attr-defined]  # public, but not in numba's __all__
        return name
    except ValueError:
        return None
