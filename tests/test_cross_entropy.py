"""cross_entropy and nll_loss against longdouble loops and torch, over options, dtypes and shapes."""

from __future__ import annotations

import itertools
import re
from typing import Any

import cases
import numpy as np
import oracles
import peers
import pytest
import torch.nn.functional as F
from tolerances import assert_agree, assert_close, assert_no_worse

import fastloss as fl
from fastloss import _engine

BOTH_KERNELS = [(9, 7), (9, 260)]
"""Shapes whose lanes run over rows, and over classes."""

OPTIONS_AND_DTYPES = [
    (options, dtype)
    for options in cases.CLASS_OPTIONS
    for dtype in (cases.DTYPES if options in cases.OPTIONS_OF_ALL_DTYPES else [np.dtype(np.float32)])
]


def compare(
    arguments: tuple[Any, ...], keywords: dict[str, Any], truth: tuple[np.ndarray, np.ndarray] | None = None
) -> None:
    """Assert that loss and gradient of cross_entropy are no worse than torch's."""
    loss, gradient = fl.cross_entropy(*arguments, **keywords, return_grad=True)
    true_loss, true_gradient = truth or oracles.cross_entropy(*arguments, **keywords)
    peers_loss, peers_gradient = peers.torch_loss(F.cross_entropy, *arguments, **keywords)
    assert_no_worse(loss, peers_loss, true_loss, arguments[0].dtype)
    assert_no_worse(gradient, peers_gradient, true_gradient, arguments[0].dtype)


@pytest.mark.parametrize(("options", "dtype"), OPTIONS_AND_DTYPES, ids=cases.name_of)
def test_cross_entropy_is_as_exact_as_torchs(options: cases.ClassOptions, dtype: np.dtype[Any]) -> None:
    for shape in cases.SHAPES:
        compare(*cases.class_arguments(options, shape, dtype))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_nll_loss_is_as_exact_as_torchs(dtype: np.dtype[Any]) -> None:
    options = cases.ClassOptions("mean", weighted=True, ignore_index=-1)
    for shape in cases.SHAPES:
        (logits, target, weight), keywords = cases.class_arguments(options, shape, dtype)
        del keywords["label_smoothing"]
        arguments = -np.abs(logits), target, weight
        for reduction in ("mean", "sum"):
            keywords["reduction"] = reduction
            loss, gradient = fl.nll_loss(*arguments, **keywords, return_grad=True)
            true_loss, true_gradient = oracles.nll_loss(*arguments, **keywords)
            peers_loss, peers_gradient = peers.torch_loss(F.nll_loss, *arguments, **keywords)
            assert_no_worse(loss, peers_loss, true_loss, dtype)
            assert_no_worse(gradient, peers_gradient, true_gradient, dtype)


@pytest.mark.parametrize("options", cases.OPTIONS_OF_ALL_DTYPES, ids=cases.name_of)
def test_loss_is_the_same_without_the_gradient(options: cases.ClassOptions) -> None:
    for shape in BOTH_KERNELS:
        arguments, keywords = cases.class_arguments(options, shape, np.dtype(np.float32))
        loss, _ = fl.cross_entropy(*arguments, **keywords, return_grad=True)
        assert_close(fl.cross_entropy(*arguments, **keywords), loss, np.float32)


@pytest.mark.parametrize("options", cases.OPTIONS_OF_ALL_DTYPES, ids=cases.name_of)
def test_gradient_is_the_slope_of_the_loss(options: cases.ClassOptions) -> None:
    for shape in BOTH_KERNELS:
        (logits, *others), keywords = cases.class_arguments(options, shape, np.dtype(np.float64))
        _, gradient = fl.cross_entropy(logits, *others, **keywords, return_grad=True)
        step = 1e-3 * cases.generator("step", shape).normal(size=shape)
        steps = [logits + number * step for number in (-2, -1, 1, 2)]
        losses = [np.sum(fl.cross_entropy(there, *others, **keywords, return_grad=True)[0]) for there in steps]
        assert np.sum(gradient * step) == pytest.approx(np.dot(losses, [1, -8, 8, -1]) / 12, rel=1e-9)


