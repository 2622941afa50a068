"""A kernel does each of its blocks once, on one thread and on all."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from fastloss import _threads
from fastloss._kernels import _blocks

launchers = pytest.mark.parametrize("all_threads", [False, True])


@numba.njit(nogil=True)
def _count(launcher: int, blocks: int, block: int, step: float, absent: Any, counts: np.ndarray) -> None:
    if _blocks.distributed(launcher, blocks, block):
        return
    if absent is None:
        counts[block] += step
    if block == 30:
        raise ValueError("block 30")


def launcher(all_threads: bool) -> int:
    assert _threads._started()
    return _blocks.launcher() if all_threads else 0


@launchers
@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 29])
def test_each_block_is_done_once(blocks: int, all_threads: bool) -> None:
    counts = np.zeros(30)
    _count(launcher(all_threads), blocks, -1, 0.5, None, counts)
    assert counts.tolist() == [0.5] * blocks + [0.0] * (30 - blocks)


def test_one_block_alone() -> None:
    counts = np.zeros(30)
    _count(0, 30, 4, 1.0, None, counts)
    assert np.flatnonzero(counts).tolist() == [4]


@launchers
def test_an_exception_of_a_block_reaches_the_caller(all_threads: bool) -> None:
    with pytest.raises(ValueError, match="block 30"):
        _count(launcher(all_threads), 100, -1, 1.0, None, np.zeros(100))


def test_arrays_of_blocks_have_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that counted references to one owner would wait for each other: all arrays are known by their parts."""
    owners = []

    def is_owner(argument: Any, know: Any = _blocks._owns_memory) -> bool:
        if know(argument):
            owners.append(argument.name)
        return know(argument)

    monkeypatch.setattr(_blocks, "_owns_memory", is_owner)

    @numba.njit
    def kernel(launcher: int, blocks: int, block: int, x: Any, pair: Any, absent: Any, labels: Any) -> None:
        if _blocks.distributed(launcher, blocks, block):
            return
        x[0, block] += pair[0] + labels[block]

    x = np.zeros((1, 3))
    kernel(0, 3, -1, x, (1.0, 2.0), None, np.arange(3, dtype=np.int8))
    assert owners == ["arg.x.0", "arg.labels.0"]
    assert x.tolist() == [[1.0, 2.0, 3.0]]
