"""Infinities, nan, nothing to average, small numbers: torch is the judge wherever it defines the case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import oracles
import peers
import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_agree, assert_close, assert_no_worse

import fastloss as fl

INF, NAN = np.inf, np.nan
FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
CLASSES = [5, 60, 200, 300]
"""Each has another kernel: that of few classes, tiles, batches, rows."""


def assert_as_torch(ours: tuple[Any, Any], function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Assert that (loss, gradient) are torch's, nan and infinities included."""
    for mine, theirs in zip(ours, peers.torch_loss(function, *arguments, **options), strict=True):
        assert_agree(mine, theirs, theirs.dtype)


def extreme_rows(classes: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Return rows of logits with special numbers among the first three classes, and of the same number throughout."""
    specials = [(0, INF), (1, INF), (0, -INF), (1, -INF), (0, NAN), (1, NAN), (0, 1e4), (1, 1e4), (0, -1e4), (1, -1e4)]
    rows = cases.logits_of((len(specials) + 6, classes), dtype)
    for row, (position, number) in zip(rows, specials, strict=False):
        row[position] = number
    for row, number in zip(rows[len(specials) :], (INF, -INF, NAN, 1e4, -1e4, 0), strict=True):
        row[:] = number
    return rows


def as_pixels(rows: np.ndarray) -> np.ndarray:
    """Return an image whose pixels are the `rows`: their classes lie apart, which another kernel serves."""
    return np.ascontiguousarray(rows.T)[np.newaxis]


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lay_out", [np.asarray, as_pixels])
def test_extreme_logits(classes: int, dtype: np.dtype[Any], label_smoothing: float, lay_out: Any) -> None:
    logits = lay_out(extreme_rows(classes, dtype))
    weight = np.linspace(0.5, 2, classes, dtype=dtype)
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": "none"}
    for label in range(3):
        target = np.full(logits.shape[:1] + logits.shape[2:], label)
        ours = fl.cross_entropy(logits, target, weight, **options, return_grad=True)
        assert_as_torch(ours, F.cross_entropy, logits, target, weight, **options)
    one_hot = np.zeros_like(logits)
    one_hot[:, 1] = 1
    ours = fl.cross_entropy(logits, one_hot, weight, **options, return_grad=True)
    assert_as_torch(ours, F.cross_entropy, logits, one_hot, weight, **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("lay_out", [np.asarray, as_pixels])
def test_softmax_of_extreme_logits(classes: int, dtype: np.dtype[Any], lay_out: Any) -> None:
    logits = lay_out(extreme_rows(classes, dtype))
    tensor = peers.as_tensor(logits)
    for ours, theirs in (
        (fl.softmax(logits, 1), torch.softmax(tensor, 1)),
        (fl.log_softmax(logits, 1), torch.log_softmax(tensor, 1)),
        (fl.logsumexp(logits, 1), torch.logsumexp(tensor, 1)),
    ):
        assert_agree(ours, peers.as_array(theirs), dtype)


@pytest.mark.parametrize("classes", CLASSES)
def test_nan_stays_in_its_row(classes: int) -> None:
    logits = cases.logits_of((17, classes), np.dtype(np.float32))
    target = np.arange(17) % classes
    losses, gradient = fl.cross_entropy(logits, target, reduction="none", return_grad=True)
    others = np.arange(17) != 5
    for number in (NAN, INF):
        spoiled = logits.copy()
        spoiled[5, 2] = number
        spoiled_losses, spoiled_gradient = fl.cross_entropy(spoiled, target, reduction="none", return_grad=True)
        assert np.isnan(spoiled_losses[5])
        assert np.isnan(spoiled_gradient[5]).all()
        np.testing.assert_array_equal(spoiled_losses[others], losses[others])
        np.testing.assert_array_equal(spoiled_gradient[others], gradient[others])


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_logits_of_ignored_rows_do_not_matter(classes: int, label_smoothing: float) -> None:
    logits = cases.logits_of((17, classes), np.dtype(np.float32))
    target = np.where(np.arange(17) % 3, np.arange(17) % classes, -100)
    expected, expected_gradient = fl.cross_entropy(logits, target, label_smoothing=label_smoothing, return_grad=True)
    for number in (NAN, INF, -INF):
        logits[target == -100] = number
        loss, gradient = fl.cross_entropy(logits, target, label_smoothing=label_smoothing, return_grad=True)
        assert loss == expected
        np.testing.assert_array_equal(gradient, expected_gradient)
    assert not gradient[target == -100].any()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_weights_do_not_reach_ignored_rows(classes: int, label_smoothing: float) -> None:
    logits = cases.logits_of((17, classes), np.dtype(np.float32))
    target = np.where(np.arange(17) % 3, np.arange(17) % classes, -100)
    for number in (NAN, INF):
        weight = np.ones(classes, np.float32)
        weight[1] = number
        losses, gradient = fl.cross_entropy(
            logits, target, weight, label_smoothing=label_smoothing, reduction="none", return_grad=True
        )
        assert not losses[target == -100].any()
        assert not gradient[target == -100].any()
        assert not np.isfinite(gradient[target == 1]).any()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("loss_of", [fl.cross_entropy, fl.nll_loss])
def test_all_rows_ignored(classes: int, loss_of: Any) -> None:
    logits = cases.logits_of((9, classes), np.dtype(np.float32))
    target = np.full(9, -100)
    for reduction, expected in (("mean", NAN), ("sum", 0), ("none", np.zeros(9))):
        loss, gradient = loss_of(logits, target, reduction=reduction, return_grad=True)
        np.testing.assert_array_equal(loss, expected)
        np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@pytest.mark.parametrize("classes", CLASSES)
def test_weights_of_zero(classes: int) -> None:
    logits = cases.logits_of((9, classes), np.dtype(np.float32))
    target = np.arange(9) % classes
    for zeros in (np.s_[:], np.s_[:3]):
        weight = np.ones(classes, np.float32)
        weight[zeros] = 0
        for reduction in ("mean", "sum"):
            ours = fl.cross_entropy(logits, target, weight, reduction=reduction, return_grad=True)
            assert_as_torch(ours, F.cross_entropy, logits, target, weight, reduction=reduction)


@pytest.mark.parametrize("loss_of", [fl.cross_entropy, fl.nll_loss])
def test_nothing_to_average(loss_of: Any) -> None:
    for shape in ((0, 5), (0, 60), (0, 5, 3), (2, 5, 0), (0, 0)):
        target = np.zeros(shape[:1] + shape[2:], int)
        for reduction, expected in (("mean", NAN), ("sum", 0), ("none", np.zeros(target.shape))):
            loss, gradient = loss_of(np.zeros(shape, np.float32), target, reduction=reduction, return_grad=True)
            np.testing.assert_array_equal(loss, expected)
            assert gradient.shape == shape


def test_no_classes() -> None:
    logits, ignored = np.zeros((3, 0), np.float32), np.full(3, -100)
    loss, gradient = fl.cross_entropy(logits, ignored, reduction="sum", return_grad=True)
    assert (loss, gradient.shape) == (0, (3, 0))
    np.testing.assert_array_equal(fl.logsumexp(logits), np.full(3, -INF))
    assert fl.softmax(logits).shape == fl.log_softmax(logits).shape == (3, 0)


ELEMENT_LOSSES = [fl.binary_cross_entropy, fl.binary_cross_entropy_with_logits, fl.mse_loss, fl.kl_div]


@pytest.mark.parametrize("loss_of", ELEMENT_LOSSES)
def test_no_elements(loss_of: Any) -> None:
    for shape in ((0,), (0, 3), (3, 0)):
        empty = np.zeros(shape, np.float32)
        for reduction, expected in (("mean", NAN), ("sum", 0), ("none", empty)):
            loss, gradient = loss_of(empty, empty, reduction=reduction, return_grad=True)
            np.testing.assert_array_equal(loss, expected)
            assert gradient.shape == shape


@pytest.mark.parametrize("classes", CLASSES)
def test_target_without_dimensions(classes: int) -> None:
    logits = cases.logits_of((classes,), np.dtype(np.float32))
    for reduction in ("mean", "sum", "none"):
        ours = fl.cross_entropy(logits, 3, reduction=reduction, return_grad=True)
        assert_as_torch(ours, F.cross_entropy, logits, np.array(3), reduction=reduction)
    assert np.isnan(fl.cross_entropy(logits, -100))


@pytest.mark.parametrize("classes", CLASSES)
def test_ignored_class_counts_among_the_others(classes: int) -> None:
    logits = cases.logits_of((9, classes), np.dtype(np.float32))
    target = np.arange(9) % 4
    ours = fl.cross_entropy(logits, target, ignore_index=2, return_grad=True)
    assert_as_torch(ours, F.cross_entropy, logits, target, ignore_index=2)
    assert not ours[1][target == 2].any()
    assert ours[1][target == 1][:, 2].all()


def test_confident_predictions_keep_their_digits() -> None:
    """Where the label has probability 1 - 1e-9, both the loss and the gradient at the label are 1e-9."""
    for dtype in FLOATS:
        for classes in (2, *CLASSES):
            logits = np.full((9, classes), -20.7 - np.log(classes), dtype)
            logits[:, 1] = np.linspace(-1, 1, 9)
            target = np.ones(9, int)
            losses, gradient = fl.cross_entropy(logits, target, reduction="none", return_grad=True)
            true_losses, true_gradient = oracles.cross_entropy(logits, target, reduction="none")
            assert 1e-10 < losses.min() < losses.max() < 1e-8
            # The difference of the logits, about 24, is rounded before its exponential is taken.
            assert_close(losses, true_losses, dtype, ulps=16)
            assert_close(gradient, true_gradient, dtype, ulps=16)
        logits, target = np.linspace(15, 25, 9, dtype=dtype), np.ones(9, dtype)
        ours = fl.binary_cross_entropy_with_logits(logits, target, reduction="none", return_grad=True)
        for result, truth in zip(
            ours, oracles.binary_cross_entropy_with_logits(logits, target, reduction="none"), strict=True
        ):
            assert_close(result, truth, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
@pytest.mark.parametrize("classes", [1, 2, *CLASSES])
def test_masked_and_far_logits_are_no_worse_than_torchs(classes: int, dtype: np.dtype[Any]) -> None:
    """Classes masked by -inf, others 1e4 apart, against longdouble; the label is among the rest."""
    rng = np.random.default_rng(classes)
    for others in (-INF, -1e4, 1e4):
        logits = cases.logits_of((33, classes), dtype)
        target = rng.integers(0, classes, 33)
        masked = (rng.random(logits.shape) < 0.5) & (np.arange(classes) != target[:, None])
        logits[masked] = others
        ours = fl.cross_entropy(logits, target, reduction="none", return_grad=True)
        theirs = peers.torch_loss(F.cross_entropy, logits, target, reduction="none")
        truth = oracles.cross_entropy(logits, target, reduction="none")
        for result, peers_result, exact_result in zip(ours, theirs, truth, strict=True):
            assert_no_worse(result, peers_result, exact_result, dtype)
        if others < 0:
            assert not ours[1][masked].any()


@pytest.mark.parametrize("classes", [2, 5, 60])
def test_subnormal_probabilities_are_not_lost(classes: int) -> None:
    for dtype, lowest in ((np.float32, -100), (np.float64, -740)):
        logits = np.full((9, classes), lowest, dtype)
        logits[:, 1] = 0
        assert (fl.softmax(logits) > 0).all()
        assert_close(fl.softmax(logits), oracles.softmax(logits), dtype)
        _, gradient = fl.cross_entropy(logits, np.ones(9, int), reduction="sum", return_grad=True)
        assert (gradient[:, 0] > 0).all()
        assert_close(gradient, oracles.cross_entropy(logits, np.ones(9, int), reduction="sum")[1], dtype)
        assert_close(fl.sigmoid(logits), oracles.sigmoid(logits), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
@pytest.mark.parametrize("pos_weight", [None, 0.0, 2.0])
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25, -1.0, 2.0, NAN])
def test_binary_cross_entropy_of_extreme_logits(label: float, pos_weight: float | None, dtype: np.dtype[Any]) -> None:
    pos = None if pos_weight is None else np.array([pos_weight], dtype)
    options: dict[str, Any] = {"pos_weight": pos, "reduction": "none"}
    for number in (-INF, INF, NAN):
        arguments = np.array([number], dtype), np.array([label], dtype)
        ours = fl.binary_cross_entropy_with_logits(*arguments, **options, return_grad=True)
        assert_as_torch(ours, F.binary_cross_entropy_with_logits, *arguments, **options)
    logits = np.array([-1e4, 1e4, -100, 100, -1, 0], dtype)
    arguments = logits, np.full_like(logits, label)
    ours = fl.binary_cross_entropy_with_logits(*arguments, **options, return_grad=True)
    assert_as_torch(ours, F.binary_cross_entropy_with_logits, *arguments, **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
@pytest.mark.parametrize("pos_weight", [0.0, 1e-3, 1.0])
def test_small_binary_cross_entropies_are_not_lost(pos_weight: float, dtype: np.dtype[Any]) -> None:
    logits = np.array([-100, -20, -3, 3, 20, 100], dtype)
    for label in (0, 1):
        arguments = logits, np.full_like(logits, label)
        options: dict[str, Any] = {"pos_weight": np.full_like(logits, pos_weight), "reduction": "none"}
        ours = fl.binary_cross_entropy_with_logits(*arguments, **options, return_grad=True)
        truth = oracles.binary_cross_entropy_with_logits(*arguments, **options)
        for result, exact_result in zip(ours, truth, strict=True):
            assert_close(result, exact_result, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
def test_binary_cross_entropy_saturates(dtype: np.dtype[Any]) -> None:
    """The loss at 100, the derivative at 1e12; torch's 1e-12 is that of float32."""
    tiny, below_one = np.finfo(dtype).smallest_subnormal, 1 - np.finfo(dtype).epsneg
    for x in (0, -0.0, 1, tiny, 1e-30, 1e-7, 0.5, below_one):
        for t in (0, 1, 0.5):
            arguments = np.array([x], dtype), np.array([t], dtype)
            ours = fl.binary_cross_entropy(*arguments, reduction="none", return_grad=True)
            theirs = peers.torch_loss(F.binary_cross_entropy, *arguments, reduction="none")
            truth = oracles.binary_cross_entropy(*arguments, reduction="none")
            for result, peers_result, exact_result in zip(ours, theirs, truth, strict=True):
                assert_close(result, exact_result, dtype)
                assert peers_result == pytest.approx(result, rel=1e-6)
            assert_close(fl.binary_cross_entropy(*arguments), truth[0][0], dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
def test_other_element_losses_at_the_extremes(dtype: np.dtype[Any]) -> None:
    for x in (-INF, INF, NAN, -1e4, 0, 1):
        for t in (-INF, INF, NAN, -1, 0, 0.5, 1):
            pair = np.array([x], dtype), np.array([t], dtype)
            assert_as_torch(fl.mse_loss(*pair, reduction="sum", return_grad=True), F.mse_loss, *pair, reduction="sum")
            for log_target in (False, True):
                options: dict[str, Any] = {"reduction": "sum", "log_target": log_target}
                assert_as_torch(fl.kl_div(*pair, **options, return_grad=True), F.kl_div, *pair, **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
def test_the_gradient_of_a_square_overflows_only_where_it_is_too_large(dtype: np.dtype[Any]) -> None:
    large = np.full(4, 0.9 * np.finfo(dtype).max, dtype)
    loss, gradient = fl.mse_loss(large, np.zeros_like(large), return_grad=True)
    assert loss == INF
    assert_close(gradient, np.longdouble(large) / 2, dtype)
    assert np.isinf(fl.mse_loss(large, np.zeros_like(large), reduction="sum", return_grad=True)[1]).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=cases.name_of)
def test_sigmoids_at_the_extremes(dtype: np.dtype[Any]) -> None:
    logits = np.array([-INF, INF, NAN, -1e4, 1e4, -100, 100, 0, -0.0], dtype)
    assert_close(fl.sigmoid(logits), oracles.sigmoid(logits), dtype)
    assert_close(fl.log_sigmoid(logits), peers.as_array(F.logsigmoid(peers.as_tensor(logits))), dtype)


def test_a_sum_beyond_float16_is_infinite_without_a_warning() -> None:
    large = np.full(9, 300, np.float16)
    loss, gradient = fl.mse_loss(large, -large, reduction="none", return_grad=True)
    assert (loss == INF).all()
    assert (gradient == 1200).all()
    assert fl.mse_loss(large, -large) == INF
    assert fl.nll_loss(-200 * np.ones((400, 2), np.float16), np.zeros(400, int), reduction="sum") == INF


def test_sums_do_not_lose_small_terms() -> None:
    """In float32, adding up one row after another would stop at 2**24."""
    logits = np.zeros((20_000_000, 1), np.float32)
    assert fl.nll_loss(logits - 1, np.zeros(len(logits), np.int8), reduction="sum") == 2e7
    assert fl.mse_loss(logits, logits + 1, reduction="sum") == 2e7