@pytest.mark.parametrize("dtype", cases.INTEGERS, ids=cases.name_of)
def test_class_indices_of_every_integer_dtype(dtype: np.dtype[Any]) -> None:
    ignored = 5
    for shape in BOTH_KERNELS:
        logits = cases.logits_of(shape, np.dtype(np.float32))
        target = np.array([0, 1, 2, 3, 4, ignored, 6, 6, 0])
        expected = fl.cross_entropy(logits, target, ignore_index=ignored)
        for indices in (target.astype(dtype), target.astype(dtype.newbyteorder())):
            assert fl.cross_entropy(logits, indices, ignore_index=ignored) == expected


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 17, 200])
def test_weights_of_no_number_stay_in_their_rows(classes: int) -> None:
    """Those of absent classes are inf where weights are the inverse of what there is of a class."""
    ordinary = np.ones(classes, np.float32)
    for rows, bad, ignored in itertools.product((5, 32), (np.inf, np.nan), (-100, 0)):
        x = cases.generator(classes).normal(size=(rows, classes)).astype(np.float32)
        target = np.ones(rows, np.int64)
        if rows == 32:
            target[::7] = ignored
        weight = ordinary.copy()
        weight[0] = bad
        for reduction in ("sum", "none"):
            options = {"ignore_index": ignored, "reduction": reduction, "return_grad": True}
            expected = fl.cross_entropy(x, target, ordinary, **options)
            actual = fl.cross_entropy(x, target, weight, **options)
            for one, other in zip(actual, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 16, 17, 200])
def test_blocks_with_rows_to_ignore_and_without(classes: int) -> None:
    rng = cases.generator(classes)
    logits = rng.normal(size=(600, classes)).astype(np.float32)
    target = rng.integers(classes, size=600)
    for ignored in (1, -100):
        target[300:330:3] = target[599] = ignored
        truth, true_gradient = oracles.cross_entropy(logits, target, ignore_index=ignored)
        for order, indices in itertools.product("CF", (target, np.repeat(target, 2)[::2])):
            x = np.asarray(logits, order=order)
            loss, gradient = fl.cross_entropy(x, indices, ignore_index=ignored, return_grad=True)
            assert loss == pytest.approx(float(truth), rel=1e-6)
            np.testing.assert_allclose(gradient, true_gradient.astype(np.float32), rtol=1e-5, atol=1e-9)
            assert fl.cross_entropy(x, indices, ignore_index=ignored) == pytest.approx(float(truth), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 17, 200])
def test_an_invalid_class_index_among_many(classes: int) -> None:
    logits = cases.generator(classes).normal(size=(40, classes)).astype(np.float32)
    for bad, position, with_grad in itertools.product((-1, classes, 1 << 32), (0, 16, 39), (False, True)):
        target = np.zeros(40, np.int64)
        target[position] = bad
        message = re.escape(f"target[{position}] is {bad}, but there are {classes} classes")
        with pytest.raises(IndexError, match=f"^{message}$"):
            fl.cross_entropy(logits, target, return_grad=with_grad)


def test_lists_and_integers_are_float64() -> None:
    loss, gradient = fl.cross_entropy([[1, 2, 0], [0, 0, 3]], [1, 2], [1, 1, 2], return_grad=True)
    expected, expected_gradient = fl.cross_entropy(
        np.array([[1.0, 2, 0], [0, 0, 3]]), np.array([1, 2]), np.array([1.0, 1, 2]), return_grad=True
    )
    assert (loss, loss.dtype, gradient.dtype) == (expected, np.float64, np.float64)
    np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize("loss_of", [fl.cross_entropy, fl.nll_loss])
@pytest.mark.parametrize("shape", BOTH_KERNELS)
def test_out_receives_the_gradient(loss_of: Any, shape: tuple[int, ...]) -> None:
    (logits, target, _), _ = cases.class_arguments(cases.ClassOptions(), shape, np.dtype(np.float32))
    expected, expected_gradient = loss_of(logits, target, return_grad=True)
    out = np.empty_like(logits)
    loss, gradient = loss_of(logits, target, return_grad=True, out=out)
    assert gradient is out
    assert loss == expected
    np.testing.assert_array_equal(gradient, expected_gradient)
    in_place = logits.copy()
    loss, gradient = loss_of(in_place, target, return_grad=True, out=in_place)
    assert gradient is in_place
    assert loss == expected
    np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize("shape", [(3, 300_000), (5, 70_000), (5, 5_000), (70, 5_000)], ids=str)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_many_classes(shape: tuple[int, int], label_smoothing: float) -> None:
    options = cases.ClassOptions(label_smoothing=label_smoothing)
    compare(*cases.class_arguments(options, shape, np.dtype(np.float32)))


def test_many_classes_with_probabilities() -> None:
    options = cases.ClassOptions("none", weighted=True, label_smoothing=0.1, of_probabilities=True)
    for shape in ((2, 300_000), (5, 5_000)):
        compare(*cases.class_arguments(options, shape, np.dtype(np.float32)))


def test_many_classes_that_do_not_lie_side_by_side(tmp_path: Any) -> None:
    options = cases.ClassOptions("none", weighted=True, label_smoothing=0.1, of_probabilities=True)
    (logits, probabilities, weight), keywords = cases.class_arguments(options, (2, 200_000), np.dtype(np.float32))
    expected, expected_gradient = fl.cross_entropy(logits, probabilities, weight, **keywords, return_grad=True)
    strided = cases.by_two(logits, tmp_path), cases.by_two(probabilities, tmp_path), weight
    for out in (None, np.zeros_like(logits), np.zeros(logits.shape, np.float32, order="F")):
        loss, gradient = fl.cross_entropy(*strided, **keywords, return_grad=True, out=out)
        assert_agree(loss, expected, np.float32)
        assert_agree(gradient, expected_gradient, np.float32)


