"""Memory for large results, used again once the tensor that held it is gone.

An array of many megabytes comes from the operating system in fresh pages, and to be handed those takes longer than a
kernel takes to fill them. So the memory of a result goes back to a pool when the last tensor or array that views it
dies, and the next result of about that size gets it. A request that nothing in the pool fits releases all of it, so the
pool never adds to a program's peak beyond what its results took at one time.
"""

from __future__ import annotations

import collections
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

SMALLEST_BYTES = 1 << 20
"""Memory from this size on is pooled; the C library keeps smaller pieces itself."""

LARGEST_BYTES = 1 << 32
"""The pool holds at most so many bytes."""

MOST_BLOCKS = 16
"""The pool holds at most so many blocks."""

LARGEST_SURPLUS = 1.05
"""A result gets a block of at most so many times its size."""

LINE = 64
"""Bytes of a cache line, on which a block begins: rows that are whole lines are written line by line."""

_free: collections.deque[np.ndarray] = collections.deque(maxlen=MOST_BLOCKS)
"""The blocks that no result uses. Appends and pops are atomic, so there is no lock that a fork could find held."""


def empty(shape: Sequence[int], strides: Sequence[int] | None, dtype: np.dtype[Any]) -> np.ndarray:
    """Return an uninitialised array with `strides` in bytes, C-contiguous where that is None."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST_BYTES:
        return np.ndarray(shape, dtype, strides=strides)
    return np.asarray(_Lease(_block(size + LINE), shape, strides, dtype))


class _Lease:
    """Lends a block as an array.

    NumPy makes an array of another array's memory depend on that other array alone, and forgets what is between. This
    is no array, so it lives as long as all that views the memory.
    """

    def __init__(
        self, block: np.ndarray, shape: Sequence[int], strides: Sequence[int] | None, dtype: np.dtype[Any]
    ) -> None:
        self.block = block
        interface = block.__array_interface__
        address, _ = interface["data"]
        self.__array_interface__ = {
            **interface,
            "data": (address + -address % LINE, False),
            "shape": tuple(shape),
            "strides": None if strides is None else tuple(strides),
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        if not sys.is_finalizing():
            _give_back(self.block)


def _block(size: int) -> np.ndarray:
    """Return a block of at least `size` bytes, from the pool if one fits."""
    for _ in range(len(_free)):
        try:
            block = _free.popleft()
        except IndexError:
            break
        if size <= block.nbytes <= LARGEST_SURPLUS * size:
            return block
        _free.append(block)
    release_memory()
    return np.empty(size, np.uint8)


def _give_back(block: np.ndarray) -> None:
    if held_memory() + block.nbytes <= LARGEST_BYTES:
        _free.append(block)


def held_memory() -> int:
    """Return how many bytes the pool holds that no result uses."""
    while True:
        try:
            return sum(block.nbytes for block in _free)
        except RuntimeError:  # another thread's result came or went
            continue


def release_memory() -> None:
    """Give what the pool holds back to the operating system."""
    _free.clear()
