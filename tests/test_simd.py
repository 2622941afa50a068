"""The operations of `_simd`, each against NumPy, lane by lane."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numba
import numpy as np
import pytest

from fastloss._kernels import _memory, _simd
from fastloss._kernels._simd import LANES

njit = numba.njit(error_model="numpy")
FLOATS = (np.float32, np.float64)
SPECIAL = [0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan, 3.0]
ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)
COMPARISONS = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)


def sources(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two vectors in which every pair of special values meets, and some others."""
    left, right = np.meshgrid(np.array(SPECIAL, dtype), np.array(SPECIAL, dtype))
    return left.ravel(), right.ravel()


def over_vectors(function: Any) -> Callable[..., None]:
    """Return `function` of two vectors as a function (left, right, result) of arrays."""

    @njit
    def loop(left: np.ndarray, right: np.ndarray, result: np.ndarray) -> None:
        a, b, target = _memory.pointer(left, (0,)), _memory.pointer(right, (0,)), _memory.pointer(result, (0,))
        for i in range(0, left.size, LANES):
            _memory.store(target, i, function(_memory.load(a, i), _memory.load(b, i)))

    return loop


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operation", ARITHMETIC, ids=lambda operation: operation.__name__)
def test_arithmetic(operation: Any, dtype: type) -> None:
    left, right = sources(dtype)
    result = np.empty_like(left)
    over_vectors(njit(lambda a, b: operation(a, b)))(left, right, result)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, operation(left, right))
        with_scalars = np.empty_like(left)
        over_vectors(njit(lambda a, b: operation(operation(2, a), 3.5)))(left, right, with_scalars)
        np.testing.assert_array_equal(with_scalars, operation(operation(dtype(2), left), dtype(3.5)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operation", COMPARISONS, ids=lambda operation: operation.__name__)
def test_comparisons_and_masks(operation: Any, dtype: type) -> None:
    left, right = sources(dtype)
    result = np.empty_like(left)
    over_vectors(njit(lambda a, b: _simd.select(operation(a, b), 1.0, a * 0.0 + 2.0)))(
        np.where(np.isfinite(left), left, 0).astype(dtype), right, result
    )
    finite = np.where(np.isfinite(left), left, 0).astype(dtype)
    np.testing.assert_array_equal(result, np.where(operation(finite, right), 1, 2))
    over_vectors(njit(lambda a, b: _simd.select(operation(a, b), a, b)))(left, right, result)
    np.testing.assert_array_equal(result, np.where(operation(left, right), left, right))
    over_vectors(njit(lambda a, b: _simd.select(operation(a, 1.5) & operation(b, 1.5), a, -7.0)))(left, right, result)
    np.testing.assert_array_equal(result, np.where(operation(left, 1.5) & operation(right, 1.5), left, -7.0))
    over_vectors(njit(lambda a, b: _simd.select(operation(a, 1.5) | operation(b, 1.5), -7.0, b)))(left, right, result)
    np.testing.assert_array_equal(result, np.where(operation(left, 1.5) | operation(right, 1.5), -7.0, right))


@pytest.mark.parametrize("dtype", FLOATS)
def test_negative_absolute_constant_and_multiply_add(dtype: type) -> None:
    left, right = sources(dtype)
    result = np.empty_like(left)
    for function, expected in (
        (lambda a, b: -a, -left),
        (lambda a, b: _simd.absolute(a), abs(left)),
        (lambda a, b: _simd.constant(a, 1.25), np.full_like(left, 1.25)),
        (lambda a, b: _simd.select(True, a, 0.0), left),
        (lambda a, b: _simd.select(False, 5, b), right),
    ):
        over_vectors(njit(function))(left, right, result)
        np.testing.assert_array_equal(result, expected)
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result[numbers]), np.signbit(expected[numbers]))
    a, b = np.arange(64, dtype=dtype), np.arange(64, dtype=dtype)[::-1].copy()
    over_vectors(njit(lambda a, b: _simd.multiply_add(a, b, 2.0)))(a, b, result)
    np.testing.assert_array_equal(result, a * b + 2)
    over_vectors(njit(lambda a, b: _simd.polynomial(a, (1.0, 2.0, 3.0, 4.0, 5.0))))(a % 16, b, result)
    np.testing.assert_array_equal(result, np.polynomial.polynomial.polyval(a % 16, [1, 2, 3, 4, 5]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits(dtype: type) -> None:
    left, right = sources(dtype)
    integers = np.int32 if dtype == np.float32 else np.int64
    result = np.empty_like(left)
    for function, expected in (
        (lambda a, b: _simd.from_bits(_simd.as_bits(a)), left.view(integers)),
        (lambda a, b: _simd.from_bits(_simd.add_bits(_simd.as_bits(a), 3)), left.view(integers) + integers(3)),
        (lambda a, b: _simd.from_bits(_simd.subtract_bits(_simd.as_bits(a), 3)), left.view(integers) - integers(3)),
        (lambda a, b: _simd.from_bits(_simd.and_bits(_simd.as_bits(a), 0xFF000)), left.view(integers) & 0xFF000),
        (lambda a, b: _simd.from_bits(_simd.shift_left(_simd.as_bits(a), 5)), left.view(integers) << 5),
        (
            lambda a, b: _simd.from_bits(_simd.shift_right(_simd.as_bits(a), 5)),
            (left.view(f"u{left.itemsize}") >> 5).view(integers),
        ),
    ):
        over_vectors(njit(function))(left, right, result)
        np.testing.assert_array_equal(result.view(integers), expected)


@njit
def _across(x: np.ndarray, result: np.ndarray) -> None:
    vector = _memory.load(_memory.pointer(x, (0,)), 0)
    result[0], result[1] = _simd.sum_lanes(vector), _simd.max_lanes(vector)
    result[2], result[3] = _simd.sum_lanes(_simd.lane_numbers()), _simd.max_lanes(_simd.lane_numbers())
    wide = _simd.widen(vector)
    result[4] = _simd.sum_lanes(wide)
    _memory.store(_memory.pointer(result, (8,)), 0, wide)


@pytest.mark.parametrize("dtype", FLOATS)
def test_across_lanes(dtype: type) -> None:
    for seed in range(20):
        x, result = np.random.default_rng(seed).normal(size=LANES).astype(dtype), np.zeros(8 + LANES)
        _across(x, result)
        parts = x
        while parts.size > 1:
            parts = parts[: parts.size // 2] + parts[parts.size // 2 :]
        np.testing.assert_array_equal(result[:4], [parts[0], x.max(), np.arange(LANES).sum(), LANES - 1])
        assert result[4] == pytest.approx(np.float64(x).sum(), rel=1e-15, abs=1e-15)
        np.testing.assert_array_equal(result[8:], x)


@njit
def _every_half(bits: np.ndarray, wide: np.ndarray, one_by_one: np.ndarray) -> None:
    source, target = _memory.pointer(bits, (0,)), _memory.pointer(wide, (0,))
    for i in range(0, bits.size, LANES):
        _memory.store(target, i, _memory.load(source, i))
        for k in range(i, i + LANES):
            one_by_one[k] = _memory.load_one(source, k)


@njit
def _narrowed(wide: np.ndarray, bits: np.ndarray, one_by_one: np.ndarray) -> None:
    source, target, ones = _memory.pointer(wide, (0,)), _memory.pointer(bits, (0,)), _memory.pointer(one_by_one, (0,))
    for i in range(0, wide.size, LANES):
        _memory.store(target, i, _memory.load(source, i))
        for k in range(i, i + LANES):
            _memory.put(ones, k, wide[k])


HALVES = [pytest.param(np.float16, np.int16, id="float16"), pytest.param(ml_dtypes.bfloat16, np.uint16, id="bfloat16")]


@pytest.mark.parametrize(("half", "stored"), HALVES)
def test_every_half_widens(half: Any, stored: Any) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide, one_by_one = np.empty(2**16, np.float32), np.empty(2**16, np.float32)
    _every_half(bits.view(stored), wide, one_by_one)
    with np.errstate(invalid="ignore"):  # signalling nan
        expected = bits.view(half).astype(np.float32)
    np.testing.assert_array_equal(wide, expected)
    np.testing.assert_array_equal(one_by_one, expected)
    np.testing.assert_array_equal(np.signbit(wide), np.signbit(expected))


@pytest.mark.parametrize(("half", "stored"), HALVES)
def test_float32_narrows_to_nearest_even(half: Any, stored: Any) -> None:
    """Every half and the midpoint behind it, each with its neighbours in float32; random bits; nan and overflow."""
    with np.errstate(invalid="ignore", over="ignore"):
        every = np.arange(2**16, dtype=np.uint16).view(half).astype(np.float32)
        every = every[np.isfinite(every)]
        following = np.nextafter(every.astype(half), half(np.inf)).astype(np.float32)
        middle = ((every.astype(np.float64) + following) / 2).astype(np.float32)
        points = np.concatenate([every, middle, np.array([65519.996, 65520, 3.4e38, 3.3961776e38, np.inf], np.float32)])
        near = [np.nextafter(points, np.float32(-np.inf)), points, np.nextafter(points, np.float32(np.inf))]
        random = np.random.default_rng(0).integers(0, 2**32, 2**17, dtype=np.uint32).view(np.float32)
        payloads = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
        wide = np.concatenate([payloads, *near, -points, random])
        wide = wide[: wide.size // LANES * LANES]
        expected = wide.astype(half)
    bits, one_by_one = np.empty(wide.size, stored), np.empty(wide.size, stored)
    _narrowed(wide, bits, one_by_one)
    nan = np.isnan(wide)
    assert np.isnan(bits.view(half)[nan].astype(np.float32)).all()
    assert np.isnan(one_by_one.view(half)[nan].astype(np.float32)).all()
    np.testing.assert_array_equal(bits[~nan], expected.view(stored)[~nan])
    np.testing.assert_array_equal(one_by_one[~nan], expected.view(stored)[~nan])


@pytest.mark.skipif(not _simd.looks_up(), reason="this CPU does not look up lanes in a register")
def test_looked_up_in_eight() -> None:
    table = (3, -1, 4, -1, 5, -9, 2**31 - 1, -(2**31))

    @njit
    def both(numbers: np.ndarray, wide: np.ndarray, one_by_one: np.ndarray) -> None:
        source, target = _memory.pointer(numbers, (0,)), _memory.pointer(wide, (0,))
        for i in range(0, numbers.size, LANES):
            lanes = _simd.looked_up(table, _simd.as_bits(_memory.load(source, i)))
            _memory.store(target, i, _simd.from_bits(lanes))
        for i in range(numbers.size):
            one_by_one[i] = _simd.looked_up(table, np.int32(_simd.as_bits(numbers[i])))

    numbers = np.concatenate([np.arange(-40, 40), np.random.default_rng(0).integers(-(2**31), 2**31, 16 * LANES)])
    numbers = numbers.astype(np.int32)
    wide, one_by_one = np.empty(numbers.size, np.float32), np.empty(numbers.size, np.int32)
    both(numbers.view(np.float32), wide, one_by_one)
    expected = np.array(table, np.int32)[numbers % 8]
    np.testing.assert_array_equal(wide.view(np.int32), expected)
    np.testing.assert_array_equal(one_by_one, expected)
