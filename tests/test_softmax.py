"""softmax, log_softmax and logsumexp along every axis, against longdouble loops, torch and SciPy."""

from __future__ import annotations

from typing import Any

import cases
import ml_dtypes
import numpy as np
import oracles
import peers
import pytest
import scipy.special
import torch
from tolerances import assert_agree, assert_no_worse

import fastloss as fl

FUNCTIONS: dict[str, tuple[Any, Any, Any, Any]] = {
    "softmax": (fl.softmax, torch.softmax, oracles.softmax, scipy.special.softmax),
    "log_softmax": (fl.log_softmax, torch.log_softmax, oracles.log_softmax, scipy.special.log_softmax),
    "logsumexp": (fl.logsumexp, torch.logsumexp, oracles.logsumexp, scipy.special.logsumexp),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)

SHAPES: list[tuple[int, ...]] = [
    (1,), (2,), (7,), (48,), (1003,), (21, 2), (40, 7), (35, 12), (9, 31), (33, 64), (2, 2051), (2, 3, 5), (3, 64, 2),
    (4, 3, 2, 50), (0, 3),
]  # fmt: skip


@each_function
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_as_exact_as_torchs(name: str, dtype: np.dtype[Any]) -> None:
    ours, theirs, truth, _ = FUNCTIONS[name]
    for shape in SHAPES:
        logits = cases.logits_of(shape, dtype)
        for axis in range(-len(shape), len(shape)):
            if shape[axis] > 0:
                peers_result = peers.as_array(theirs(peers.as_tensor(logits), axis))
                assert_no_worse(ours(logits, axis), peers_result, truth(logits, axis), dtype)


@each_function
def test_scipy_agrees(name: str) -> None:
    ours, _, _, scipys = FUNCTIONS[name]
    for shape in ((7,), (33, 64), (2, 3, 5)):
        logits = cases.logits_of(shape, np.dtype(np.float64))
        for axis in range(len(shape)):
            assert_agree(ours(logits, axis), scipys(logits, axis), np.float64)


@each_function
def test_every_layout_and_axis(name: str, tmp_path: Any) -> None:
    ours = FUNCTIONS[name][0]
    for shape in ((4, 3, 50), (2, 20, 5)):
        values = cases.logits_of(shape, np.dtype(np.float32))
        for lay_out in cases.LAYOUTS.values():
            logits = lay_out(values, tmp_path)
            native = np.array(logits, np.float32, order="C")
            for axis in range(3):
                assert_agree(ours(logits, axis), ours(native, axis), np.float32)
        np.testing.assert_array_equal(logits, native)


@each_function
def test_out_receives_the_values(name: str) -> None:
    ours = FUNCTIONS[name][0]
    for shape in ((9, 31), (9, 64)):
        logits = cases.logits_of(shape, np.dtype(np.float32))
        expected = ours(logits)
        outs = [np.empty_like(expected), np.empty((*expected.shape, 2), np.float32)[..., 0]]
        if expected.shape == shape:
            outs += [np.empty(shape, np.float32, order="F"), logits]
        for out in outs:
            assert ours(logits, out=out) is out
            assert_agree(out, expected, np.float32)


@each_function
def test_many_classes(name: str) -> None:
    ours, theirs, truth, _ = FUNCTIONS[name]
    for shape in ((2, 300_000), (5, 70_000), (70, 5_000)):
        logits = cases.logits_of(shape, np.dtype(np.float32))
        peers_result = peers.as_array(theirs(peers.as_tensor(logits), -1))
        assert_no_worse(ours(logits), peers_result, truth(logits), np.float32)


@pytest.mark.parametrize("classes", [2, 7, 48, 1003])
def test_probabilities_sum_to_one(classes: int) -> None:
    probabilities = fl.softmax(cases.logits_of((33, classes), np.dtype(np.float64)))
    assert_agree(probabilities.sum(axis=-1), np.ones(33), np.float64)
    assert (probabilities > 0).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("classes", [9, 300, 3000])
def test_halves_with_a_dominant_class(classes: int, dtype: type) -> None:
    """What is certain stays so: the exponential is exact where it is 1."""
    x = np.full((2, classes), -40, dtype)
    x[:, 3] = 7
    assert (fl.log_softmax(x) <= 0).all()
    assert (fl.log_softmax(x)[:, 3] == 0).all()
    assert (fl.softmax(x)[:, 3] == 1).all()
    assert (fl.logsumexp(x) == 7).all()
