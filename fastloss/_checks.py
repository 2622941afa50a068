"""What an argument must be: errors that name it, and arrays that the engine can work with.

Wrong dtypes are TypeErrors, wrong shapes and options ValueErrors.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

FLOATS = "float16, bfloat16, float32 or float64"
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether `dtype` is the bfloat16 of ml_dtypes, which need not be installed."""
    return dtype.itemsize == 2 and dtype.name == "bfloat16"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether `dtype` is one of `FLOATS`, in any byte order."""
    return dtype.char in "efd" or is_bfloat16(dtype)


def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which elements of `dtype` are computed: float32 for the half types, else itself."""
    return _FLOAT64 if dtype.char == "d" else _FLOAT32


def at(position: Sequence[Any]) -> str:
    """Return the index `position` as one types it behind an array's name."""
    return f"[{', '.join(str(int(index)) for index in position)}]" if len(position) else ""


def _plain_array(name: str, value: Any) -> np.ndarray:
    """Return `value` as an array that is not masked; one of NumPy's own at once, for the sake of small calls."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; it must be a plain one, such as its filled() is")
    return np.asarray(value)


def float_array(name: str, value: Any) -> np.ndarray:
    """Return `value` as an aligned array of a float dtype in native byte order; integers and booleans as float64."""
    array = _plain_array(name, value)
    dtype = array.dtype
    if (dtype is _FLOAT32 or dtype is _FLOAT64) and array.flags.aligned:  # as most are: spares small calls the rest
        return array
    if dtype.kind in "iub":
        return array.astype(np.float64)
    if not is_float(dtype):
        raise TypeError(f"{name} has dtype {dtype}; it must be {FLOATS}, or integers")
    if not dtype.isnative or not array.flags.aligned:
        return array.astype(dtype.newbyteorder("="))
    return array


def like_input(name: str, value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Return `value` as an array of real numbers in `dtype`, itself where it is one."""
    array = _plain_array(name, value)
    if array.dtype.kind not in "iub":  # which need not become float64 on their way
        array = float_array(name, array)
    return array if array.dtype == dtype else array.astype(dtype)


def reduction_option(reduction: str, allowed: Sequence[str] = ("mean", "sum", "none")) -> None:
    if not isinstance(reduction, str) or reduction not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise ValueError(f"reduction is {reduction!r}; it must be one of {names}")


def smoothing_option(label_smoothing: float) -> float:
    """Return `label_smoothing` as a float of [0, 1]."""
    if not isinstance(label_smoothing, (float, numbers.Real)):  # float first, for a look-up in the registry is slow
        raise TypeError(f"label_smoothing is {label_smoothing!r}; it must be a number")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie between 0 and 1")
    return float(label_smoothing)


def index_option(name: str, value: Any) -> int:
    """Return `value` as an int that fits into 64 bits."""
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it must be an integer") from None
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"{name} is {index}; it must fit into 64 bits")
    return index


def class_axis(input: np.ndarray) -> int:
    """Return the class axis of logits of shape (C,) or (N, C, d1, ..., dK)."""
    if input.ndim == 0:
        raise ValueError("input has no dimensions; it must have shape (C,) or (N, C, d1, ..., dK)")
    return 1 if input.ndim > 1 else 0


def axis_option(axis: Any, ndim: int) -> int:
    """Return `axis` as an index of [0, ndim)."""
    index = index_option("axis", axis)
    if not -ndim <= index < ndim:
        raise np.exceptions.AxisError(index, ndim)
    return index % ndim


def same_shape(name: str, array: np.ndarray, shape: tuple[int, ...], of: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; {of} needs {shape}")


def class_weights(weight: Any, classes: int, dtype: np.dtype[Any]) -> np.ndarray | None:
    """Return `weight`, one per class, as a contiguous array of the accumulator of `dtype`."""
    if weight is None:
        return None
    array = float_array("weight", weight)
    same_shape("weight", array, (classes,), f"an input of {classes} classes")
    return np.ascontiguousarray(array, accumulator(dtype))


def class_target(
    target: Any, input: np.ndarray, axis: int, may_be_soft: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return (class indices, None), for the classes along `axis`, or (None, class probabilities).

    The indices are an aligned array in their own integer dtype and native byte order. If it `may_be_soft`, a target of
    the input's shape holds probabilities.
    """
    array = _plain_array("target", target)
    shape = input.shape
    if may_be_soft and array.shape == shape:
        if not is_float(array.dtype):
            raise TypeError(
                f"target has dtype {array.dtype} and the input's shape {shape}, that of class probabilities; "
                f"they must be {FLOATS}"
            )
        return None, like_input("target", array, input.dtype)
    if array.size == 0 and not isinstance(target, np.ndarray):
        array = array.astype(np.int64)  # NumPy makes float64 of an empty list
    if array.dtype.kind not in "iu":
        raise TypeError(f"target has dtype {array.dtype}; class indices must be integers")
    same_shape("target", array, shape[:axis] + shape[axis + 1 :], f"an input of shape {shape}")
    if not array.dtype.isnative or not array.flags.aligned:
        array = array.astype(array.dtype.newbyteorder("="))
    return array, None


def element_target(target: Any, input: np.ndarray) -> np.ndarray:
    """Return `target` in the dtype of `input`, whose shape it must have."""
    array = like_input("target", target, input.dtype)
    same_shape("target", array, input.shape, "the input")
    return array


def broadcast_weights(name: str, weight: Any, input: np.ndarray) -> np.ndarray | None:
    """Return `weight` in the accumulator of `input`, broadcast to its shape without a copy of that size."""
    if weight is None:
        return None
    array = like_input(name, weight, accumulator(input.dtype))
    try:
        return np.broadcast_to(array, input.shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}; it must broadcast to the input's {input.shape}") from None


def output(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray | None:
    """Return `out` if a result of `shape` and `dtype` can be written to it."""
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is of type {type(out).__name__}; it must be a NumPy array")
    _plain_array("out", out)
    if out.dtype != dtype:
        raise TypeError(f"out has dtype {out.dtype}; it must have that of the result, {dtype}")
    same_shape("out", out, shape, "the result")
    if not out.flags.writeable:
        raise ValueError("out is read-only; it must be writable")
    return out


def gradient_output(out: Any, return_grad: bool, input: np.ndarray) -> np.ndarray | None:
    """Return `out` if the gradient by `input` can be written to it."""
    if out is not None and not return_grad:
        raise ValueError("out receives the gradient, so it needs return_grad=True")
    return output(out, input.shape, input.dtype)
