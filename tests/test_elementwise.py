"""The losses and functions of one element at a time, against longdouble arithmetic and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cases
import numpy as np
import oracles
import peers
import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_agree, assert_close, assert_no_worse

import fastloss as fl
from fastloss import _layout


def interior(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return probabilities away from 0 and 1, where torch's clamps do not act."""
    return np.asarray(cases.generator("interior", shape).uniform(0.01, 0.99, shape)).astype(dtype)


def logarithms(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    return -np.abs(cases.logits_of(shape, dtype))


class Loss(NamedTuple):
    """One loss, ours and theirs, and where its arguments come from."""

    ours: Callable[..., Any]
    theirs: Callable[..., torch.Tensor]
    truth: Callable[..., tuple[np.ndarray, np.ndarray]]
    input: Callable[..., np.ndarray] = cases.logits_of
    target: Callable[..., np.ndarray] = cases.probabilities_of
    options: tuple[tuple[str, Any], ...] = ()
    weights: tuple[str, ...] = ()

    def arguments(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        return self.input(shape, dtype), self.target(shape, dtype)


LOSSES = {
    "bce": Loss(
        fl.binary_cross_entropy, F.binary_cross_entropy, oracles.binary_cross_entropy, interior, weights=("weight",)
    ),
    "bce_with_logits": Loss(
        fl.binary_cross_entropy_with_logits,
        F.binary_cross_entropy_with_logits,
        oracles.binary_cross_entropy_with_logits,
        weights=("weight", "pos_weight"),
    ),
    "mse": Loss(fl.mse_loss, F.mse_loss, oracles.mse_loss, weights=("weight",)),
    "kl_div": Loss(fl.kl_div, F.kl_div, oracles.kl_div, logarithms),
    "kl_div_of_logs": Loss(
        fl.kl_div, F.kl_div, oracles.kl_div, logarithms, cases.logits_of, options=(("log_target", True),)
    ),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
each_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
pytestmark = pytest.mark.filterwarnings("ignore:reduction")  # torch's kl_div warns of "mean"


def compare(loss: Loss, arguments: tuple[np.ndarray, ...], peers_weights: dict[str, Any], **options: Any) -> None:
    """Assert that loss and gradient are no worse than torch's, which takes `peers_weights` for its own."""
    options |= dict(loss.options)
    ours = loss.ours(*arguments, **options, return_grad=True)
    theirs = peers.torch_loss(loss.theirs, *arguments, **{**options, **peers_weights})
    truth = loss.truth(*arguments, **options)
    for result, peers_result, exact_result in zip(ours, theirs, truth, strict=True):
        assert_no_worse(result, peers_result, exact_result, arguments[0].dtype)


@each_loss
@each_dtype
def test_losses_are_as_exact_as_torchs(loss: Loss, dtype: np.dtype[Any]) -> None:
    for shape in cases.ELEMENTS:
        for reduction in ("mean", "sum", "none"):
            compare(loss, loss.arguments(shape, dtype), {}, reduction=reduction)
        if shape and loss.ours is fl.kl_div:
            compare(loss, loss.arguments(shape, dtype), {}, reduction="batchmean")


@pytest.mark.parametrize("name", ["bce", "bce_with_logits", "mse"])
@each_dtype
def test_weighted_losses_are_as_exact_as_torchs(name: str, dtype: np.dtype[Any]) -> None:
    loss = LOSSES[name]
    for shape in [shape for shape in cases.ELEMENTS if 0 not in shape]:
        weights = {name: interior(shape, dtype) + dtype.type(0.25) for name in loss.weights}
        for reduction in ("mean", "sum"):
            compare(loss, loss.arguments(shape, dtype), weights, **weights, reduction=reduction)


@pytest.mark.parametrize("name", ["bce", "bce_with_logits", "mse"])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)], ids=["C", "F", "channels last"])
def test_weights_of_any_shape_that_broadcasts(name: str, axes: tuple[int, ...]) -> None:
    loss, dtype = LOSSES[name], np.dtype(np.float32)
    shape = (2, 3, 5, 7)
    back = np.argsort(axes)
    arguments = [np.transpose(array, axes).copy().transpose(back) for array in loss.arguments(shape, dtype)]
    for of_weight in ((), (1,), (7,), (5, 1), (3, 1, 1), (2, 1, 1, 1), (1, 3, 1, 7), (2, 1, 5, 1), shape):
        for weight_name in loss.weights:
            weight = interior(of_weight, dtype)
            expanded = np.broadcast_to(weight, shape)
            compare(loss, tuple(arguments), {weight_name: expanded}, **{weight_name: weight})


@each_dtype
def test_rows_of_few_classes_are_walked_together(dtype: np.dtype[Any]) -> None:
    """Weights of classes are repeated, those of short rows copied: neither is walked row by row, nor changes a bit."""
    accumulator = np.float64 if dtype == np.float64 else np.float32
    for shape in ((1400, 3), (4099, 7), (2, 900, 5), (1030, 100), (50, 5)):
        logits, target = LOSSES["bce_with_logits"].arguments(shape, dtype)
        for of_weight in (shape[-1:], (*shape[:-1], 1)):
            weight = interior(of_weight, dtype)
            everywhere = np.broadcast_to(weight, shape)
            actual, expected = (
                fl.binary_cross_entropy_with_logits(logits, target, some, pos_weight=some, return_grad=True)
                for some in (weight, everywhere.copy())
            )
            assert_agree(actual[0], expected[0], dtype)
            np.testing.assert_array_equal(actual[1], expected[1])
            if logits.size > 4000 and (of_weight[-1] > 1 or shape[-1] < _layout.SHORT_ROW):
                walk = _layout.elements(logits, [np.broadcast_to(weight.astype(accumulator), shape)], [])
                parts = [part[0] for part in _layout.with_joined_rows(*walk, 4000)]
                assert sum(part.size for part in parts) == logits.size
                assert 3200 <= parts[0].shape[2] <= 4000
                assert [part.shape[1] for part in parts[1:]] in ([], [1]), "those left over are one"


