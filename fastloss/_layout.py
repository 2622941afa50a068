"""Views of any array as three axes that a kernel can walk, and the copies where there is no such view.

The kernels of rows see (outer, C, inner), those of elements (outer, middle, inner). Axes are reordered by the input's
strides and merged where the memory of every array involved allows it, so that C and Fortran order, channels-last,
slices and reversed axes all come down to three strides.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

ALIGNED_ROWS = 16
"""So many rows fill whole vectors: the kernels' LANES, which cannot be had without importing Numba."""

JOINED_FROM = 1000
"""From so many rows on to join them costs less than to walk them."""

SHORT_ROW = 32
"""In rows of fewer elements it is faster to copy an operand that is broadcast along them than to walk by rows."""


class _Writable:
    """Lends the memory of a read-only array to NumPy as if it could be written to."""

    def __init__(self, array: np.ndarray) -> None:
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.array = array


def writable(array: np.ndarray) -> np.ndarray:
    """Return `array`, read-only memory as if it could be written to.

    Numba would compile a kernel once more for read-only arguments; no kernel writes to an input.
    """
    return array if array.flags.writeable else np.asarray(_Writable(array))


def stored(array: np.ndarray) -> np.ndarray:
    """Return an array of floats as the kernels take it: half types as the integers that stand for them there.

    Of a subclass it is the plain array: a np.matrix would keep its two axes whatever the view.
    """
    if type(array) is not np.ndarray:
        array = array.view(np.ndarray)
    if array.itemsize == 2:
        array = array.view(np.int16 if array.dtype == np.float16 else np.uint16)
    return writable(array)


def _by_stride(strides: Sequence[int], axes: Sequence[int]) -> list[int]:
    """Return `axes` from the longest of the `strides` to the shortest."""
    return sorted(axes, key=lambda axis: -abs(strides[axis]))


def _groups(shape: Sequence[int], strides: Sequence[Sequence[int]], axes: Sequence[int]) -> list[list[int]]:
    """Return `axes` in groups that each are one axis in the memory of all arrays of the `shape` and the `strides`.

    Axes of length 1 are left out.
    """
    groups: list[list[int]] = []
    for axis in axes:
        length = shape[axis]
        if length == 1:
            continue
        if groups and all(of_array[groups[-1][-1]] == of_array[axis] * length for of_array in strides):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


class Rows(NamedTuple):
    """How the axes of (N, C, d1, ..., dK), in any order, become (outer, C, inner)."""

    axes: tuple[int, ...]
    """As outer, the classes and inner count them."""
    shape: tuple[int, int, int]
    """(outer, C, inner)."""
    batch_axes: tuple[int, ...]
    """The axes of an array without the class axis, such as class indices, in the order of `axes`."""
    batch_shape: tuple[int, ...]
    """Their lengths."""
    batch_order: tuple[int, ...]
    """Where among `batch_axes` each axis of such an array is: the permutation that undoes them."""
    is_ordered: bool
    """Whether `batch_axes` are in order."""
    row_axis: int | None
    """The axis along which the rows of inner follow one another, None where there is but one."""

    def view(self, array: np.ndarray) -> np.ndarray:
        """Return the (outer, C, inner) view of an array shaped like the input."""
        if type(array) is not np.ndarray or array.itemsize == 2 or not array.flags.writeable:
            array = stored(array)
        return array.transpose(self.axes).reshape(self.shape)

    def batch(self, array: np.ndarray) -> np.ndarray:
        """Return an array shaped like the input without its class axis as (outer, inner), copied where it must be."""
        if not self.is_ordered:
            array = array.transpose(self.batch_axes)
        outer, _, inner = self.shape
        array = array.reshape(outer, inner)
        return array if array.flags.writeable else writable(array)

    def unbatch(self, array: np.ndarray) -> np.ndarray:
        """Return the (outer, inner) array in the shape of the input without its class axis."""
        return array.reshape(self.batch_shape).transpose(self.batch_order)


