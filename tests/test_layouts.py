"""Memory of any layout gives what contiguous memory gives, and no input is modified."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import pytest
from tolerances import assert_agree

import fastloss as fl
from fastloss import _engine

SHAPES: list[tuple[int, ...]] = [(40, 7), (9, 260), (3, 5, 24), (2, 260, 3, 2)]
FLOAT32 = np.dtype(np.float32)
each_layout = pytest.mark.parametrize("lay_out", cases.LAYOUTS.values(), ids=cases.LAYOUTS.keys())
each_writable_layout = pytest.mark.parametrize(
    "lay_out", cases.WRITABLE_LAYOUTS.values(), ids=cases.WRITABLE_LAYOUTS.keys()
)


def contiguous(array: np.ndarray) -> np.ndarray:
    """Return a copy of the same numbers in C order and native byte order."""
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def check(function: Callable[..., Any], lay_out: cases.Layout, folder: pathlib.Path, *arguments: np.ndarray) -> None:
    """Assert that laying out any one of the arguments changes neither the loss and gradient nor the argument."""
    for position in range(len(arguments)):
        laid_out = list(arguments)
        laid_out[position] = lay_out(arguments[position], folder)
        before = contiguous(laid_out[position])
        expected = function(*map(contiguous, laid_out), return_grad=True)
        for result, expected_result in zip(function(*laid_out, return_grad=True), expected, strict=True):
            assert_agree(result, expected_result, arguments[0].dtype)
        np.testing.assert_array_equal(laid_out[position], before)


def test_one_kernel_serves_all_layouts() -> None:
    logits, kernels = cases.logits_of((29, 260), FLOAT32), _engine._lazy().of_rows
    of_columns = logits.copy("F")
    for name, axis, first, *others in (
        ("rows", 1, logits, of_columns, logits[:1], logits[:, :259], logits[:, ::2]),
        ("batches", 1, logits[:, :200].copy(), logits[:, :200], logits[:1, :64], logits[::2, 9:99]),
        ("tiles", 0, of_columns, of_columns[:, :1], of_columns[:, ::2], logits[:, ::2]),
        ("planes", 0, logits, logits[:28], logits[:, :259], logits[::2]),
    ):
        fl.softmax(first, axis)
        compiled = len(kernels[name].overloads)
        assert compiled > 0
        for array in others:
            fl.softmax(array, axis)
        assert len(kernels[name].overloads) == compiled


def test_one_kernel_serves_targets_and_weights_however_they_lie() -> None:
    (logits, target, weight), _ = cases.class_arguments(cases.ClassOptions(weighted=True), (29, 260), FLOAT32)
    kernel = _engine._lazy().of_rows["rows"]
    losses = [fl.cross_entropy(logits, target, weight)]
    compiled = len(kernel.overloads)
    losses.append(fl.cross_entropy(logits, np.repeat(target, 2)[::2], np.broadcast_to(weight, weight.shape)))
    assert len(kernel.overloads) == compiled
    assert losses[0] == losses[1]


@each_layout
def test_cross_entropy_of_class_indices(lay_out: cases.Layout, tmp_path: pathlib.Path) -> None:
    for shape in SHAPES:
        arguments, _ = cases.class_arguments(cases.ClassOptions(weighted=True), shape, FLOAT32)
        check(fl.cross_entropy, lay_out, tmp_path, *arguments)


def test_rows_of_few_classes_need_not_follow_one_another() -> None:
    """Nor need those of the gradient where those of the logits do."""
    (logits, target, _), _ = cases.class_arguments(cases.ClassOptions(), (3, 5, 24), FLOAT32)
    channels_last, slices = np.empty((3, 24, 5), FLOAT32), np.empty((3, 30, 5), FLOAT32)
    arrays = [logits.copy(), channels_last.transpose(0, 2, 1), slices[:, :24].transpose(0, 2, 1), logits.copy("F")]
    _, expected = fl.cross_entropy(logits, target, return_grad=True)
    for input in arrays:
        input[...] = logits
        for out in (array.copy("K") if array is not arrays[2] else slices.copy()[:, :24].transpose(0, 2, 1)
                    for array in arrays):  # fmt: skip
            fl.cross_entropy(input, target, return_grad=True, out=out)
            assert_agree(out, expected, FLOAT32)


@each_layout
def test_cross_entropy_of_class_probabilities(lay_out: cases.Layout, tmp_path: pathlib.Path) -> None:
    for shape in SHAPES:
        arguments, _ = cases.class_arguments(cases.ClassOptions(of_probabilities=True), shape, FLOAT32)
        check(fl.cross_entropy, lay_out, tmp_path, *arguments[:2])


@each_layout
def test_nll_loss(lay_out: cases.Layout, tmp_path: pathlib.Path) -> None:
    for shape in SHAPES:
        arguments, _ = cases.class_arguments(cases.ClassOptions(), shape, FLOAT32)
        check(fl.nll_loss, lay_out, tmp_path, *arguments[:2])


@each_layout
def test_binary_cross_entropy_with_logits(lay_out: cases.Layout, tmp_path: pathlib.Path) -> None:
    def loss_of(input: np.ndarray, target: np.ndarray, weight: np.ndarray, pos_weight: np.ndarray, **k: Any) -> Any:
        return fl.binary_cross_entropy_with_logits(input, target, weight, pos_weight=pos_weight, **k)

    for shape in [*SHAPES, (8, 3, 4, 5, 6)]:
        probabilities = cases.probabilities_of(shape, FLOAT32)
        check(loss_of, lay_out, tmp_path, cases.logits_of(shape, FLOAT32), probabilities, probabilities, probabilities)


@each_layout
@pytest.mark.parametrize("dtype", [cases.DTYPES[0], cases.DTYPES[1], cases.DTYPES[3]], ids=cases.name_of)
def test_other_dtypes(lay_out: cases.Layout, dtype: np.dtype[Any], tmp_path: pathlib.Path) -> None:
    for shape in SHAPES:
        check(fl.mse_loss, lay_out, tmp_path, cases.logits_of(shape, dtype), cases.probabilities_of(shape, dtype))


@each_writable_layout
def test_out(lay_out: cases.Layout, tmp_path: pathlib.Path) -> None:
    for shape in SHAPES:
        (logits, target, _), _ = cases.class_arguments(cases.ClassOptions(), shape, FLOAT32)
        probabilities = cases.probabilities_of(shape, FLOAT32)
        out = lay_out(np.full(shape, np.nan, FLOAT32), tmp_path)
        for function, second in (
            (fl.cross_entropy, target),
            (fl.nll_loss, target),
            (fl.binary_cross_entropy_with_logits, probabilities),
        ):
            _, expected = function(logits, second, return_grad=True)
            _, gradient = function(logits, second, return_grad=True, out=out)
            assert gradient is out
            assert_agree(out, expected, FLOAT32)
        assert fl.softmax(logits, out=out) is out
        assert_agree(out, fl.softmax(logits), FLOAT32)


@each_writable_layout
def test_in_place(lay_out: cases.Layout, tmp_path: pathlib.Path) -> None:
    for shape in SHAPES:
        (logits, target, _), _ = cases.class_arguments(cases.ClassOptions(), shape, FLOAT32)
        for function, second in (
            (fl.cross_entropy, target),
            (fl.nll_loss, target),
            (fl.binary_cross_entropy_with_logits, cases.probabilities_of(shape, FLOAT32)),
        ):
            memory = lay_out(logits, tmp_path)
            _, expected = function(logits, second, return_grad=True)
            _, gradient = function(memory, second, return_grad=True, out=memory)
            assert gradient is memory
            assert_agree(memory, expected, FLOAT32)


def test_what_lies_between_the_elements_of_out_is_untouched() -> None:
    for shape in [(40, 7), (9, 260)]:
        (logits, target, _), _ = cases.class_arguments(cases.ClassOptions(), shape, FLOAT32)
        for function, second in (
            (fl.cross_entropy, target),
            (fl.nll_loss, target),
            (fl.binary_cross_entropy_with_logits, cases.probabilities_of(shape, FLOAT32)),
        ):
            for steps in ((2, 2), (1, 2), (2, 1)):
                memory = np.full([step * length for step, length in zip(steps, shape, strict=True)], 7, FLOAT32)
                between = np.ones(memory.shape, bool)
                between[:: steps[0], :: steps[1]] = False
                function(logits, second, return_grad=True, out=memory[:: steps[0], :: steps[1]])
                assert (memory[between] == 7).all()


def check_large(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Assert that what is streamed are whole lines, and that what lies before and behind `out` stays as it was."""
    logits, rng = cases.logits_of(shape, dtype), np.random.default_rng(0)
    target = rng.integers(0, shape[1], shape[:1] + shape[2:])
    target[..., ::7] = -100
    loss, gradient = fl.cross_entropy(logits.astype(np.float64), target, return_grad=True)
    softmax = fl.softmax(logits.astype(np.float64))
    for skipped in (0, 1, 4, 13):
        memory = np.full(logits.size + 32, 7, dtype)
        out = memory[skipped : skipped + logits.size].reshape(shape)
        assert_agree(fl.cross_entropy(logits, target, return_grad=True, out=out)[0], loss, dtype)
        assert_agree(out, gradient, dtype)
        assert_agree(fl.softmax(logits, out=out), softmax, dtype)
        assert (memory[:skipped] == 7).all()
        assert (memory[skipped + logits.size :] == 7).all()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5, 2_048, 2_049])
def test_large_images_wherever_their_gradient_begins(classes: int) -> None:
    check_large((2, classes, (9 << 20) // 4 // 2 // classes | 1), FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("classes", [24, 64, 99, 255, 300])
def test_large_rows_wherever_their_gradient_begins(classes: int, dtype: np.dtype[Any]) -> None:
    check_large(((9 << 20) // dtype.itemsize // classes | 1, classes), dtype)
