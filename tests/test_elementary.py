"""exp, log and their kin: each docstring's bound on the error in ulps, and what is exact."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest

from fastloss._kernels import elementary
from fastloss._kernels._memory import load, pointer, store, zeros_like
from fastloss._kernels._simd import LANES, constant, looks_up

Function = Callable[[np.ndarray], np.ndarray]
DTYPES = (np.float32, np.float64)


def wrapped(kernel: Any) -> tuple[Function, Function]:
    """Return `kernel` as functions of arrays: (vectors, scalars), compiled for either dtype at the first call."""

    @numba.njit(nogil=True, error_model="numpy")
    def on_vectors(x: np.ndarray, result: np.ndarray) -> None:
        source, target = pointer(x, (0,)), pointer(result, (0,))
        for i in range(0, x.size, LANES):
            store(target, i, kernel(load(source, i)))

    @numba.njit(nogil=True, error_model="numpy")
    def on_scalars(x: np.ndarray, result: np.ndarray) -> None:
        for i in range(x.size):
            result[i] = kernel(x[i])

    def function_of(implementation: Any) -> Function:
        def function(x: np.ndarray) -> np.ndarray:
            padded = np.zeros(-(-x.size // LANES) * LANES, x.dtype)
            padded[: x.size] = x
            result = np.empty_like(padded)
            implementation(padded, result)
            return result[: x.size]

        return function

    return function_of(on_vectors), function_of(on_scalars)


@numba.njit
def _exp_unscaled(x: Any) -> Any:
    return elementary.exp_scaled(x) * elementary.unscale(x)


@numba.njit
def _log_of_inverse(x: Any) -> Any:
    return elementary.log_of_ratio(constant(x, 1), x)


@numba.njit
def _log_of_ratio(x: Any) -> Any:
    return elementary.log_of_ratio(constant(x, DIVIDEND), x)


DIVIDEND = 0.703125
"""A number that both dtypes hold, near the square root of 1 / 2."""

PARTS = {
    "exp_scaled": ("exp_scaled", _exp_unscaled),
    "log_of_inverse": ("log_of_ratio", _log_of_inverse),
    "log_of_ratio": ("log_of_ratio", _log_of_ratio),
}
"""What is tested in the place of a function: (the function, what makes it one of a single number)."""

NAMES = (
    "exp", "exp_scaled", "log", "log_of_normal", "log_of_inverse", "log_of_ratio", "log1p_of_sum",
    "decay", "log1p_of_fraction", "sigmoid", "softplus",
)  # fmt: skip
FUNCTIONS = {name: wrapped(PARTS[name][1] if name in PARTS else getattr(elementary, name)) for name in NAMES}
EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "exp_scaled": np.exp,
    "log": np.log,
    "log_of_normal": np.log,
    "log_of_inverse": lambda x: -np.log(x),
    "log_of_ratio": lambda x: np.log1p((DIVIDEND - x) / x),
    "log1p_of_sum": np.log1p,
    "decay": lambda x: np.exp(-abs(x)),
    "log1p_of_fraction": np.log1p,
    "sigmoid": lambda x: np.where(x < 0, np.exp(-abs(x)), 1) / (1 + np.exp(-abs(x))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x))),
}
SMALLEST = np.float64(5e-324)  # not a number of Python, which would become 0 in float32
DOMAIN = {
    "exp_scaled": (-np.inf, 0.0),
    "log": (0.0, np.inf),
    "log_of_normal": (float(np.finfo(np.float32).tiny), np.inf),
    "log_of_inverse": (SMALLEST, 1.0),
    "log_of_ratio": (SMALLEST, DIVIDEND),
    "log1p_of_sum": (0.0, np.inf),
    "log1p_of_fraction": (0.0, 1.0),
}
extended = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="longdouble is no wider than float64 here: nothing to compare with"
)


def stated_bound(name: str, x: Any = 0.0) -> Any:
    """Return the largest error at x in ulps that the function's docstring states."""
    text = getattr(elementary, PARTS[name][0] if name in PARTS else name).__doc__
    stated = re.search(r"(\d+(?:\.\d+)?) ulp(?: and by eighths \|x\| / (\d+) ulp)?", text)
    assert stated is not None, f"the docstring of {name} states no bound"
    bound = float(stated[1])
    assert bound <= (2 if name in ("exp", "exp_scaled", "log") else 3)
    by_eighths = looks_up() and np.asarray(x).dtype == np.float32
    return bound + abs(x) / float(stated[2]) if stated[2] and by_eighths else bound