def rows(shape: tuple[int, ...], strides: Sequence[Sequence[int]], class_axis: int) -> Rows | None:
    """Return how arrays of one shape become (outer, C, inner), None where their strides allow no such view."""
    axes = _by_stride(strides[0], [axis for axis in range(len(shape)) if axis != class_axis])
    groups = _groups(shape, strides, axes)
    if len(groups) > 2:
        return None
    outer, inner = ([[], [], *groups])[-2:]
    lengths = math.prod(shape[axis] for axis in outer), shape[class_axis], math.prod(shape[axis] for axis in inner)
    ones = [axis for axis in axes if axis not in outer and axis not in inner]
    others = (*ones, *outer, *inner)
    batch_axes = tuple(axis - (axis > class_axis) for axis in others)
    return Rows(
        axes=(*ones, *outer, class_axis, *inner),
        shape=lengths,
        batch_axes=batch_axes,
        batch_shape=tuple(shape[axis] for axis in others),
        batch_order=tuple(sorted(range(len(others)), key=batch_axes.__getitem__)),
        is_ordered=batch_axes == tuple(range(len(others))),
        row_axis=inner[-1] if inner else None,
    )


def materialised(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return a copy of `array`, broadcast or not, in the memory order of `like`."""
    copy = np.empty_like(like, dtype=array.dtype)
    copy[...] = array
    return copy


def overlaps_itself(array: np.ndarray) -> bool:
    """Return whether elements of `array` may share memory, as those of broadcast arrays and sliding windows do."""
    extent = array.itemsize
    for axis in reversed(_by_stride(array.strides, range(array.ndim))):
        if array.shape[axis] > 1:
            stride = abs(array.strides[axis])
            if stride < extent:
                return True
            extent += stride * (array.shape[axis] - 1)
    return False


_Steps = tuple[tuple[int, ...], int]
"""The strides and the itemsize of an array."""


def _steps_of(array: np.ndarray | None) -> _Steps | None:
    return None if array is None else (array.strides, array.itemsize)


@functools.lru_cache(256)
def _walked_axes(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (all axes of an input from the outermost to the innermost, the innermost that is longer than 1)."""
    axes = _by_stride(strides, range(len(shape)))
    return tuple(axes), tuple(axis for axis in axes if shape[axis] != 1)[-1:]


def is_walkable_like(output: np.ndarray, input: np.ndarray) -> bool:
    """Return whether `elements` can view `output`, contiguous where `input` is, as at most three axes."""
    return _is_walkable(output.shape, output.strides, output.itemsize, input.strides)


@functools.lru_cache(256)
def _is_walkable(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, strides_of_input: tuple[int, ...]
) -> bool:
    axes, inner = _walked_axes(shape, strides_of_input)
    return len(_groups(shape, [strides], axes)) <= 3 and all(strides[axis] == itemsize for axis in inner)


class _Walk(NamedTuple):
    """How arrays of one shape become (outer, middle, inner), or which of them must be copied first."""

    to_copy: tuple[bool, ...]
    """Of the input and the operands; empty where none must, and only then is there what follows."""
    axes: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    def views(self, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        return [None if array is None else stored(array).transpose(self.axes).reshape(self.shape) for array in arrays]


@functools.lru_cache(256)
def _walk(
    shape: tuple[int, ...], input: _Steps, operands: tuple[_Steps | None, ...], outputs: tuple[_Steps | None, ...]
) -> _Walk:
    """Return the walk of an input, operands and outputs with such steps.

    Their axes follow one another as the input's do, by stride; those that are one axis in the memory of all are merged.
    """
    axes, inner = _walked_axes(shape, input[0])
    to_copy = [any(input[0][axis] != input[1] for axis in inner)]
    to_copy += [of is not None and any(of[0][axis] not in (of[1], 0) for axis in inner) for of in operands]
    if any(to_copy):
        return _Walk(tuple(to_copy))
    groups = _groups(shape, [of[0] for of in (input, *operands, *outputs) if of is not None], axes)
    if len(groups) > 3:
        return _Walk((True,) * len(to_copy))
    three = ([[], [], [], *groups])[-3:]
    ones = [axis for axis in axes if shape[axis] == 1]
    return _Walk((), (*ones, *itertools.chain(*three)), tuple(math.prod(shape[axis] for axis in of) for of in three))


def elements(
    input: np.ndarray, operands: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray | None]
) -> tuple[np.ndarray, list[np.ndarray | None], list[np.ndarray | None]]:
    """Return all arrays, of one shape, as (outer, middle, inner), None for None; each inner axis contiguous.

    Operands may be broadcast along it. An input or operand that cannot be walked with the others is copied. The outputs
    are such that `is_walkable_like` holds.
    """
    walk = _walk(
        input.shape, (input.strides, input.itemsize), tuple(map(_steps_of, operands)), tuple(map(_steps_of, outputs))
    )
    if walk.to_copy:
        source = materialised(input, input) if walk.to_copy[0] else input
        sources = [
            materialised(array, source) if to_copy and array is not None else array
            for to_copy, array in zip(walk.to_copy[1:], operands, strict=True)
        ]
        return elements(source, sources, outputs)  # once or twice: copies of all, and outputs like these, can be walked
    x, *views = walk.views((input, *operands, *outputs))
    assert x is not None
    return x, views[: len(operands)], views[len(operands) :]


def with_joined_rows(
    input: np.ndarray, operands: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray | None], elements: int
) -> list[tuple[np.ndarray, list[np.ndarray | None], list[np.ndarray | None]]]:
    """Return parts of what `elements` returned, in which so many rows are one that it has about so many `elements`.

    The last part holds the rows left over, as one. Operands that are broadcast along the rows, such as the weights of
    few classes, are repeated: they would cut the walk into rows as short as they are.
    """
    outer, rows, inner = input.shape
    if rows < JOINED_FROM or outer > 1:
        return [(input, list(operands), list(outputs))]
    count = min(elements // max(inner, 1), rows)
    if count > ALIGNED_ROWS:
        count -= count % ALIGNED_ROWS

    def is_dense(array: np.ndarray | None) -> bool:
        return array is None or array.strides[1:] == (inner * array.itemsize, array.itemsize)

    repeated = [array is not None and array.strides[1] == 0 for array in operands]
    of_rows = [array for array, repeats in zip(operands, repeated, strict=True) if not repeats]
    if inner < SHORT_ROW:  # those that are broadcast within a row will be copied
        of_rows = [array for array in of_rows if array is not None and array.strides[2] != 0]
    if count < 2 or not all(map(is_dense, (input, *of_rows, *outputs))):
        return [(input, list(operands), list(outputs))]

    def source_of(array: np.ndarray | None, repeats: bool) -> np.ndarray | None:
        if array is None:
            return None
        return np.tile(array[0, 0], count) if repeats else np.ascontiguousarray(array)

    sources = [source_of(array, repeats) for array, repeats in zip(operands, repeated, strict=True)]
    parts = []
    for start, joined, length in ((0, rows // count, count), (rows - rows % count, 1, rows % count)):
        if length > 0:
            of_input, *views = (_joined(array, start, joined, length * inner) for array in (input, *sources, *outputs))
            assert of_input is not None
            parts.append((of_input, views[: len(sources)], views[len(sources) :]))
    return parts


def _joined(array: np.ndarray | None, start: int, joined: int, width: int) -> np.ndarray | None:
    """Return `joined` rows of `width` elements: of a dense array from the row `start` on, or a flat one repeated."""
    if array is None:
        return None
    of_rows, row_bytes = (array, 0) if array.ndim == 1 else (array[:, start:], width * array.itemsize)
    return as_strided(of_rows, (1, joined, width), (0, row_bytes, array.itemsize))
