"""From sums over rows or elements to the reduced loss, and from a reduction to the scale of the gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LARGEST_FLOAT16 = 65504.0
"""Whatever is no larger is in the range of every dtype."""


def denominator(reduction: str, weights: np.ndarray | None, elements: int, batch: int) -> float:
    """Return what `reduction` divides the sum of the losses of so many `elements` of a `batch` by.

    The mean divides by the sum of the weights, 1 for each element without them.
    """
    if reduction == "mean":
        return sum_of_weights(weights, elements)
    return float(batch) if reduction == "batchmean" else 1.0


def ratio(numerator: float, divisor: float) -> float:
    """Return numerator / divisor in IEEE arithmetic: nan for 0 / 0, inf for others by 0."""
    return numerator / divisor if divisor else numerator * math.inf


def in_dtype(loss: float | np.ndarray, dtype: np.dtype[Any]) -> Any:
    """Return the loss as a scalar or an array of `dtype`; inf where it is too large for it."""
    if type(loss) is float and -LARGEST_FLOAT16 <= loss <= LARGEST_FLOAT16:
        return dtype.type(loss)  # the context below would take a tenth of a small call
    with np.errstate(all="ignore"):
        return loss.astype(dtype, copy=False)[()] if isinstance(loss, np.ndarray) else dtype.type(loss)


def soft_mass(spread: float, class_weight: np.ndarray | None, classes: int, accumulator: np.dtype[Any]) -> float:
    """Return the sum over the classes of spread * weight, rounded as the kernels round what it must cancel."""
    term = accumulator.type(spread)
    return float(term) * classes if class_weight is None else sum_of_weights(term * class_weight, classes)


def sum_of_weights(weights: np.ndarray | None, elements: int) -> float:
    """Return the sum of the weights, 1 for each of the `elements` without them."""
    if weights is None:
        return float(elements)
    once = weights[tuple(slice(None) if stride else slice(1) for stride in weights.strides)]  # not what is broadcast
    return float(np.sum(once, dtype=np.float64)) * (elements / once.size if once.size else 0.0)