def error_in_ulps(result: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return |result - exact| in units of the last place of `exact` in the dtype of `result`; 0 where both overflow."""
    info = np.finfo(result.dtype)
    with np.errstate(all="ignore"):
        ulp = np.ldexp(exact.dtype.type(1), np.maximum(np.frexp(exact)[1] - 1, info.minexp) - info.nmant)
        error = abs(result.astype(exact.dtype) - exact) / ulp
        return np.where(np.isinf(result) & (result.astype(exact.dtype) == exact.astype(result.dtype)), 0, error)


def sample(name: str, dtype: type) -> np.ndarray:
    """Return points all over the function's domain, dense where its formula changes."""
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**info.bits, 200_000, dtype=f"u{info.bits // 8}").view(dtype)
    tiny, huge = np.log2(float(info.smallest_subnormal)), np.log2(float(info.max))
    logarithmic = np.exp2(rng.uniform(tiny, huge, 200_000)).astype(dtype)
    thresholds = (info.max, info.tiny, info.smallest_subnormal, info.smallest_subnormal / dtype(4))
    edges = [0.0, 1.0, 0.5, 2.0, -1.0, 0.3465735903, 17.0, 37.0, 88.0, 709.0]
    with np.errstate(all="ignore"):
        edges += [float(np.log(np.longdouble(value))) for value in thresholds if value > 0]
    steps = (dtype(1) + np.arange(-2000, 2000).astype(dtype) * info.eps) * np.array(edges, dtype)[:, None]
    uniform = rng.uniform(-1.0, 1.0, 200_000).astype(dtype)
    reach = uniform * dtype(1.1 * (info.maxexp + info.nmant) * np.log(2))
    points = np.concatenate([bits, logarithmic, -logarithmic, steps.ravel(), uniform, 1 + uniform / 64, reach])
    low, high = DOMAIN.get(name, (-np.inf, np.inf))
    return points[np.isfinite(points) & (points >= low) & (points <= high)].astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_vectors_and_scalars_give_the_same_bits(name: str, dtype: type) -> None:
    x = np.concatenate([sample(name, dtype), np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.5], dtype)])
    on_vectors, on_scalars = (function(x) for function in FUNCTIONS[name])
    assert on_vectors.dtype == on_scalars.dtype == dtype
    np.testing.assert_array_equal(on_vectors, on_scalars)
    numbers = ~np.isnan(on_vectors)
    np.testing.assert_array_equal(np.signbit(on_vectors[numbers]), np.signbit(on_scalars[numbers]))


@extended
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_within_the_stated_bound(name: str, dtype: type) -> None:
    x = sample(name, dtype)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.longdouble))
    errors = error_in_ulps(FUNCTIONS[name][0](x), exact)
    worst = int(np.argmax(errors - stated_bound(name, x)))
    assert errors[worst] <= stated_bound(name, x[worst]), f"{errors[worst]:.4f} ulp at {float(x[worst])!r}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_error_against_mpmath(name: str, dtype: type) -> None:
    """A thousand points whose exact values owe nothing to the C library."""
    mpmath = pytest.importorskip("mpmath")
    x = np.random.default_rng(1).choice(sample(name, dtype), 1000)
    with mpmath.workdps(60):
        exact_of = {
            "exp": mpmath.exp,
            "exp_scaled": mpmath.exp,
            "log": lambda v: mpmath.log(v) if v else -mpmath.inf,
            "log_of_normal": mpmath.log,
            "log_of_inverse": lambda v: -mpmath.log(v),
            "log_of_ratio": lambda v: mpmath.log(DIVIDEND / v),
            "decay": lambda v: mpmath.exp(-abs(v)),
            "log1p_of_sum": mpmath.log1p,
            "log1p_of_fraction": mpmath.log1p,
            "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
            "softplus": lambda v: max(v, 0) + mpmath.log1p(mpmath.exp(-abs(v))),
        }[name]
        info = np.finfo(dtype)
        for value, result in zip(x, FUNCTIONS[name][0](x), strict=True):
            exact = exact_of(mpmath.mpf(float(value)))
            if np.isinf(result):
                assert abs(exact) > float(info.max)
                continue
            exponent = max(mpmath.frexp(exact)[1] - 1 if exact else info.minexp, info.minexp)
            error = abs(mpmath.mpf(float(result)) - exact) / mpmath.ldexp(1, exponent - info.nmant)
            assert error <= float(stated_bound(name, value)), f"{float(error):.4f} ulp at {float(value)!r}"