def test_operands_are_copied_only_where_it_helps() -> None:
    rows = np.zeros((2000, 8), np.float32)
    of_class, of_row, scalar = (
        np.broadcast_to(np.ones(shape, np.float32), (2000, 5)) for shape in ((5,), (2000, 1), ())
    )
    for input, operands, copied in (
        (rows[:, :5].copy(), [of_class, scalar], []),
        (rows[:, :5].copy(), [of_class, of_row], [1]),
        (rows[:, :5], [of_class, of_row], []),
        (rows[:900, :5].copy(), [of_class[:900], of_row[:900]], []),
    ):
        walk = _layout.elements(input, operands, [])
        ((_, views, _), *_) = _layout.with_joined_rows(*walk, 4000)
        owned = [not np.may_share_memory(view, operand) for view, operand in zip(views, operands, strict=True)]
        large = [position for position, view in enumerate(views) if owned[position] and view.strides[1] != 0]
        assert large == copied


def test_weight_and_pos_weight_of_channels() -> None:
    loss, dtype = LOSSES["bce_with_logits"], np.dtype(np.float32)
    for shape in ((2, 3, 5, 7), (3, 6, 64, 65)):
        weights = {"weight": interior((shape[0], 1, 1, 1), dtype), "pos_weight": interior((shape[1], 1, 1), dtype)}
        compare(loss, loss.arguments(shape, dtype), {}, **weights)


@each_loss
def test_gradient_is_the_slope_of_the_loss(loss: Loss) -> None:
    input, target = loss.arguments((33, 9), np.dtype(np.float64))
    _, gradient = loss.ours(input, target, **dict(loss.options), return_grad=True)
    step = 1e-4 * cases.generator("step").uniform(-1, 1, input.shape)
    steps = [input + number * step for number in (-2, -1, 1, 2)]
    losses = [loss.ours(there, target, **dict(loss.options)) for there in steps]
    assert np.sum(gradient * step) == pytest.approx(np.dot(losses, [1, -8, 8, -1]) / 12, rel=1e-7)


@each_loss
def test_loss_is_the_same_without_the_gradient(loss: Loss) -> None:
    arguments = loss.arguments((33, 9), np.dtype(np.float32))
    for reduction in ("mean", "none"):
        options = {**dict(loss.options), "reduction": reduction}
        expected, _ = loss.ours(*arguments, **options, return_grad=True)
        assert_agree(loss.ours(*arguments, **options), expected, np.float32)


@each_loss
def test_out_receives_the_gradient(loss: Loss) -> None:
    input, target = loss.arguments((33, 9), np.dtype(np.float32))
    expected, expected_gradient = loss.ours(input, target, **dict(loss.options), return_grad=True)
    by_two = np.empty((66, 18), np.float32)[::2, ::2]
    for out in (np.empty_like(input), np.empty((33, 9), np.float32, order="F"), by_two, input.copy(), target.copy()):
        first = out if np.array_equal(out, input) else input
        second = out if np.array_equal(out, target) else target
        result, gradient = loss.ours(first, second, **dict(loss.options), return_grad=True, out=out)
        assert gradient is out
        assert result == expected
        np.testing.assert_array_equal(gradient, expected_gradient)


@each_loss
def test_many_elements(loss: Loss) -> None:
    """Enough that threads share them and that the gradient bypasses the caches, in pieces that do not divide evenly."""
    for shape in ((2_100_001,), (301, 7001)):
        compare(loss, loss.arguments(shape, np.dtype(np.float32)), {})


@each_dtype
def test_sigmoids(dtype: np.dtype[Any]) -> None:
    for shape in cases.ELEMENTS:
        for scale in (1, 10, 40):
            logits = cases.logits_of(shape, dtype, scale)
            assert_close(fl.sigmoid(logits), oracles.sigmoid(logits), dtype)
            assert_close(fl.log_sigmoid(logits), oracles.log_sigmoid(logits), dtype)


@pytest.mark.parametrize("function", [fl.sigmoid, fl.log_sigmoid])
def test_out_receives_the_values(function: Any) -> None:
    logits = cases.logits_of((33, 9), np.dtype(np.float32))
    expected = function(logits)
    for out in (np.empty_like(logits), np.empty((33, 9), np.float32, order="F"), logits):
        assert function(logits, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_lists_and_scalars_are_float64() -> None:
    assert fl.sigmoid(0) == 0.5
    for loss in LOSSES.values():
        result, gradient = loss.ours([[0, 1]], [[1, 0]], **dict(loss.options), return_grad=True)
        assert (result.dtype, gradient.dtype, gradient.shape) == (np.float64, np.float64, (1, 2))
        assert loss.ours(1.0, 1.0, **dict(loss.options), reduction="none").shape == ()
