"""Tolerances of values against the oracles and the peers, in units of the last place of the dtype under test."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from oracles import exact

ULPS = 3.0
"""What the largest error of a result may exceed a peer's by."""


def epsilon(dtype: Any) -> float:
    """Return the distance from 1 to the next number of `dtype`."""
    return float(ml_dtypes.finfo(dtype).eps)


def tiny(dtype: Any) -> float:
    """Return the smallest positive number of `dtype`, the unit in the last place of all that is as small."""
    return float(ml_dtypes.finfo(dtype).smallest_subnormal)


def rounded(truth: np.ndarray, dtype: Any) -> np.ndarray:
    """Return `truth` as `dtype` holds it: what is too large is infinite."""
    with np.errstate(over="ignore"):
        return exact(truth.astype(dtype))


def assert_same_specials(ours: np.ndarray, truth: np.ndarray, dtype: Any) -> np.ndarray:
    """Assert that nan and the infinities are where the truth's are; return where it is finite."""
    expected = rounded(truth, dtype)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected))
    np.testing.assert_array_equal(np.where(np.isinf(ours), ours, 0), np.where(np.isinf(expected), expected, 0))
    return np.isfinite(expected)


def largest_error(values: np.ndarray, truth: np.ndarray, finite: np.ndarray) -> np.longdouble:
    """Return the largest |values - truth| where the truth is `finite`, inf where a value is not."""
    errors = np.abs(values[finite] - truth[finite])
    return np.max(np.where(np.isnan(errors), np.inf, errors), initial=0)


def assert_no_worse(ours: Any, peer: Any, truth: Any, dtype: Any, ulps: float = ULPS) -> None:
    """Assert that our largest error exceeds the peer's by at most `ulps` units of eps times the largest |truth|."""
    assert np.asarray(ours).dtype == dtype
    assert np.shape(ours) == np.shape(truth)
    ours, peer, truth = exact(ours), exact(peer), exact(truth)
    finite = assert_same_specials(ours, truth, dtype)
    allowed = ulps * max(epsilon(dtype) * np.max(np.abs(truth[finite]), initial=0), tiny(dtype))
    error, peers_error = largest_error(ours, truth, finite), largest_error(peer, truth, finite)
    assert error <= peers_error + allowed, f"error {error}, the peer's {peers_error}, beyond it allowed {allowed}"


def assert_agree(ours: Any, expected: Any, dtype: Any, ulps: float = 2 * ULPS) -> None:
    """Assert that two ways to compute the same differ by at most `ulps` units of eps times the largest element."""
    assert_no_worse(ours, expected, expected, dtype, ulps)


def assert_close(ours: Any, truth: Any, dtype: Any, ulps: float = ULPS) -> None:
    """Assert that every element has a relative error of at most `ulps` units of eps, however small it is."""
    assert np.asarray(ours).dtype == dtype
    assert np.shape(ours) == np.shape(truth)
    ours, truth = exact(ours), exact(truth)
    finite = assert_same_specials(ours, truth, dtype)
    errors = np.abs(ours[finite] - truth[finite])
    allowed = ulps * np.maximum(epsilon(dtype) * np.abs(truth[finite]), tiny(dtype))
    assert np.all(errors <= allowed), f"error {np.max(errors - allowed)} more than allowed"
