"""Random calls for test_fuzz.py: what may be asked of a function, and how far off an answer may be."""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

import cases
import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from tolerances import epsilon, exact, rounded, tiny

LONG = "FASTLOSS_FUZZ" in os.environ
"""Whether all dtypes, layouts, weights and sizes are drawn from; each combination is compiled once, for seconds."""

ULPS = 6.0
"""How many units in the last place of the terms of a sum an element may be further off than torch's own."""

CLASS_LOSSES, ACTIVATIONS = ("cross_entropy", "nll_loss"), ("softmax", "log_softmax", "sigmoid", "log_sigmoid")
ELEMENT_LOSSES = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "kl_div")
LOSSES = CLASS_LOSSES + ELEMENT_LOSSES

DTYPES = cases.DTYPES if LONG else [np.dtype(np.float32)]
LAYOUTS = [name for name in cases.LAYOUTS if name != "memory-mapped"] if LONG else ["C"]
LENGTHS = [1, 2, 3, 5, 8, 17, 33, 130, 300] if LONG else [2, 3, 5, 8, 17, 33, 260]
MOST_ELEMENTS = 40_000 if LONG else 8_000
SPECIALS = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 1e-40, -1e-45, 6e-8, 6e4]


class Call(NamedTuple):
    """A call of the function `name` of NumPy arrays, C-contiguous; `layouts` says how to lay them out."""

    name: str
    input: np.ndarray
    target: np.ndarray | None
    weights: dict[str, np.ndarray]
    options: dict[str, Any]
    layouts: tuple[str, str]
    upstream: float
    """What the gradient by the loss is multiplied by where it is one number, and among others where it is many."""

    def laid_out(self) -> tuple[np.ndarray, ...]:
        """Return input and target in their layouts."""
        arrays = [array for array in (self.input, self.target) if array is not None]
        return tuple(_laid_out(array, layout) for array, layout in zip(arrays, self.layouts, strict=False))


def _laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "broadcast" or array.ndim == 0 or not array.size:  # the values would be others
        return array.copy()
    return cases.LAYOUTS[layout](array, pathlib.Path())


def _sprinkled(array: np.ndarray, specials: list[float], rng: np.random.Generator) -> np.ndarray:
    """Return the array with each of the `specials` somewhere in it, or in all of a row."""
    for special in specials:
        at = tuple(int(rng.integers(length)) for length in array.shape)
        with np.errstate(all="ignore"):
            array[at if rng.random() < 0.8 else at[:1]] = special
    return array


@st.composite
def shapes(draw: Any) -> tuple[int, ...]:
    shape: list[int] = []
    for length in draw(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=4 if LONG else 3)):
        if np.prod([*shape, length]) <= MOST_ELEMENTS:
            shape.append(length)
    return tuple(shape)


@st.composite
def calls(draw: Any, names: tuple[str, ...]) -> Call:
    name, shape, dtype = draw(st.sampled_from(names)), draw(shapes()), draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.01, 1.0, 3.0, 30.0, 1e4]))
    specials = draw(st.lists(st.sampled_from(SPECIALS), max_size=3))
    with np.errstate(all="ignore"):
        input = _sprinkled(rng.normal(0, scale, shape), specials, rng).astype(dtype)
    layouts = draw(st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)))
    upstream = draw(st.sampled_from([1.0, 1.0, 0.5, -3.0, 0.0, 1e-30, 1e5, np.inf, np.nan] if LONG else [1.0, 0.5]))
    options: dict[str, Any] = {}
    target, weights = None, {}
    if name in CLASS_LOSSES:
        target = _class_target(draw, name, shape, dtype, rng, options, weights)
    elif name in ELEMENT_LOSSES:
        input, target = _element_target(draw, name, input, rng, options, weights)
    elif name not in ("sigmoid", "log_sigmoid"):
        options["axis"] = draw(st.integers(0, len(shape) - 1))
    if name in LOSSES:
        allowed = ["mean", "sum", "none", *["batchmean"] * (name == "kl_div")]
        options["reduction"] = draw(st.sampled_from(allowed))
    return Call(name, input, target, weights, options, layouts, upstream)


