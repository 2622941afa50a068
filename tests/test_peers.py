"""What other libraries and their documentation say of the same numbers."""

from __future__ import annotations

import numpy as np
import peers
import pytest
import scipy.special
import sklearn.metrics
import torch
from tolerances import assert_agree, assert_close

import fastloss as fl

LOGITS = np.random.default_rng(1).normal(0, 3, (33, 9))
PROBABILITIES = scipy.special.softmax(LOGITS, axis=1)
LABELS = np.arange(33) % 9


def test_sklearns_log_loss_of_many_classes() -> None:
    expected = sklearn.metrics.log_loss(LABELS, PROBABILITIES)
    assert_close(fl.cross_entropy(LOGITS, LABELS), expected, np.float64)
    assert_close(fl.nll_loss(np.log(PROBABILITIES), LABELS), expected, np.float64)


def test_sklearns_log_loss_of_two_classes() -> None:
    logits, labels = LOGITS[:, 0], LABELS % 2
    expected = sklearn.metrics.log_loss(labels, scipy.special.expit(logits))
    assert_close(fl.binary_cross_entropy(scipy.special.expit(logits), labels), expected, np.float64)
    assert_close(fl.binary_cross_entropy_with_logits(logits, labels), expected, np.float64)


def test_two_classes_are_one_logit() -> None:
    """The softmax over (0, x) is the sigmoid of x."""
    logits, labels = LOGITS[:, 0], LABELS % 2
    loss, gradient = fl.cross_entropy(np.stack([np.zeros(33), logits], axis=1), labels, return_grad=True)
    expected, expected_gradient = fl.binary_cross_entropy_with_logits(logits, labels, return_grad=True)
    assert_close(loss, expected, np.float64)
    assert_close(gradient[:, 1], expected_gradient, np.float64)
    assert_close(gradient[:, 0], -expected_gradient, np.float64)


def test_weights_are_repetitions() -> None:
    counts = np.arange(1, 10)
    rows = np.repeat(np.arange(33), counts[LABELS])
    expected = fl.cross_entropy(LOGITS[rows], LABELS[rows])
    assert_close(fl.cross_entropy(LOGITS, LABELS, counts), expected, np.float64)


def test_log_softmax_then_nll_is_cross_entropy() -> None:
    assert_close(fl.nll_loss(fl.log_softmax(LOGITS, 1), LABELS), fl.cross_entropy(LOGITS, LABELS), np.float64)


def test_scipys_functions() -> None:
    assert_close(fl.sigmoid(LOGITS), scipy.special.expit(LOGITS), np.float64)
    assert_close(fl.log_sigmoid(LOGITS), scipy.special.log_expit(LOGITS), np.float64)
    assert_agree(fl.softmax(LOGITS, 0), scipy.special.softmax(LOGITS, 0), np.float64)
    assert_agree(fl.log_softmax(LOGITS, 0), scipy.special.log_softmax(LOGITS, 0), np.float64)
    assert_agree(fl.logsumexp(LOGITS, 0), scipy.special.logsumexp(LOGITS, 0), np.float64)


def test_scipys_divergences() -> None:
    p, q = PROBABILITIES, PROBABILITIES[::-1]
    expected = scipy.special.rel_entr(p, q)
    assert_agree(fl.kl_div(np.log(q), p, reduction="none"), expected, np.float64)
    assert_agree(fl.kl_div(np.log(q), np.log(p), log_target=True, reduction="none"), expected, np.float64)
    # scipy's kl_div has + q - p in each element, which sums to 0 over a distribution.
    assert_agree(fl.kl_div(np.log(q), p, reduction="batchmean"), scipy.special.kl_div(p, q).sum() / 33, np.float64)
    zeros = np.zeros_like(p)
    assert_agree(fl.kl_div(np.log(q), zeros, reduction="none"), scipy.special.xlogy(zeros, zeros), np.float64)
    entropies = -scipy.special.xlogy(p, p) - scipy.special.xlog1py(1 - p, -p)
    assert_agree(fl.binary_cross_entropy(p, p, reduction="none"), entropies, np.float64)


def test_torchs_mean_squared_error_of_its_normal_numbers() -> None:
    """The figures are those of torch 2.13.0."""
    torch.manual_seed(420)
    input, target = peers.as_array(torch.randn(50, 1)), peers.as_array(torch.randn(50, 1))
    assert round(float(fl.mse_loss(input, target)), 4) == 2.4869
    assert round(float(fl.mse_loss(input, target, reduction="sum")), 4) == 124.3458


def test_sklearns_documented_log_loss() -> None:
    """The example of sklearn.metrics.log_loss: 0.21616."""
    probabilities = np.array([[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]])
    assert fl.nll_loss(np.log(probabilities), [1, 0, 0, 1]) == pytest.approx(0.21616, abs=5e-6)
    assert fl.binary_cross_entropy(probabilities[:, 1], [1, 0, 0, 1]) == pytest.approx(0.21616, abs=5e-6)


def test_torchs_documented_pos_weight() -> None:
    """The example of torch.nn.BCEWithLogitsLoss: targets of 1, logits of 1.5, positive weights of 1 give 0.20."""
    loss = fl.binary_cross_entropy_with_logits(np.full((10, 64), 1.5), np.ones((10, 64)), pos_weight=np.ones(64))
    assert round(float(loss), 2) == 0.20
