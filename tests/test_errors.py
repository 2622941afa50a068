"""What is wrong with an argument: the type of the error, and a message with its name, its value and what it must be."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastloss as fl
from fastloss import _engine

LOGITS = np.zeros((4, 10), np.float32)
INDICES = np.array([0, 1, 2, 3])
ONES = np.ones((4, 10), np.float32)

CLASS_LOSSES = [fl.cross_entropy, fl.nll_loss]
ELEMENT_LOSSES = [fl.binary_cross_entropy, fl.binary_cross_entropy_with_logits, fl.mse_loss, fl.kl_div]
WEIGHTED = [fl.binary_cross_entropy, fl.binary_cross_entropy_with_logits, fl.mse_loss]
SOFTMAXES = [fl.softmax, fl.log_softmax, fl.logsumexp]
FUNCTIONS = [*SOFTMAXES, fl.sigmoid, fl.log_sigmoid]


def assert_raises(
    error: type[Exception], fragments: list[str], function: Callable[..., Any], *a: Any, **k: Any
) -> None:
    """Assert that the call raises `error`, and that each of the fragments is in its message."""
    with pytest.raises(error) as caught:
        function(*a, **k)
    assert caught.type is error
    for fragment in fragments:
        assert fragment in str(caught.value)


def a_target(function: Callable[..., Any]) -> np.ndarray:
    return INDICES if function in CLASS_LOSSES else ONES


@pytest.mark.parametrize("function", [*CLASS_LOSSES, *ELEMENT_LOSSES, *FUNCTIONS])
@pytest.mark.parametrize(
    "bad", [LOGITS.astype(complex), LOGITS.astype("M8[s]"), LOGITS.astype(str), LOGITS.astype("O")]
)
def test_dtype_of_input(function: Any, bad: np.ndarray) -> None:
    targets = () if function in FUNCTIONS else (a_target(function),)
    fragments = ["input has dtype", str(bad.dtype), "must be float16, bfloat16, float32 or float64, or integers"]
    assert_raises(TypeError, fragments, function, bad, *targets)


@pytest.mark.parametrize("function", CLASS_LOSSES)
@pytest.mark.parametrize("dtype", ["?", "f4", "c8", "U1", "O"])
def test_dtype_of_class_indices(function: Any, dtype: str) -> None:
    bad = INDICES.astype(dtype)
    assert_raises(TypeError, ["target has dtype", str(bad.dtype), "must be integers"], function, LOGITS, bad)


@pytest.mark.parametrize("dtype", ["?", "i8", "c8", "O"])
def test_dtype_of_class_probabilities(dtype: str) -> None:
    bad = ONES.astype(dtype)
    fragments = ["target has dtype", str(bad.dtype), "probabilities", "must be float16, bfloat16, float32 or float64"]
    assert_raises(TypeError, fragments, fl.cross_entropy, LOGITS, bad)


@pytest.mark.parametrize("function", ELEMENT_LOSSES)
def test_target_of_elements(function: Any) -> None:
    assert_raises(TypeError, ["target has dtype complex128"], function, ONES, ONES.astype(complex))
    for shape in ((4,), (10,), (4, 1), (10, 4), (4, 10, 1), ()):
        fragments = ["target has shape", str(shape), "the input needs (4, 10)"]
        assert_raises(ValueError, fragments, function, ONES, np.ones(shape, np.float32))


@pytest.mark.parametrize("function", CLASS_LOSSES)
def test_shape_of_class_indices(function: Any) -> None:
    for shape in ((), (3,), (5,), (4, 1), (1, 4), (10,)):
        fragments = ["target has shape", str(shape), "input of shape (4, 10) needs (4,)"]
        assert_raises(ValueError, fragments, function, LOGITS, np.zeros(shape, int))
    assert_raises(ValueError, ["(2, 3)", "(2, 5, 3, 2)"], function, np.zeros((2, 5, 3, 2)), np.zeros((2, 3), int))
    assert_raises(ValueError, ["input has no dimensions", "(C,)"], function, np.float32(1), 0)


@pytest.mark.parametrize("function", CLASS_LOSSES)
def test_class_weights(function: Any) -> None:
    for shape in ((), (1,), (9,), (4, 10)):
        fragments = ["weight has shape", str(shape), "10 classes needs (10,)"]
        assert_raises(ValueError, fragments, function, LOGITS, INDICES, np.ones(shape))
    assert_raises(TypeError, ["weight has dtype complex128"], function, LOGITS, INDICES, np.ones(10, complex))


@pytest.mark.parametrize("function", WEIGHTED)
def test_weights_of_elements(function: Any) -> None:
    for shape in ((4,), (3, 10), (1, 4, 10), (2, 4, 10)):
        fragments = ["weight has shape", str(shape), "must broadcast to the input's (4, 10)"]
        assert_raises(ValueError, fragments, function, ONES, ONES, np.ones(shape))
    assert_raises(TypeError, ["weight has dtype"], function, ONES, ONES, np.ones(10, complex))


def test_pos_weight() -> None:
    function = fl.binary_cross_entropy_with_logits
    fragments = ["pos_weight has shape (4,)", "must broadcast to the input's (4, 10)"]
    assert_raises(ValueError, fragments, function, ONES, ONES, pos_weight=np.ones(4))
    assert_raises(TypeError, ["pos_weight has dtype complex128"], function, ONES, ONES, pos_weight=1j)


@pytest.mark.parametrize("function", [*CLASS_LOSSES, *ELEMENT_LOSSES])
@pytest.mark.parametrize("reduction", ["avg", "batchmean", "MEAN", "", None])
def test_reduction(function: Any, reduction: Any) -> None:
    if (function, reduction) != (fl.kl_div, "batchmean"):
        fragments = ["reduction is", repr(reduction), "'mean'", "'sum'", "'none'"]
        assert_raises(ValueError, fragments, function, ONES, a_target(function), reduction=reduction)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, np.nan, np.inf])
def test_range_of_label_smoothing(smoothing: float) -> None:
    fragments = ["label_smoothing is", str(smoothing), "between 0 and 1"]
    assert_raises(ValueError, fragments, fl.cross_entropy, LOGITS, INDICES, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", ["much", None, [0.1, 0.2]])
def test_type_of_label_smoothing(smoothing: Any) -> None:
    fragments = ["label_smoothing is", repr(smoothing), "must be a number"]
    assert_raises(TypeError, fragments, fl.cross_entropy, LOGITS, INDICES, label_smoothing=smoothing)


@pytest.mark.parametrize("function", CLASS_LOSSES)
def test_ignore_index(function: Any) -> None:
    for bad in (1.0, None, "1"):
        fragments = ["ignore_index is", repr(bad), "must be an integer"]
        assert_raises(TypeError, fragments, function, LOGITS, INDICES, ignore_index=bad)
    assert_raises(ValueError, ["ignore_index is", "64 bits"], function, LOGITS, INDICES, ignore_index=2**63)


def test_ignore_index_with_class_probabilities() -> None:
    fragments = ["ignore_index is 0", "must be negative", "class probabilities"]
    assert_raises(ValueError, fragments, fl.cross_entropy, LOGITS, ONES, ignore_index=0)


@pytest.mark.parametrize("function", SOFTMAXES)
def test_axis(function: Any) -> None:
    for axis in (2, -3):
        fragments = [f"axis {axis} is out of bounds", "dimension 2"]
        assert_raises(np.exceptions.AxisError, fragments, function, LOGITS, axis)
    assert_raises(TypeError, ["axis is 1.0", "must be an integer"], function, LOGITS, 1.0)
    assert_raises(np.exceptions.AxisError, ["axis -1 is out of bounds"], function, 1.0)


@pytest.mark.parametrize("function", [*CLASS_LOSSES, *ELEMENT_LOSSES, *FUNCTIONS])
def test_out(function: Any) -> None:
    arguments = (ONES,) if function in FUNCTIONS else (ONES, a_target(function))
    keywords = {} if function in FUNCTIONS else {"return_grad": True}
    shape = (4,) if function is fl.logsumexp else (4, 10)
    read_only = np.ones(shape, np.float32)
    read_only.flags.writeable = False
    for error, out, fragments in (
        (TypeError, [1.0], ["of type list", "must be a NumPy array"]),
        (TypeError, np.ones(shape, np.float64), ["dtype float64", "float32"]),
        (TypeError, np.ones(shape, ">f4"), ["dtype >f4", "float32"]),
        (ValueError, np.ones((*shape, 1), np.float32), ["shape", str((*shape, 1)), f"needs {shape}"]),
        (ValueError, read_only, ["read-only", "must be writable"]),
    ):
        assert_raises(error, ["out", *fragments], function, *arguments, **keywords, out=out)
    if keywords:
        assert_raises(ValueError, ["out", "return_grad=True"], function, *arguments, out=np.ones(shape, np.float32))


@pytest.mark.parametrize("function", CLASS_LOSSES)
@pytest.mark.parametrize("bad", [-1, -99, -101, 10, 17, 2**31, 2**40, -(2**63), 2**63 - 1])
def test_class_index_out_of_range(function: Any, bad: int) -> None:
    message = re.escape(f"target[3] is {bad}, but there are 10 classes")
    with pytest.raises(IndexError, match=f"^{message}$"):
        function(LOGITS, np.array([0, 9, -100, bad]))


@pytest.mark.parametrize("function", CLASS_LOSSES)
def test_first_class_index_out_of_range(function: Any) -> None:
    target = np.zeros((3, 4), np.int32)
    target[1, 2], target[1, 3], target[2, 0] = 17, -3, 18
    for order in "CF":
        assert_raises(
            IndexError, ["target[1, 2] is 17, but there are 5 classes"], function, np.zeros((3, 5, 4)),
            np.asarray(target, order=order),
        )  # fmt: skip
    assert_raises(IndexError, ["target is 5, but there are 5 classes"], function, np.zeros(5), 5)
    assert_raises(IndexError, ["target[0] is 0, but there are 0 classes"], function, np.zeros((1, 0)), [0])


@pytest.mark.parametrize("function", CLASS_LOSSES)
def test_unsigned_class_index_is_never_negative(function: Any) -> None:
    for dtype, bad in ((np.uint64, 2**64 - 100), (np.uint32, 2**32 - 100), (np.uint8, 156)):
        target = np.array([0, 1, 2, bad], dtype)
        assert_raises(IndexError, [f"target[3] is {bad}, but there are 10 classes"], function, LOGITS, target)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [-0.001, "below 0", "above 1", 1.001, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"return_grad": True}, {"reduction": "none"}, {"weight": 0.0}])
def test_probability_out_of_range(bad: Any, dtype: Any, options: dict[str, Any]) -> None:
    """Whether the range is checked before the kernel runs, as for `out`, or where it is nan that comes out."""
    bad = {"below 0": np.nextafter(dtype(0), dtype(-1)), "above 1": np.nextafter(dtype(1), dtype(2))}.get(bad, bad)
    wrong = np.full((4, 10), 0.5, dtype)
    wrong[2, 3] = bad
    right = np.linspace(0, 1, 40, dtype=dtype).reshape(4, 10)
    fragments = [f"[2, 3] is {wrong[2, 3]}", "must lie between 0 and 1"]
    for more in [options, options | {"return_grad": True, "out": np.empty_like(wrong)}]:
        assert_raises(ValueError, ["input", *fragments], fl.binary_cross_entropy, wrong, right, **more)
        assert_raises(ValueError, ["target", *fragments], fl.binary_cross_entropy, right, wrong, **more)
    assert_raises(ValueError, ["input is 2.0"], fl.binary_cross_entropy, 2.0, 1.0)


def test_a_loss_of_nan_whose_probabilities_are_in_range_is_no_error() -> None:
    weight = np.array([1, np.nan, np.inf])
    loss, grad = fl.binary_cross_entropy([0.0, 0.5, 1.0], [0.0, 1.0, 1.0], weight, return_grad=True)
    assert np.isnan(loss)
    np.testing.assert_array_equal(np.isnan(grad), [False, True, True])


def assert_untouched(error: type[Exception], function: Any, input: np.ndarray, target: np.ndarray, **k: Any) -> None:
    """Assert that a call that raises leaves `out` as it was, another array or the input itself."""
    for out in (np.full_like(input, np.nan), input.copy()):
        before = out.tobytes()
        first = out if not np.isnan(out[0, 0]) else input
        with pytest.raises(error):
            function(first, target, return_grad=True, out=out, **k)
        assert out.tobytes() == before


@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize("function", CLASS_LOSSES)
def test_out_is_untouched_by_a_class_index_out_of_range(function: Any, classes: int) -> None:
    logits, target = np.ones((100_000, classes), np.float32), np.zeros(100_000, np.int32)
    target[-1] = classes
    assert_untouched(IndexError, function, logits, target)


def test_out_is_untouched_by_other_errors() -> None:
    probabilities, target = np.full((50_000, 3), 0.5, np.float32), np.ones((50_000, 3), np.float32)
    target[-1, -1] = np.nan
    assert_untouched(ValueError, fl.binary_cross_entropy, probabilities, target)
    for function in ELEMENT_LOSSES:
        assert_untouched(ValueError, function, ONES, ONES, reduction="avg")
        assert_untouched(ValueError, function, ONES, ONES[:3])
    assert_untouched(ValueError, fl.cross_entropy, LOGITS + 1, ONES, ignore_index=1)
    for function in CLASS_LOSSES:
        assert_untouched(ValueError, function, LOGITS + 1, INDICES, weight=np.ones(9))
        assert_untouched(ValueError, function, LOGITS + 1, INDICES[:3])
        assert_untouched(TypeError, function, LOGITS + 1, INDICES, weight=np.ones(10, complex))
        assert_untouched(TypeError, function, LOGITS + 1, INDICES * 1.0)
        assert_untouched(TypeError, function, LOGITS + 1, INDICES, ignore_index=1.0)
    for function in WEIGHTED:
        assert_untouched(ValueError, function, ONES, ONES, weight=np.ones(4))
        assert_untouched(TypeError, function, ONES, ONES.astype(complex))
    assert_untouched(ValueError, fl.cross_entropy, LOGITS + 1, INDICES, label_smoothing=2)


def test_out_that_overlaps_an_operand_is_no_error() -> None:
    """It may be the input exactly, overlap it, or be another operand: the result is that of separate memory."""
    numbers = np.random.default_rng(0).uniform(0, 1, 101).astype(np.float32)
    weight = np.ones(10, np.float32)
    for function in (fl.cross_entropy, *ELEMENT_LOSSES):
        for input_at, target_at, out_at in ((0, 50, 1), (1, 50, 0), (0, 50, 49), (0, 50, 50), (0, 50, 51), (0, 50, 0)):
            memory = numbers.copy()
            input, target, out = (memory[at : at + 40].reshape(4, 10) for at in (input_at, target_at, out_at))
            extra = {} if function is fl.kl_div else {"weight": weight}
            expected, expected_gradient = function(input.copy(), target.copy(), **extra, return_grad=True)
            loss, gradient = function(input, target, **extra, return_grad=True, out=out)
            assert loss == expected
            assert gradient is out
            np.testing.assert_array_equal(gradient, expected_gradient)
    for function in (fl.softmax, fl.log_softmax, fl.sigmoid, fl.log_sigmoid):
        memory = numbers.copy()
        input, out = memory[:40].reshape(4, 10), memory[3:43].reshape(4, 10)
        expected = function(input.copy())
        assert function(input, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_masked_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match="input is a masked array"):
        fl.softmax(np.ma.masked_invalid([1.0, np.nan]))
    with pytest.raises(TypeError, match="out is a masked array"):
        fl.softmax([1.0, 2.0], out=np.ma.zeros(2))


@pytest.mark.parametrize("function", [fl.cross_entropy, fl.nll_loss, *ELEMENT_LOSSES, *SOFTMAXES[:2], *FUNCTIONS[-2:]])
@pytest.mark.parametrize("subclass", [np.matrix, np.recarray, np.memmap])
@pytest.mark.parametrize("columns", [7, 300])
def test_out_of_a_subclass_gets_what_a_plain_array_does(function: Any, subclass: Any, columns: int) -> None:
    """A np.matrix would have two axes whatever its view."""
    input = np.random.default_rng(0).uniform(0, 1, (50, columns)).astype(np.float32)
    target = () if function in FUNCTIONS else (np.zeros(50, int) if function in CLASS_LOSSES else input[::-1].copy(),)
    options = {} if function in FUNCTIONS else {"return_grad": True}
    expected, out = (np.full_like(input, 9) for _ in range(2))
    function(input, *target, **options, out=expected)
    result = function(input, *target, **options, out=out.view(subclass))
    assert type(result if function in FUNCTIONS else result[1]) is subclass
    np.testing.assert_array_equal(out, expected)


def test_weights_of_nothing_are_no_error() -> None:
    for weight in (2.0, [[1.0]], np.ones((3, 0))):
        loss, grad = fl.mse_loss(np.zeros((3, 0)), np.zeros((3, 0)), weight, return_grad=True)
        assert np.isnan(loss)
        assert grad.shape == (3, 0)


def test_nan_in_bfloat16_is_an_error_without_a_warning() -> None:
    with pytest.raises(ValueError, match=r"input\[1\] is nan"):
        fl.binary_cross_entropy(np.array([0.5, np.nan], ml_dtypes.bfloat16), np.zeros(2, ml_dtypes.bfloat16))


def test_out_that_overlaps_itself_gets_what_any_other_does() -> None:
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(10.0), 4, writeable=True)
    expected = fl.softmax(windows.copy())
    assert fl.softmax(windows, out=windows) is windows
    np.testing.assert_array_equal(windows[-1], expected[-1])


@pytest.mark.parametrize("function", [*CLASS_LOSSES, fl.binary_cross_entropy])
def test_what_another_thread_puts_right_is_an_error_all_the_same(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error's position is looked for after the kernel has found that there is one."""
    monkeypatch.setattr(_engine, "_first_where", lambda *_: None)
    input = np.full((4, 10), 0.5)
    if function is fl.binary_cross_entropy:  # whose input and target are looked at together
        with pytest.raises(ValueError, match=r"^input or target has been changed during the call"):
            function(input, np.full((4, 10), 2.0))
    else:
        with pytest.raises(IndexError, match=r"^target has been changed during the call"):
            function(input, np.full(4, 17))


def test_numpys_error_state_does_not_matter() -> None:
    logits = np.array([[12, 0, 0], [1, 0, 0]], np.float16)
    with np.errstate(all="raise"):
        losses = fl.cross_entropy(logits, [0, 0], reduction="none")
        assert np.isinf(fl.mse_loss(np.full(9, 6e4, np.float16), np.zeros(9, np.float16)))
    assert losses.dtype == np.float16


def test_weights_of_half_precision_losses_may_be_too_large_for_it() -> None:
    ones, zeros = np.ones(9, np.float16), np.zeros(9, np.float16)
    assert fl.mse_loss(ones, zeros, 1e5) == 1
    assert fl.mse_loss(ones, zeros, np.full(9, 1e-9)) == 1
