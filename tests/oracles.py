"""The truth: the formulas in plain longdouble loops, too simple to be wrong.

A loss returns (loss, gradient), the gradient by its first argument: of the reduced loss or, with reduction "none", of
the sum of the losses. But for differences of the inputs themselves, and the terms of `kl_div`, nothing is subtracted
from what is nearly equal, so that small results are right too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def exact(array: ArrayLike) -> np.ndarray:
    """Return the numbers of any array as longdouble, unrounded."""
    return np.asarray(array).astype(np.longdouble)


def classes_last(array: ArrayLike) -> np.ndarray:
    """Return (C,), (N, C) or (N, C, d1, ...) as (C,), (N, C) or (N, d1, ..., C)."""
    numbers = exact(array)
    return np.moveaxis(numbers, min(numbers.ndim - 1, 1), -1)


def classes_back(array: np.ndarray) -> np.ndarray:
    """Undo `classes_last`."""
    return np.moveaxis(array, -1, min(array.ndim - 1, 1))


def sum_of_others(row: np.ndarray) -> np.ndarray:
    """Return, for each element of `row`, the sum of all the other ones."""
    before = np.concatenate([[0], np.cumsum(row[:-1])])
    after = np.concatenate([np.cumsum(row[:0:-1])[::-1], [0]])
    return before + after


def log_softmax_of_row(row: np.ndarray) -> np.ndarray:
    top = np.argmax(row)
    below = row - row[top]
    return below - np.log1p(np.exp(np.delete(below, top)).sum())


@np.errstate(all="ignore")
def log_softmax(input: ArrayLike, axis: int = -1) -> np.ndarray:
    rows = np.moveaxis(exact(input), axis, -1)
    result = np.empty_like(rows)
    for at in np.ndindex(rows.shape[:-1]):
        result[at] = log_softmax_of_row(rows[at])
    return np.moveaxis(result, -1, axis)


def softmax(input: ArrayLike, axis: int = -1) -> np.ndarray:
    return np.exp(log_softmax(input, axis))


@np.errstate(all="ignore")
def logsumexp(input: ArrayLike, axis: int = -1) -> np.ndarray:
    rows = np.moveaxis(exact(input), axis, -1)
    result = np.empty(rows.shape[:-1], np.longdouble)
    for at in np.ndindex(result.shape):
        top = rows[at].max()
        result[at] = top + np.log(np.exp(rows[at] - top).sum())
    return result


@np.errstate(all="ignore")
def sigmoid(input: ArrayLike) -> np.ndarray:
    return 1 / (1 + np.exp(-exact(input)))


@np.errstate(all="ignore")
def log_sigmoid(input: ArrayLike) -> np.ndarray:
    x = exact(input)
    return np.minimum(x, 0) - np.log1p(np.exp(-abs(x)))


@np.errstate(all="ignore")
def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[np.ndarray, np.ndarray]:
    rows = classes_last(input)
    batch, classes = rows.shape[:-1], rows.shape[-1]
    of_indices = np.shape(target) != np.shape(input)
    targets = np.asarray(target) if of_indices else classes_last(target)
    weights = exact(np.ones(classes) if weight is None else weight)
    counted = [at for at in np.ndindex(batch) if not of_indices or targets[at] != ignore_index]
    mass = exact(0) + sum(weights[targets[at]] if of_indices else 1 for at in counted)
    losses, gradient = np.zeros(batch, np.longdouble), np.zeros_like(rows)
    for at in counted:
        share = np.arange(classes) == targets[at] if of_indices else targets[at]
        q = weights * ((1 - exact(label_smoothing)) * share + exact(label_smoothing) / classes)
        logs = log_softmax_of_row(rows[at])
        p = np.exp(logs)
        read = targets[at] if of_indices and label_smoothing == 0 else slice(None)
        losses[at] = -np.sum(q[read] * logs[read])
        gradient[at] = (p * sum_of_others(q) - q * sum_of_others(p)) / (mass if reduction == "mean" else 1)
    return reduced(losses, mass, reduction), classes_back(gradient)


@np.errstate(all="ignore")
def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[np.ndarray, np.ndarray]:
    rows, targets = classes_last(input), np.asarray(target)
    weights = exact(np.ones(rows.shape[-1]) if weight is None else weight)
    counted = [at for at in np.ndindex(targets.shape) if targets[at] != ignore_index]
    mass = exact(0) + sum(weights[targets[at]] for at in counted)
    losses, gradient = np.zeros(targets.shape, np.longdouble), np.zeros_like(rows)
    for at in counted:
        label = targets[at]
        losses[at] = -weights[label] * rows[at][label]
        gradient[at][label] = -weights[label] / (mass if reduction == "mean" else 1)
    return reduced(losses, mass, reduction), classes_back(gradient)


@np.errstate(all="ignore")
def binary_cross_entropy(
    input: ArrayLike, target: ArrayLike, weight: ArrayLike = 1, *, reduction: str = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    x, t, w = exact(input), exact(target), exact(weight)
    losses = -w * (t * np.maximum(np.log(x), -100) + (1 - t) * np.maximum(np.log1p(-x), -100))
    gradient = w * (x - t) / np.maximum(x * (1 - x), exact("1e-12"))
    return of_elements(losses, gradient, x.size, reduction)


@np.errstate(all="ignore")
def binary_cross_entropy_with_logits(
    input: ArrayLike, target: ArrayLike, weight: ArrayLike = 1, *, pos_weight: ArrayLike = 1, reduction: str = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    x, t, w, p = exact(input), exact(target), exact(weight), exact(pos_weight)
    # (1 - t) x + (1 + (p - 1) t) log(1 + e**-x), where log(1 + e**-x) is log(1 + e**x) - x on the left.
    linear = np.where(x > 0, (1 - t) * x, -p * t * x)
    losses = w * (linear + (1 + (p - 1) * t) * np.log1p(np.exp(-abs(x))))
    gradient = w * ((1 - t) * sigmoid(x) - p * t * sigmoid(-x))
    return of_elements(losses, gradient, x.size, reduction)


@np.errstate(all="ignore")
def mse_loss(
    input: ArrayLike, target: ArrayLike, weight: ArrayLike = 1, *, reduction: str = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    x, t, w = exact(input), exact(target), exact(weight)
    return of_elements(w * (x - t) ** 2, 2 * w * (x - t), np.broadcast_to(w, x.shape).sum(), reduction)


@np.errstate(all="ignore")
def kl_div(
    input: ArrayLike, target: ArrayLike, *, log_target: bool = False, reduction: str = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    x, t = exact(input), exact(target)
    if log_target:
        losses, gradient = np.exp(t) * (t - x), -np.exp(t)
    else:
        losses, gradient = np.where(t == 0, 0, t * np.log(t)) - t * x, -t
    if reduction == "batchmean":
        return of_elements(losses, gradient, len(x) if x.ndim else 1, "mean")
    return of_elements(losses, gradient, x.size, reduction)


def reduced(losses: np.ndarray, mean_over: float | np.ndarray, reduction: str) -> np.ndarray:
    """Return the losses, their sum, or their sum over `mean_over`."""
    if reduction == "none":
        return losses
    return losses.sum() / exact(mean_over if reduction == "mean" else 1)


def of_elements(
    losses: np.ndarray, gradient: np.ndarray, mean_over: float | np.ndarray, reduction: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (reduced losses, gradient of that) for losses that have one element each."""
    return reduced(losses, mean_over, reduction), gradient / exact(mean_over if reduction == "mean" else 1)
