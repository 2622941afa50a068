"""Real training: the coefficients and the accuracy of scikit-learn's logistic regression, by L-BFGS around fastloss."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import fastloss as fl

PENALTY = 1.0
"""scikit-learn's C = 1: it minimises PENALTY times the sum of the losses plus half the squared coefficients."""


def train_softmax_regression(features: np.ndarray, target: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (coefficients (classes, features), intercepts) that minimise the penalised cross-entropy."""
    shape = (classes, features.shape[1] + 1)

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients, intercepts = np.split(parameters.reshape(shape), [-1], axis=1)
        logits = features @ coefficients.T + intercepts.T
        loss, grad = fl.cross_entropy(logits, target, reduction="sum", return_grad=True, out=logits)
        gradient = np.hstack([grad.T @ features + coefficients, grad.sum(axis=0)[:, None]])
        return loss + 0.5 * np.sum(coefficients**2), gradient.ravel()

    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-7}
    result = minimize(objective, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options=options)
    coefficients, intercepts = np.split(result.x.reshape(shape), [-1], axis=1)
    return coefficients, intercepts[:, 0]


def train_binary_regression(features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (coefficients (features,), intercept) that minimise the penalised binary cross-entropy."""

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients, intercept = parameters[:-1], parameters[-1]
        logits = features @ coefficients + intercept
        loss, grad = fl.binary_cross_entropy_with_logits(logits, target, reduction="sum", return_grad=True)
        gradient = np.append(features.T @ grad + coefficients, grad.sum())
        return loss + 0.5 * np.sum(coefficients**2), gradient

    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-7}
    start = np.zeros(features.shape[1] + 1)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return result.x[:-1], result.x[-1]


def test_softmax_regression_on_digits() -> None:
    pixels, target = load_digits(return_X_y=True)
    features = StandardScaler().fit_transform(pixels)
    train, test = slice(None, 1400), slice(1400, None)
    peer = LogisticRegression(C=PENALTY, tol=1e-8, max_iter=5000).fit(features[train], target[train])
    coefficients, intercepts = train_softmax_regression(features[train], target[train], 10)
    np.testing.assert_allclose(coefficients, peer.coef_, atol=2e-4)
    np.testing.assert_allclose(intercepts - intercepts.mean(), peer.intercept_ - peer.intercept_.mean(), atol=2e-4)
    predicted = (features[test] @ coefficients.T + intercepts).argmax(axis=1)
    assert np.mean(predicted == target[test]) == peer.score(features[test], target[test])
    assert np.mean(predicted == target[test]) > 0.9


def test_binary_regression_on_breast_cancer() -> None:
    measurements, target = load_breast_cancer(return_X_y=True)
    features = StandardScaler().fit_transform(measurements)
    train, test = slice(None, 400), slice(400, None)
    peer = LogisticRegression(C=PENALTY, tol=1e-8, max_iter=5000).fit(features[train], target[train])
    coefficients, intercept = train_binary_regression(features[train], target[train])
    np.testing.assert_allclose(coefficients, peer.coef_[0], atol=2e-4)
    np.testing.assert_allclose(intercept, peer.intercept_[0], atol=2e-4)
    predicted = features[test] @ coefficients + intercept > 0
    assert np.mean(predicted == target[test]) == peer.score(features[test], target[test])
    assert np.mean(predicted == target[test]) > 0.95


def test_float32_training_with_weights_and_smoothing_decreases_the_loss_to_torchs() -> None:
    """A hundred steps of gradient descent in float32 follow torch's, in place and with every option at once."""
    import torch

    pixels, target = load_digits(return_X_y=True)
    features = (pixels / 16).astype(np.float32)
    weight = np.linspace(0.5, 1.5, 10, dtype=np.float32)
    ours = np.zeros((64, 10), np.float32)
    theirs = torch.zeros((64, 10), requires_grad=True)
    labels, inputs, class_weight = torch.from_numpy(target), torch.from_numpy(features), torch.from_numpy(weight)
    for _ in range(100):
        logits = features @ ours
        loss, grad = fl.cross_entropy(logits, target, weight, label_smoothing=0.1, return_grad=True, out=logits)
        ours -= features.T @ grad
        peer = torch.nn.functional.cross_entropy(inputs @ theirs, labels, class_weight, label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(peer, theirs)
        with torch.no_grad():
            theirs -= gradient
        assert abs(float(loss) - peer.item()) <= 1e-5
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4)
    assert loss < 1.0