def test_many_rows() -> None:
    """Enough of them that the threads share the work, in blocks that do not divide evenly."""
    for shape in ((20_011, 2), (5_003, 10), (701, 100), (3, 10, 41, 43)):
        arguments, keywords = cases.class_arguments(cases.ClassOptions(), shape, np.dtype(np.float32))
        compare(arguments, keywords)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_rows_of_several_blocks_are_streamed_to_any_place(
    dtype: np.dtype[Any], in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "STREAMED_BYTES", 1)
    rng = np.random.default_rng(0)
    for classes, offset in ((2049, 0), (2080, 3), (4128, 17), (1003, 30)):
        logits = (4 * rng.normal(size=(6, classes))).astype(dtype)
        target = np.array([0, classes - 1, -100, 2048 % classes, 17, -100])
        memory = np.full(logits.size + 64, 7, dtype)
        out = memory[offset : offset + logits.size].reshape(logits.shape)
        truth, gradient = oracles.cross_entropy(logits, target, reduction="sum")
        peer = peers.torch_loss(F.cross_entropy, logits, target, reduction="sum")
        if in_place:
            out[...] = logits
        loss, _ = fl.cross_entropy(out if in_place else logits, target, reduction="sum", return_grad=True, out=out)
        assert_no_worse(loss, peer[0], truth, dtype)
        assert_no_worse(out, peer[1], gradient, dtype)
        assert (memory[:offset] == 7).all()
        assert (memory[offset + logits.size :] == 7).all()


@pytest.mark.parametrize("highest", [-50.0, -100.0, -800.0])
def test_a_block_of_masked_logits_has_gradient_zero(highest: float) -> None:
    logits = np.full((2, 4200), highest, np.float32)
    logits[:, :2100] = -np.inf
    target = np.array([2100, 4199])
    loss, gradient = fl.cross_entropy(logits, target, return_grad=True)
    true_loss, true_gradient = oracles.cross_entropy(logits, target)
    assert_close(loss, true_loss, np.float32)
    assert_close(gradient, true_gradient, np.float32)
    assert_close(fl.softmax(logits), oracles.softmax(logits), np.float32)


@pytest.mark.parametrize(
    ("classes", "itemsize", "kernel"), [(2, 4, "few"), (16, 4, "few"), (17, 4, "tiles"), (8, 8, "few"), (9, 8, "tiles")]
)
def test_few_classes_are_smoothed_by_their_kernels(classes: int, itemsize: int, kernel: str) -> None:
    strides = classes * itemsize, itemsize
    plan = _engine._plan((33, classes), (strides, None, strides, None), 1, itemsize, True, "few", True)
    assert plan is not None
    assert plan.name == kernel


@pytest.mark.parametrize(
    ("itemsize", "with_output", "first", "last"),
    [(2, True, 64, 255), (4, True, 64, 255), (4, False, 160, 255), (8, True, 32, 127), (8, False, 80, 127)],
)
def test_rows_of_medium_length_go_in_batches(itemsize: int, with_output: bool, first: int, last: int) -> None:
    """With class indices or without targets, if outputs have their rows side by side; those of the input need not."""
    for classes, for_few, gap, smoothed in itertools.product(
        range(first - 1, last + 2), ("few", "softmax_few", None), (0, 64), (False, True)
    ):
        strides, apart = (classes * itemsize, itemsize), (classes * itemsize + gap, itemsize)
        for output in (strides, apart) if with_output else (None,):
            plan = _engine._plan((99, classes), (apart, None, output, None), 1, itemsize, True, for_few, smoothed)
            assert plan is not None
            expected = first <= classes <= last and for_few and not smoothed and (output != apart or gap == 0)
            assert (plan.name == "batches") == bool(expected)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
@pytest.mark.parametrize("classes", [2, 5])
def test_one_row_of_many_is_ignored_or_invalid(classes: int, dtype: type) -> None:
    """Sixteen rows are looked at together."""
    logits = cases.logits_of((50, classes), np.dtype(np.float32))
    for position in range(50):
        target = (np.arange(50) % classes).astype(dtype)
        target[position] = 100
        others = np.arange(50) != position
        loss = fl.cross_entropy(logits, target, ignore_index=100)
        assert_agree(loss, fl.cross_entropy(logits[others], target[others]), np.dtype(np.float32))
        with pytest.raises(IndexError, match=rf"target\[{position}\] is 100, but there are {classes} classes"):
            fl.cross_entropy(logits, target)
