"""The losses as a good NumPy user writes them: few passes, into arrays made once, no copy of a label as one-hot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .cases import Case

Run = Callable[[], tuple[np.ndarray | float, np.ndarray | None]]


def prepare(case: Case, with_gradient: bool, input: np.ndarray, target: np.ndarray) -> Run:
    """Return what computes (loss, gradient or None); half precision, slow in NumPy, is widened to float32."""
    write = _LOSSES[case.loss]
    if input.dtype.itemsize > 2:
        return write(input, target, with_gradient)
    x = np.empty(input.shape, np.float32)
    t = target if case.of_classes else np.empty(target.shape, np.float32)
    compute = write(x, t, with_gradient)
    narrow = np.empty_like(input)

    def run() -> tuple[np.ndarray | float, np.ndarray | None]:
        x[...] = input
        if t is not target:
            t[...] = target
        loss, gradient = compute()
        if gradient is not None:
            narrow[...] = gradient
        return np.asarray(loss).astype(input.dtype), None if gradient is None else narrow

    return run


def _cross_entropy(logits: np.ndarray, target: np.ndarray, with_gradient: bool) -> Run:
    buffer, labels, rows = np.empty_like(logits), np.expand_dims(target, 1), target.size

    def run() -> tuple[float, np.ndarray | None]:
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=buffer)
        at_label = np.take_along_axis(buffer, labels, 1)
        np.exp(buffer, out=buffer)
        sums = buffer.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(sums) - at_label))
        if not with_gradient:
            return loss, None
        np.divide(buffer, rows * sums, out=buffer)
        np.put_along_axis(buffer, labels, np.take_along_axis(buffer, labels, 1) - 1 / rows, 1)
        return loss, buffer

    return run


def _nll(logarithms: np.ndarray, target: np.ndarray, with_gradient: bool) -> Run:
    gradient, labels = np.empty_like(logarithms), np.expand_dims(target, 1)

    def run() -> tuple[float, np.ndarray | None]:
        loss = -float(np.take_along_axis(logarithms, labels, 1).mean())
        if not with_gradient:
            return loss, None
        gradient.fill(0)
        np.put_along_axis(gradient, labels, -1 / target.size, 1)
        return loss, gradient

    return run


def _binary_cross_entropy_with_logits(x: np.ndarray, t: np.ndarray, with_gradient: bool) -> Run:
    losses, scratch = np.empty_like(x), np.empty_like(x)

    def run() -> tuple[float, np.ndarray | None]:
        np.abs(x, out=losses)
        np.negative(losses, out=losses)
        np.exp(losses, out=losses)
        np.log1p(losses, out=losses)
        np.maximum(x, 0, out=scratch)
        np.add(losses, scratch, out=losses)
        np.multiply(x, t, out=scratch)
        np.subtract(losses, scratch, out=losses)
        loss = float(losses.mean())
        if not with_gradient:
            return loss, None
        np.multiply(x, 0.5, out=scratch)
        np.tanh(scratch, out=scratch)  # the sigmoid without a branch: (1 + tanh(x / 2)) / 2
        np.multiply(scratch, 0.5, out=scratch)
        np.add(scratch, 0.5, out=scratch)
        np.subtract(scratch, t, out=scratch)
        np.divide(scratch, x.size, out=scratch)
        return loss, scratch

    return run


def _binary_cross_entropy(x: np.ndarray, t: np.ndarray, with_gradient: bool) -> Run:
    losses, scratch = np.empty_like(x), np.empty_like(x)

    def run() -> tuple[float, np.ndarray | None]:
        np.negative(x, out=scratch)
        np.log1p(scratch, out=scratch)  # log(1 - x)
        np.log(x, out=losses)
        np.subtract(losses, scratch, out=losses)
        np.multiply(losses, t, out=losses)
        np.add(losses, scratch, out=losses)
        loss = -float(losses.mean())
        if not with_gradient:
            return loss, None
        np.subtract(1, x, out=scratch)
        np.multiply(scratch, x, out=scratch)
        np.multiply(scratch, x.size, out=scratch)
        np.subtract(x, t, out=losses)
        np.divide(losses, scratch, out=losses)
        return loss, losses

    return run


def _mse(x: np.ndarray, t: np.ndarray, with_gradient: bool) -> Run:
    difference, squares = np.empty_like(x), np.empty_like(x)

    def run() -> tuple[float, np.ndarray | None]:
        np.subtract(x, t, out=difference)
        np.square(difference, out=squares)
        loss = float(squares.mean())  # np.vdot is faster, but wrong in the fifth digit of ten million
        if not with_gradient:
            return loss, None
        np.multiply(difference, 2 / x.size, out=difference)
        return loss, difference

    return run


def _kl(x: np.ndarray, t: np.ndarray, with_gradient: bool) -> Run:
    buffer = np.empty_like(x)

    def run() -> tuple[float, np.ndarray | None]:
        np.log(t, out=buffer)
        np.subtract(buffer, x, out=buffer)
        np.multiply(buffer, t, out=buffer)
        loss = float(buffer.sum()) / len(x)
        if not with_gradient:
            return loss, None
        np.multiply(t, -1 / len(x), out=buffer)
        return loss, buffer

    return run


def _log_softmax(x: np.ndarray, _: np.ndarray, with_gradient: bool) -> Run:
    exponentials, result = np.empty_like(x), np.empty_like(x)

    def run() -> tuple[np.ndarray, None]:
        np.subtract(x, x.max(axis=1, keepdims=True), out=result)
        np.exp(result, out=exponentials)
        np.subtract(result, np.log(exponentials.sum(axis=1, keepdims=True)), out=result)
        return result, None

    return run


_LOSSES: dict[str, Callable[[np.ndarray, np.ndarray, bool], Run]] = {
    "cross_entropy": _cross_entropy,
    "nll_loss": _nll,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
    "binary_cross_entropy": _binary_cross_entropy,
    "mse_loss": _mse,
    "kl_div": _kl,
    "log_softmax": _log_softmax,
}
