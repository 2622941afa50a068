"""The truth: each loss and its gradient in float64, written to be read, and the distance of a result from it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from .cases import Case, dtype_of, inputs_of


class Result(NamedTuple):
    """What a provider computes: a loss, or log_softmax's array; and the gradient, except in the forward mode."""

    loss: Any
    gradient: Any = None


class Errors(NamedTuple):
    """The largest distances of a result from the truth, in ulps: of the true value of each element, in the dtype."""

    loss: float
    gradient: float | None


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@functools.lru_cache(maxsize=1)
def truth(case: Case) -> Result:
    """Return the loss and gradient of a case, in float64 from its inputs as they are."""
    input, target = inputs_of(case)
    x = input.astype(np.float64)
    t = target if case.of_classes else target.astype(np.float64)
    if case.loss == "log_softmax":
        result = _log_softmax(x)
        return Result(result, t - np.exp(result) * t.sum(axis=1, keepdims=True))
    if case.of_classes:
        rows = t.size
        labels = np.expand_dims(t, 1)
        logarithms = _log_softmax(x) if case.loss == "cross_entropy" else x
        gradient = np.exp(logarithms) if case.loss == "cross_entropy" else np.zeros_like(x)
        at_label = np.take_along_axis(gradient, labels, 1)
        np.put_along_axis(gradient, labels, at_label - 1, 1)
        return Result(-np.take_along_axis(logarithms, labels, 1).mean(), gradient / rows)
    if case.loss == "binary_cross_entropy_with_logits":
        loss = np.logaddexp(0, x) - t * x
        return Result(loss.mean(), (1 / (1 + np.exp(-x)) - t) / x.size)
    if case.loss == "binary_cross_entropy":
        loss = -(t * np.log(x) + (1 - t) * np.log1p(-x))
        return Result(loss.mean(), (x - t) / (x * (1 - x)) / x.size)
    if case.loss == "mse_loss":
        return Result(np.mean((x - t) ** 2), 2 * (x - t) / x.size)
    if case.loss == "kl_div":  # with reduction="batchmean"
        return Result(np.sum(t * (np.log(t) - x)) / len(x), -t / len(x))
    raise ValueError(f"no oracle for {case.loss}")


def _limits(dtype: str) -> tuple[float, float]:
    """Return (distance from 1 to the next value, smallest subnormal) of a dtype."""
    if dtype == "bfloat16":
        import ml_dtypes

        information: Any = ml_dtypes.finfo(dtype_of(dtype))
    else:
        information = np.finfo(dtype)
    return float(information.eps), float(information.smallest_subnormal)


def _ulps(value: Any, true: Any, dtype: str) -> float:
    """Return the largest distance of `value` from `true`, element by element in units of the last place of `true`."""
    epsilon, subnormal = _limits(dtype)
    unit = np.maximum(np.ldexp(epsilon, np.frexp(true)[1] - 1), subnormal)
    return float(np.max(np.abs(np.asarray(value, np.float64) - true) / unit))


def errors_of(result: Result, case: Case) -> Errors:
    """Return how far a result is from the truth."""
    true = truth(case)
    gradient = None if result.gradient is None else _ulps(result.gradient, true.gradient, case.dtype)
    return Errors(_ulps(result.loss, true.loss, case.dtype), gradient)


def check(result: Result, case: Case, mode: str, provider: str) -> None:
    """Raise an AssertionError unless a result is right, to what any sound computation in its dtype attains.

    The bound is relative to an element plus the largest one, since peers cancel where a label is all but certain.
    """
    true = truth(case)
    epsilon, subnormal = _limits(case.dtype)
    bound = (4 if epsilon > 1e-4 else 64) * epsilon
    pairs = [("loss", result.loss, true.loss)]
    if mode != "forward":
        pairs.append(("gradient", result.gradient, true.gradient))
    for name, value, expected in pairs:
        value = np.asarray(value, np.float64)
        assert value.shape == np.shape(expected), f"{provider}, {case.title}, {mode}: {name} of shape {value.shape}"
        distance, largest = np.abs(value - expected), np.max(np.abs(expected))
        assert np.all(distance - bound * (np.abs(expected) + largest) - subnormal <= 0), (
            f"{provider}, {case.title}, {mode}: the {name} is wrong by {np.max(distance) / largest:.1%}"
        )