@numba.njit(error_model="numpy")
def _sums_of_logs(x: np.ndarray, result: np.ndarray) -> None:
    """Put the sums of log(1 + x) over the rows of `x` into `result`, a vector of them."""
    growth = load(pointer(x, (0, 0)), 0)
    for i in range(1, x.shape[0]):
        growth = elementary.compounded(growth, load(pointer(x, (i, 0)), 0))
    store(pointer(result, (0,)), 0, elementary.log1p_of_sum(growth))


@extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithm_of_a_product(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for terms, low in itertools.product((1, 2, 3, 16), (-140, -60, -20, -1)):
        for _ in range(100):
            x = np.exp2(rng.uniform(low, rng.uniform(low, 4), (terms, LANES))).astype(dtype)
            result = np.empty(LANES, dtype)
            _sums_of_logs(x, result)
            assert error_in_ulps(result, np.log1p(x.astype(np.longdouble)).sum(0)).max() <= terms + 1
    for special in (0.0, np.nan):
        x = np.zeros((terms, LANES), dtype)
        x[terms // 2] = special
        _sums_of_logs(x, result)
        np.testing.assert_array_equal(result, x[terms // 2])


@numba.njit(error_model="numpy")
def _sums_of_logs_of_ratios(a: np.ndarray, b: np.ndarray, result: np.ndarray) -> None:
    """Put the sums of log(1 + a / b) over the rows of `a` and `b` into `result`, a vector of them."""
    zero = zeros_like(pointer(a, (0, 0)))
    numerator, denominator = zero, constant(zero, 1)
    for i in range(a.shape[0]):
        over, under = load(pointer(a, (i, 0)), 0), load(pointer(b, (i, 0)), 0)
        numerator, denominator = elementary.compounded_ratio(numerator, denominator, over, under, over + under)
    store(pointer(result, (0,)), 0, elementary.log1p_of_sum(numerator / denominator))


@extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithm_of_a_product_of_ratios(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for terms, low in itertools.product((1, 2, 3, 32), (-140, -60, -20, -2)):
        for _ in range(100):
            a = np.exp2(rng.uniform(low, rng.uniform(low, -1), (terms, LANES))).astype(dtype)
            for b in (np.ones_like(a), 1 - a):
                result = np.empty(LANES, dtype)
                _sums_of_logs_of_ratios(a, b, result)
                exact_ratios = a.astype(np.longdouble) / b
                assert error_in_ulps(result, np.log1p(exact_ratios).sum(0)).max() <= terms + 3


@extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_exponentials_are_normal_where_they_matter(dtype: type) -> None:
    """They can be multiplied by what is large: down to half the smallest subnormal they are right, then no larger."""
    info = np.finfo(dtype)
    half_of_smallest = np.log(np.longdouble(info.smallest_subnormal)) - np.log(np.longdouble(2))
    steps = np.linspace(float(half_of_smallest) - 3, float(half_of_smallest) + 3, 20_001).astype(dtype)
    x = np.concatenate([steps, sample("exp_scaled", dtype)])
    matters = x >= half_of_smallest
    for function in wrapped(elementary.exp_scaled):
        result = function(x).astype(np.longdouble)
        exact = np.exp(x.astype(np.longdouble)) * 2.0 ** (info.nmant + 2)
        assert (result[matters] >= info.tiny).all()
        allowed = stated_bound("exp_scaled", x) * info.eps * exact
        assert (abs(result - exact) <= allowed)[matters].all()
        assert ((result >= 0) & (result <= exact + allowed))[~matters].all()


INF, NAN = np.inf, np.nan
SPECIAL = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (NAN, NAN), (1e30, INF), (-1e30, 0.0)],
    "exp_scaled": [(0.0, 1.0), (-0.0, 1.0), (-INF, 0.0), (NAN, NAN), (-1e30, 0.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-INF, NAN), (NAN, NAN), (1.0, 0.0), (-1.0, NAN), (-1e-40, NAN)],
    "log_of_normal": [(1.0, 0.0), (NAN, NAN)],
    "log_of_inverse": [(1.0, 0.0)],
    "log_of_ratio": [(DIVIDEND, 0.0)],
    "log1p_of_sum": [(0.0, 0.0), (NAN, NAN)],
    "decay": [(0.0, 1.0), (-0.0, 1.0), (INF, 0.0), (-INF, 0.0), (NAN, NAN)],
    "log1p_of_fraction": [(0.0, 0.0), (NAN, NAN)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (NAN, NAN), (1e30, 1.0), (-1e30, 0.0)],
    "softplus": [(INF, INF), (-INF, 0.0), (NAN, NAN), (1e30, 1e30), (-1e30, 0.0)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str, dtype: type) -> None:
    x, expected = np.array(SPECIAL[name], dtype).T.copy()
    for function in FUNCTIONS[name]:
        result = function(x)
        np.testing.assert_array_equal(result, expected)
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result[numbers]), np.signbit(expected[numbers]))


@numba.njit(error_model="numpy")
def _logs_of_ratios(a: np.ndarray, b: np.ndarray, result: np.ndarray) -> None:
    for i in range(a.size):
        result[i] = elementary.log_of_ratio(a[i], b[i])


@extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithm_of_any_ratio(dtype: type) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0.5, 1.0, 1_000_000).astype(dtype)
    ratios = np.concatenate([1 - np.exp2(rng.uniform(-22, 0, a.size // 2)), rng.uniform(0.4, 1.0, a.size // 2)])
    b = np.minimum(a, (a * ratios).astype(dtype))
    result = np.empty_like(a)
    _logs_of_ratios(a, b, result)
    exact = np.log1p((a.astype(np.longdouble) - b) / b)
    assert error_in_ulps(result, exact).max() <= stated_bound("log_of_ratio")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ratio_to_zero_is_above_all_others(dtype: type) -> None:
    largest = -float(np.log(np.longdouble(np.finfo(dtype).smallest_subnormal)))
    for name in ("log_of_inverse", "log_of_ratio"):
        for function in FUNCTIONS[name]:
            assert (largest < function(np.array([0.0, -0.0], dtype))).all()
            assert (function(np.array([0.0, -0.0], dtype)) < np.inf).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exp", "log"])
def test_every_float32(name: str) -> None:
    """All 2**32 bit patterns for exp, all positive ones for log, within the stated bound of NumPy's float64."""
    function, exact = FUNCTIONS[name][0], EXACT[name]
    chunk = 1 << 17

    def worst(start: int) -> float:
        x = np.arange(start, start + chunk, dtype=np.uint32).view(np.float32)
        result = function(x)
        with np.errstate(all="ignore"):
            first, last = exact(x[[0, -1]].astype(np.float64)).astype(np.float32)
            if first == last and (result == first).all():  # and so is what lies between, for it is monotonic
                return 0.0
            expected = exact(x.astype(np.float64))
            inexact = result != expected.astype(np.float32)
            result, expected = result[inexact], expected[inexact]
            assert np.array_equal(np.isnan(result), np.isnan(expected))
            units = np.maximum(abs(expected).view(np.int64) >> 52, 1023 - 126)
            error = abs(result - expected) * ((2 * 1023 + 23 - units) << 52).view(np.float64)
        return float(np.nanmax(error, initial=0.0))

    function(np.zeros(8, np.float32))
    starts = range(0, 2**32 if name == "exp" else 0x7F800000, chunk)
    with ThreadPoolExecutor(2) as threads:
        assert max(threads.map(worst, starts)) <= stated_bound(name)
