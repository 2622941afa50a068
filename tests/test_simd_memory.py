"""The operations of `_memory`, which move elements between memory and lanes, each against NumPy indexing."""

from __future__ import annotations

import sys
from typing import Any

import numba
import numpy as np
import pytest
from guarded import guarded_empty

from fastloss._kernels import _memory
from fastloss._kernels._memory import SQUARE
from fastloss._kernels._simd import LANES, narrow

njit = numba.njit(error_model="numpy")
STORED = (np.float32, np.float64, np.int16, np.uint16)
COUNTS = range(1, LANES + 1)


def numbers(count: int, stored: Any) -> np.ndarray:
    """Return `count` distinct finite values; as 16-bit integers, the halves 1, 2, 3, ... or such bfloat16s."""
    values = np.arange(1, count + 1, dtype=np.float32)
    if stored == np.int16:
        return values.astype(np.float16).view(np.int16)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if stored == np.uint16 else values.astype(stored)


def widened(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.int16:
        return array.view(np.float16).astype(np.float32)
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


@njit
def _load_first(x: np.ndarray, offset: int, count: int, fill: float, result: np.ndarray) -> None:
    vector = _memory.load_first(_memory.pointer(x, (0,)), offset, count, fill)
    _memory.store(_memory.pointer(result, (0,)), 0, vector)


@pytest.mark.parametrize("count", range(LANES))
@pytest.mark.parametrize("stored", STORED)
def test_load_first(stored: Any, count: int) -> None:
    x = numbers(2 * LANES, stored)
    for fill in (-2.0, -np.inf, np.nan):
        result = np.zeros(LANES, widened(x).dtype)
        _load_first(x, 3, count, fill, result)
        np.testing.assert_array_equal(result[:count], widened(x)[3 : 3 + count])
        np.testing.assert_array_equal(result[count:], np.full(LANES - count, fill))


@njit
def _gather_and_scatter(x: np.ndarray, step: int, count: int, wide: np.ndarray, out: np.ndarray) -> None:
    vector = _memory.gather(_memory.pointer(x, (0,)), 32, step, count)
    _memory.store(_memory.pointer(wide, (0,)), 0, vector)
    _memory.scatter(_memory.pointer(out, (0,)), 32, step, vector, count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("step", [-2, 0, 1, 2])
@pytest.mark.parametrize("stored", STORED)
def test_gather_and_scatter(stored: Any, step: int, count: int) -> None:
    x = numbers(64, stored)
    wide, out = np.zeros(LANES, widened(x).dtype), np.zeros_like(x)
    _gather_and_scatter(x, step, count, wide, out)
    lanes = 32 + step * np.minimum(np.arange(LANES), count - 1)
    np.testing.assert_array_equal(wide, widened(x)[lanes])
    expected = np.zeros_like(x)
    expected[lanes] = x[lanes]
    np.testing.assert_array_equal(out, expected)


@njit
def _transpose(x: np.ndarray, out: np.ndarray) -> None:
    _memory.transpose(_memory.pointer(x, (0, 0)), x.shape[1], _memory.pointer(out, (0, 0)), out.shape[1])


@pytest.mark.parametrize("stored", STORED)
def test_transpose(stored: Any) -> None:
    x = numbers(SQUARE * 11, stored).reshape(SQUARE, 11)
    out = np.zeros((SQUARE, 13), widened(x).dtype)
    _transpose(x, out)
    np.testing.assert_array_equal(out[:, :SQUARE], widened(x)[:, :SQUARE].T)
    assert not out[:, SQUARE:].any()
    back = np.zeros_like(x)
    _transpose(out, back)
    np.testing.assert_array_equal(back[:, :SQUARE], x[:, :SQUARE])
    assert not back[:, SQUARE:].any()


@njit
def _store_first(x: np.ndarray, count: int, out: np.ndarray) -> None:
    _memory.store_first(_memory.pointer(out, (0,)), 3, _memory.load(_memory.pointer(x, (0,)), 0), count)


@pytest.mark.parametrize("count", range(LANES))
@pytest.mark.parametrize("stored", STORED)
def test_store_first(stored: Any, count: int) -> None:
    x, out = numbers(LANES, stored), np.zeros(2 * LANES, stored)
    _store_first(x, count, out)
    np.testing.assert_array_equal(out[3 : 3 + count], x[:count])
    assert not out[:3].any()
    assert not out[3 + count :].any()


@njit
def _store_two(x: np.ndarray, back: np.ndarray, streaming: bool) -> None:
    source, target = _memory.pointer(x, (0,)), _memory.pointer(back, (0,))
    first, second = _memory.load(source, 5), _memory.load(source, 5 + LANES)
    _memory.store_two(target, _memory.elements_to_line(target), first, second, streaming)
    _memory.fence()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("stored", STORED)
def test_store_two(stored: Any, streaming: bool) -> None:
    x, back = numbers(2 * LANES + 8, stored), np.zeros(6 * LANES, stored)
    _store_two(x, back, streaming)
    start = -back.ctypes.data % 64 // back.itemsize
    np.testing.assert_array_equal(back[start : start + 2 * LANES], x[5 : 5 + 2 * LANES])
    assert not back[:start].any()
    assert not back[start + 2 * LANES :].any()


@njit
def _class_indices(x: np.ndarray, step: int, count: int, classes: int, ignored: int, out: np.ndarray) -> None:
    labels = _memory.class_indices(_memory.pointer(x, (0,)), 32, step, count, classes, ignored)
    _memory.store(_memory.pointer(out, (0,)), 0, labels)


@pytest.mark.parametrize("step", [-2, 0, 1, 2])
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_class_indices(dtype: str, step: int) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    edges = [0, 1, 4, 5, 6, 7, 100, info.max, info.max - 99, info.min, info.max // 2 + 1]
    edges += [-1, -100] if info.min < 0 else []
    for count in (*COUNTS, 1000):
        x = np.array(rng.choice(np.array(edges, object), 64), dtype)
        for classes, ignored in ((5, -100), (5, 1), (6, 7), (1, 0), (2**31 - 1, -1), (101, int(info.min))):
            out = np.zeros(LANES, np.int32)
            _class_indices(x, step, count, classes, ignored, out)
            values = [int(x[32 + step * lane]) for lane in range(LANES)]
            absent = [v == ignored or lane >= count for lane, v in enumerate(values)]
            indices = [v if 0 <= v < classes else -2 for v in values]
            assert out.tolist() == [-1 if none else v for none, v in zip(absent, indices, strict=True)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_class_indices_are_read_up_to_the_ends_of_the_array(dtype: str) -> None:
    """One element more would be on an unreadable page."""
    for count in (*COUNTS, 1000):
        lanes = min(count, LANES)
        out = np.zeros(LANES, np.int32)
        back = 32 // max(lanes - 1, 1)
        for side, step, size in (("end", 1, 32 + lanes), ("end", 2, 31 + 2 * lanes), ("begin", -back, 33)):
            x = guarded_empty((size,), dtype, side)
            x[...] = 3
            _class_indices(x, step, count, 5, -100, out)
            assert out.tolist() == [3] * lanes + [-1] * (LANES - lanes)


@njit
def _lookup(table: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    labels = _memory.load(_memory.pointer(index, (0,)), 0)
    _memory.store(_memory.pointer(out, (0,)), 0, _memory.lookup(_memory.pointer(table, (0,)), labels))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lookup(dtype: type) -> None:
    table, out = np.arange(10, 20, dtype=dtype), np.zeros(LANES, dtype)
    index = np.resize(np.array([0, 9, -1, 3, -1, 5, 1, 9, 2], np.int32), LANES)
    _lookup(table, index, out)
    np.testing.assert_array_equal(out, table[np.maximum(index, 0)])


@njit
def _put_at(table: np.ndarray, index: np.ndarray, x: np.ndarray) -> None:
    lanes = _memory.load(_memory.pointer(index, (0,)), 0)
    _memory.put_at(_memory.pointer(table, (0,)), lanes, _memory.load(_memory.pointer(x, (0,)), 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_put_at(dtype: type) -> None:
    table, x = np.zeros(40, dtype), np.arange(1, LANES + 1, dtype=dtype)
    index = np.random.default_rng(0).permutation(40)[:LANES].astype(np.int32)
    expected = np.zeros(40, dtype)
    expected[index] = x
    _put_at(table, index, x)
    np.testing.assert_array_equal(table, expected)


@njit
def _integers(x: np.ndarray, number: int, out: np.ndarray, low: np.ndarray) -> bool:
    source = _memory.pointer(x, (0,))
    vector = _memory.load_integers(source, 3)
    _memory.store(_memory.pointer(out, (0,)), 0, vector)
    _memory.store(_memory.pointer(low, (0,)), 0, narrow(vector))
    return _memory.can_equal(source, number)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(info.min, info.max, LANES + 3, dtype, endpoint=True)
    x[3], x[4] = info.min, info.max
    out, low = np.zeros(LANES, np.int64), np.zeros(LANES, np.int32)
    assert _integers(x, -100, out, low) == (info.min < 0)
    assert _integers(x, 0, out, low)
    np.testing.assert_array_equal(out, x[3:].astype(np.int64))
    np.testing.assert_array_equal(low, x[3:].astype(np.int64).astype(np.int32))


@njit
def _stream(x: np.ndarray, out: np.ndarray) -> int:
    """Copy `x` to `out`: its whole cache lines by `stream`, what lies before and behind them one by one."""
    source, target = _memory.pointer(x, (0,)), _memory.pointer(out, (0,))
    first = min(_memory.elements_to_line(target), x.size)
    last = x.size - (x.size - first) % (2 * LANES)
    for i in range(first, last, LANES):
        _memory.stream(target, i, _memory.load(source, i))
    for i in range(x.size):
        if i < first or i >= last:
            _memory.put(target, i, _memory.load_one(source, i))
    _memory.fence()
    return first


@pytest.mark.parametrize("stored", STORED)
def test_stream_at_every_alignment(stored: Any) -> None:
    itemsize = np.dtype(stored).itemsize
    memory = np.zeros(4096 // itemsize, stored)
    x = numbers(200, stored)
    for start in range(64 // itemsize + 1):
        for size in (0, 1, 7, 31, 64, 100, 200):
            memory[...] = 0
            out = memory[start : start + size]
            first = _stream(x[:size], out)
            assert first == min(-out.ctypes.data % 64 // itemsize, size)
            np.testing.assert_array_equal(out, x[:size])
            assert not memory[:start].any()
            assert not memory[start + size :].any()


@njit
def _of_rows(x: np.ndarray, sums: np.ndarray, largest: np.ndarray) -> None:
    rows = _memory.pointer(x, (0, 0))
    _memory.store(_memory.pointer(sums, (0,)), 0, _memory.sums_of_rows(rows))
    _memory.store(_memory.pointer(largest, (0,)), 0, _memory.largest_of_rows(rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_a_square(dtype: type) -> None:
    x = np.random.default_rng(0).integers(-1000, 1000, (LANES, LANES)).astype(dtype)
    sums, largest = np.empty(LANES, dtype), np.empty(LANES, dtype)
    _of_rows(x, sums, largest)
    np.testing.assert_array_equal(sums, x.sum(axis=1))
    np.testing.assert_array_equal(largest, x.max(axis=1))


@njit
def _corner(x: np.ndarray, i: int, j: int, count: int) -> float:
    return _memory.load_one(_memory.advance(_memory.pointer(x, (i, j)), count), 0)


def test_pointers_follow_strides() -> None:
    x = np.arange(60, dtype=np.float64).reshape(6, 10)
    for view in (x, x.T, x[::-1, 1::3], x[::2, ::-1]):
        for i, j in np.ndindex(view.shape):
            assert _corner(view, i, j, 0) == view[i, j]
    assert _corner(x, 2, 3, 4) == x[2, 7]
