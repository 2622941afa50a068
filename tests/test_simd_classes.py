"""The operations of `_classes`, on a vector for each of few classes."""

from __future__ import annotations

import sys
from typing import Any

import numba
import numpy as np
import pytest
from guarded import guarded_empty
from test_simd_memory import STORED, numbers, widened

from fastloss._kernels import _classes, _memory
from fastloss._kernels._simd import LANES

njit = numba.njit(error_model="numpy")


@numba.njit
def _count_and_add(c: int, count: int, vector: Any, given: Any) -> Any:
    return count + 1, vector + (given + c)


@njit
def _there_and_back(x: np.ndarray, classes: Any, given: float, sums: np.ndarray, back: np.ndarray) -> int:
    vectors = _classes.load_classes(_memory.pointer(x, (0,)), classes)
    _classes.store_classes(_memory.pointer(back, (0,)), vectors)
    count, added = _classes.unrolled(_count_and_add, 0, vectors, given)
    _classes.store_classes(_memory.pointer(sums, (0,)), added)
    return count


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 23])
def test_rows_to_classes_and_back(classes: int, stored: Any) -> None:
    """Neither what lies before the rows nor what lies behind them is touched: it would be on an unreadable page."""
    expected = numbers(LANES * classes, stored)
    sums = np.zeros(LANES * classes, widened(expected).dtype)
    for side in ("begin", "end"):
        x, back = (guarded_empty((LANES * classes,), stored, side) for _ in range(2))
        x[...] = expected
        assert _there_and_back(x, (None,) * classes, 0.5, sums, back) == classes
        np.testing.assert_array_equal(back, expected)
        by_class = widened(expected).reshape(LANES, classes) + (0.5 + np.arange(classes))
        np.testing.assert_array_equal(sums, by_class.astype(sums.dtype).ravel())