def _class_target(
    draw: Any, name: str, shape: tuple[int, ...], dtype: Any, rng: np.random.Generator,
    options: dict[str, Any], weights: dict[str, np.ndarray],
) -> np.ndarray:  # fmt: skip
    axis = min(len(shape) - 1, 1)
    classes, batch = shape[axis], shape[:axis] + shape[axis + 1 :]
    if LONG and draw(st.booleans()):
        weights["weight"] = (rng.random(classes) * rng.integers(0, 3, classes)).astype(dtype)
    kind = draw(st.sampled_from(["indices", "ignored", "probabilities", "wrong"] if LONG else ["indices", "ignored"]))
    if name == "cross_entropy":
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.0, 0.1, 1.0] if LONG else [0.0]))
    if kind == "probabilities" and name == "cross_entropy":
        if options["label_smoothing"] and draw(st.booleans()):
            return np.eye(classes, dtype=dtype)[rng.integers(0, classes, batch)].transpose(
                *range(axis), len(shape) - 1, *range(axis, len(shape) - 1)
            )
        return np.asarray(np.clip(rng.normal(0.3, 0.5, shape), 0, 1).astype(dtype))
    target = rng.integers(0, classes, batch)
    if kind == "ignored":
        options["ignore_index"] = draw(st.sampled_from([-100, -1, 0]))
        target = np.where(rng.random(batch) < rng.choice([0.2, 1]), options["ignore_index"], target)
    if kind == "wrong":
        target[tuple(int(rng.integers(length)) for length in batch)] = rng.choice([-1, classes, 2**40, -(2**63)])
    return np.asarray(target, np.int64)


