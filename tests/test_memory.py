"""What a call allocates: its results, and less than a mebibyte beside them.

tracemalloc sees every array that NumPy allocates. The kernels' own buffers, a row or a tile for each thread, it does
not see; they are far smaller.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastloss as fl

MEBIBYTE = 1 << 20
Arguments = tuple[np.ndarray, np.ndarray]


def peak(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Return the most bytes that a call had allocated at a time, its results included, after a first call."""
    function(*arguments, **options)
    tracemalloc.start()
    try:
        result = function(*arguments, **options)
        assert result is not None
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def of_classes(shape: tuple[int, int]) -> Arguments:
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, np.float32), rng.integers(0, shape[1], shape[0])


def of_probabilities(shape: tuple[int, int]) -> Arguments:
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, np.float32), rng.random(shape, np.float32)


def of_elements(shape: tuple[int, ...]) -> Arguments:
    rng = np.random.default_rng(0)
    return rng.random(shape, np.float32), rng.random(shape, np.float32)


MANY_CLASSES, FEW_CLASSES, ELEMENTS = (2_000, 1_000), (400_000, 5), (2_000_000,)
CASES = [
    pytest.param(function, arguments, shape, id=f"{function.__name__}-{arguments.__name__}-{shape}")
    for function, arguments, shapes in (
        (fl.cross_entropy, of_classes, (MANY_CLASSES, FEW_CLASSES)),
        (fl.cross_entropy, of_probabilities, (MANY_CLASSES, FEW_CLASSES)),
        (fl.nll_loss, of_classes, (MANY_CLASSES, FEW_CLASSES)),
        (fl.binary_cross_entropy, of_elements, (MANY_CLASSES, ELEMENTS)),
        (fl.binary_cross_entropy_with_logits, of_elements, (MANY_CLASSES, ELEMENTS)),
        (fl.mse_loss, of_elements, (MANY_CLASSES, ELEMENTS)),
        (fl.kl_div, of_elements, (MANY_CLASSES, ELEMENTS)),
    )
    for shape in shapes
]
losses = pytest.mark.parametrize(("function", "make", "shape"), CASES)


@losses
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_reduced_loss_allocates_nothing(function: Any, make: Any, shape: tuple[int, ...], reduction: str) -> None:
    assert peak(function, *make(shape), reduction=reduction) < MEBIBYTE


@losses
def test_unreduced_losses_are_all_that_is_allocated(function: Any, make: Any, shape: tuple[int, ...]) -> None:
    arguments = make(shape)
    bytes_of_losses = function(*arguments, reduction="none").nbytes
    assert peak(function, *arguments, reduction="none") < bytes_of_losses + MEBIBYTE


@losses
def test_the_gradient_is_all_that_is_allocated(function: Any, make: Any, shape: tuple[int, ...]) -> None:
    arguments = make(shape)
    assert peak(function, *arguments, return_grad=True) < arguments[0].nbytes + MEBIBYTE


@losses
def test_a_gradient_into_out_allocates_nothing(function: Any, make: Any, shape: tuple[int, ...]) -> None:
    x, target = make(shape)
    assert peak(function, x, target, return_grad=True, out=np.empty_like(x)) < MEBIBYTE


@losses
def test_a_gradient_in_place_allocates_nothing(function: Any, make: Any, shape: tuple[int, ...]) -> None:
    x, target = make(shape)
    if function is fl.binary_cross_entropy:  # its second call would find the first one's gradient instead
        function = _restored(x, function)
    assert peak(function, x, target, return_grad=True, out=x) < MEBIBYTE


def _restored(x: np.ndarray, function: Any) -> Callable[..., Any]:
    """Return `function`, each call of which begins with what `x` holds now."""
    original = x.copy()

    def call(*arguments: Any, **options: Any) -> Any:
        x[...] = original
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("function", [fl.cross_entropy, fl.nll_loss])
def test_class_losses_copy_no_layout(function: Any, layout: str) -> None:
    x, target = of_classes(FEW_CLASSES)
    x = np.asfortranarray(x) if layout == "transposed" else np.repeat(x, 2, axis=1)[:, ::2]
    assert peak(function, x, target) < MEBIBYTE
    assert peak(function, x, target, return_grad=True, out=np.empty_like(x)) < MEBIBYTE


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_no_cast_is_made_of_class_indices(dtype: type) -> None:
    x, target = of_classes(FEW_CLASSES)
    assert peak(fl.cross_entropy, x, target.astype(dtype)) < MEBIBYTE


@pytest.mark.parametrize("shape", [MANY_CLASSES, FEW_CLASSES])
@pytest.mark.parametrize("function", [fl.softmax, fl.log_softmax, fl.sigmoid, fl.log_sigmoid, fl.logsumexp])
def test_functions_allocate_their_result(function: Any, shape: tuple[int, int]) -> None:
    x, _ = of_classes(shape)
    result = function(x)
    assert peak(function, x) < result.nbytes + MEBIBYTE
    assert peak(function, x, out=np.empty_like(result)) < (result.nbytes if function is fl.logsumexp else 0) + MEBIBYTE


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int64, np.float64])
def test_targets_of_another_dtype_are_copied_once(dtype: type) -> None:
    x, target = of_elements(MANY_CLASSES)
    assert peak(fl.binary_cross_entropy_with_logits, x, (target > 0.5).astype(dtype)) < x.nbytes + MEBIBYTE


def test_weights_that_broadcast_are_not_written_out() -> None:
    x, target = of_elements(MANY_CLASSES)
    for weight in (np.ones((2_000, 1), np.float32), np.ones(1_000, np.float32), np.ones((), np.float32)):
        for function in (fl.mse_loss, fl.binary_cross_entropy, fl.binary_cross_entropy_with_logits):
            assert peak(function, x, target, weight) < MEBIBYTE


def test_sliced_elements_need_no_second_gradient() -> None:
    columns = np.ones((1000, 1500), np.float32)[:, :1000]
    target = np.zeros((1000, 1000), np.float32)
    buffer = np.empty_like(target)
    fl.mse_loss(columns, target, return_grad=True)
    assert peak(fl.mse_loss, columns, target, return_grad=True) < target.nbytes + 2**20
    assert peak(fl.mse_loss, columns, target, return_grad=True, out=buffer) < 2**20