def _element_target(
    draw: Any, name: str, input: np.ndarray, rng: np.random.Generator, options: dict[str, Any],
    weights: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    shape, dtype = input.shape, input.dtype
    unit = np.clip(rng.normal(0.5, 0.6, shape), 0, 1)
    names = {"binary_cross_entropy": ["weight"], "binary_cross_entropy_with_logits": ["weight", "pos_weight"]}
    for weight in names.get(name, []):
        if LONG and draw(st.booleans()):
            of = draw(st.sampled_from([shape, shape[-1:], (1,)]))
            weights[weight] = (rng.random(of) * rng.integers(0, 3, of)).astype(dtype)
    if name == "binary_cross_entropy":
        with np.errstate(all="ignore"):
            input = (1 / (1 + np.exp(-input.astype(np.float64)))).astype(dtype)
        if not (LONG and draw(st.integers(0, 19)) == 0):
            input = np.nan_to_num(input, nan=0.5)
        return input, unit.astype(dtype)
    specials = draw(st.lists(st.sampled_from(SPECIALS if name == "mse_loss" else [np.nan, 0, 1, -1, 1e4]), max_size=2))
    if name == "kl_div":
        options["log_target"] = draw(st.booleans())
        with np.errstate(all="ignore"):
            unit = np.log(unit) if options["log_target"] else unit
            return -abs(input), _sprinkled(unit, specials, rng).astype(dtype)
    if name == "mse_loss":
        unit = rng.normal(0, 3, shape)
    with np.errstate(all="ignore"):
        return input, _sprinkled(unit, specials, rng).astype(dtype)


def assert_near(ours: Any, peer: Any, truth: Any, terms: Any, crude: Any, dtype: Any) -> None:
    """Assert that `ours` is the truth in `dtype`, but for rounding.

    nan and the infinities must be where the truth has them, or where the peer does, which overflows as it computes.
    Elsewhere an element may be as far off as the peer's, and `ULPS` units in the last place: of `dtype` at the truth,
    of the accumulator at the sum of what the truth is the sum of (`terms`), and of float64, in which the truth was
    computed, at the sum of what it was computed as the sum of (`crude`).
    """
    assert np.asarray(ours).dtype == dtype
    assert np.shape(ours) == np.shape(truth)
    accumulated = np.float64 if dtype == np.float64 else np.float32
    ours, peer, truth = exact(ours), exact(peer), exact(truth)
    in_dtype = rounded(truth, dtype)
    same = ((ours == peer) | (np.isnan(ours) & np.isnan(peer))) | (ours == in_dtype)
    same |= np.isnan(ours) & np.isnan(truth)
    # Of losses of 1e38 some overflow as they are added, before their mean is taken: of both signs, the peer's alone.
    same |= np.isinf(ours) & np.isnan(peer) & (exact(crude) * MOST_ELEMENTS > float(np.finfo(accumulated).max))
    with np.errstate(all="ignore"):
        allowed = epsilon(dtype) * abs(truth) + epsilon(accumulated) * exact(terms) + epsilon(np.float64) * exact(crude)
        errors, peers_errors = abs(ours - truth), abs(peer - truth)
        allowed = ULPS * (allowed + tiny(dtype)) + np.where(np.isfinite(peers_errors), peers_errors, 0)
        good = same | (np.isfinite(ours) & np.isfinite(truth) & (errors <= np.nan_to_num(allowed, nan=np.inf)))
        # The largest numbers may round to infinity, or what is computed with them.
        largest = float(ml_dtypes.finfo(dtype).max)
        good |= np.isinf(ours) & (np.sign(ours) == np.sign(truth)) & (abs(truth) + allowed >= largest)
    if not np.all(good):
        at = tuple(int(index) for index in np.argwhere(~np.atleast_1d(good))[0])
        values = [np.atleast_1d(array)[at] for array in (ours, peer, truth, np.broadcast_to(allowed, ours.shape))]
        raise AssertionError("at {}: {}, the peer's {}, the truth {}, allowed {}".format(list(at), *values))


class Terms(NamedTuple):
    """Sums of the absolute values of what a loss and its gradient are sums of, for `assert_near`.

    The terms of the kernels do not cancel where torch's do, so these have `crude` ones of their own.
    """

    loss: np.ndarray
    gradient: np.ndarray
    crude_loss: np.ndarray
    crude_gradient: np.ndarray


@np.errstate(all="ignore")
def terms_of(call: Call) -> Terms:
    """Return those of the losses one by one, or of the function's values, with an upstream gradient of one."""
    x = call.input.astype(np.float64)
    if call.name in ("cross_entropy", "nll_loss"):
        return _class_terms(call, x)
    if call.name in ("sigmoid", "log_sigmoid"):
        p = 1 / (1 + np.exp(-x))
        value = p if call.name == "sigmoid" else np.logaddexp(0, -x)
        return Terms(value, p if call.name == "sigmoid" else 1 - p, value, np.ones_like(p))
    if call.name in ("softmax", "log_softmax"):
        return _softmax_terms(call, x)
    assert call.target is not None
    t, w = call.target.astype(np.float64), call.weights.get("weight", np.ones(1)).astype(np.float64)
    if call.name == "binary_cross_entropy":
        loss = np.abs(t * np.maximum(np.log(x), -100)) + np.abs((1 - t) * np.maximum(np.log1p(-x), -100))
        variance = x * (1 - x)
        # torch's bound of 1e-12 is a number of float32, also in float64.
        gradient = abs(x - t) / np.maximum(variance, 1e-12) * np.where(variance < 1e-12, 1e-7 / 2e-16, 1)
        return Terms(w * loss, 0 * gradient, w * loss, w * gradient)
    if call.name == "binary_cross_entropy_with_logits":
        rest, label = abs(1 - t), abs(call.weights.get("pos_weight", np.ones(1)).astype(np.float64) * t)
        p, other = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
        both = (rest + label) * np.log1p(np.exp(-abs(x)))
        loss = np.where(x > 0, rest, label) * abs(x) + both
        crude = rest * abs(x) + (1 + rest + label) * np.logaddexp(0, -x)
        return Terms(w * loss, w * (rest * p + label * other), w * crude, w * (1 + rest + label))
    if call.name == "mse_loss":
        return Terms(w * (x - t) ** 2, w * 2 * abs(x - t), w * 0, w * 0)
    gradient = np.exp(t) if call.options["log_target"] else abs(t)
    own = gradient * abs(t - x) if call.options["log_target"] else np.where(t == 0, 0, abs(t * np.log(t))) + abs(t * x)
    return Terms(own, gradient, gradient * (abs(t) + abs(x)) if call.options["log_target"] else own, gradient)


def _class_terms(call: Call, x: np.ndarray) -> Terms:
    assert call.target is not None
    axis = min(x.ndim - 1, 1)
    rows, classes = np.moveaxis(x, axis, -1), x.shape[axis]
    weight = call.weights.get("weight", np.ones(classes)).astype(np.float64)
    if call.target.shape == x.shape:
        hard, counted = np.moveaxis(abs(call.target.astype(np.float64)), axis, -1), np.ones(rows.shape[:-1], bool)
    else:
        hard = (call.target[..., None] == np.arange(classes)).astype(np.float64)
        counted = call.target != call.options.get("ignore_index", -100)
    smoothing = call.options.get("label_smoothing", 0.0)
    smooth = weight * smoothing / classes
    hard = weight * (1 - smoothing) * hard
    if call.name == "nll_loss":
        loss = np.where(hard == 0, 0, hard * abs(rows)).sum(-1)
        gradient = hard
        crude_loss, crude_gradient = loss, gradient
    else:
        below = rows - rows.max(-1, keepdims=True)
        e = np.exp(below)
        p = e / e.sum(-1, keepdims=True)
        log_total = np.log(e.sum(-1, keepdims=True))
        deep = np.where(p == 0, 0, p * (2 + abs(below)))
        q = hard + smooth
        mass = q.sum(-1, keepdims=True)
        crude_loss = np.where(q == 0, 0, q * (abs(below) + 1 + log_total)).sum(-1)
        crude_gradient = mass * deep + q
        if call.target.shape == x.shape or smoothing:
            loss, gradient = crude_loss, crude_gradient
        else:
            others = deep.sum(-1, keepdims=True) - deep
            label_loss = np.where(hard == 0, 0, hard * (log_total - below + others))
            loss, gradient = label_loss.sum(-1), np.where(hard == 0, mass * deep, hard * others)
    both = [np.where(counted, array, 0) for array in (loss, crude_loss)]
    wide = [np.moveaxis(np.where(counted[..., None], array, 0), -1, axis) for array in (gradient, crude_gradient)]
    return Terms(both[0], wide[0], both[1], wide[1])


def _softmax_terms(call: Call, x: np.ndarray) -> Terms:
    """Return the terms; those of the gradient for upstream gradients of up to the largest one everywhere."""
    axis = call.options["dim"]
    below = x - x.max(axis, keepdims=True)
    e = np.exp(below)
    total = e.sum(axis, keepdims=True)
    p = e / total
    deep = np.where(p == 0, 0, p * (2 + abs(below)))
    if call.name == "softmax":
        gradient = deep + p * deep.sum(axis, keepdims=True)
        return Terms(deep, gradient, deep, gradient)
    value = abs(below) + 1 + np.log(total)
    gradient = 1 + deep * x.shape[axis]
    return Terms(value, gradient, value, gradient)


@np.errstate(all="ignore")
def divisor_of(call: Call) -> float:
    """Return what the sum of the losses is divided by."""
    assert call.target is not None
    reduction = call.options["reduction"]
    if reduction in ("sum", "none"):
        return 1.0
    if reduction == "batchmean":
        return float(len(call.input))
    if call.name not in CLASS_LOSSES:
        return float(call.input.size)
    if call.target.shape == call.input.shape:
        return float(call.input.size / call.input.shape[min(call.input.ndim - 1, 1)])
    counted = call.target[call.target != call.options.get("ignore_index", -100)]
    return float(call.weights["weight"].astype(np.float64)[counted].sum() if call.weights else counted.size)


def ignored_rows(call: Call) -> np.ndarray:
    """Return whether the target ignores a row, in a shape that broadcasts to the input's."""
    if call.name not in CLASS_LOSSES or call.target is None or call.target.shape == call.input.shape:
        return np.zeros((), bool)
    ignored: np.ndarray = call.target == call.options.get("ignore_index", -100)
    return np.expand_dims(ignored, min(call.input.ndim - 1, 1))
