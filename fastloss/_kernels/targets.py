"""Targets that are class indices: whether they are valid, what they weigh, and so the scale of the gradient."""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined, shared
from fastloss._kernels._memory import class_indices, lookup, pointer
from fastloss._kernels._simd import LANES, constant, lane_numbers, select, sum_lanes, widen

WEIGHT, INVALID = -2, -1
"""Where a kernel's sums hold, behind those of the losses, the sum of the weights, and 1 where an index is invalid."""

LARGEST_INT32 = (1 << 31) - 1
"""Up to so many classes their indices are looked at in vectors."""

SERIAL_ROWS = 1 << 15
"""Below so many class indices one thread looks at them faster than several."""


@inlined
def class_index(target, o, i, classes, ignore_index):
    """Return target[o, i], or -1 where it is `ignore_index` or outside [0, classes)."""
    y = np.int64(target[o, i])
    return y if 0 <= y < classes and y != ignore_index else -1


@inlined
def weight_of(class_weight, label):
    """Return the weight of the class `label` as float64, 1 where there are no weights."""
    return 1.0 if class_weight is None else np.float64(class_weight[label])


@inlined
def is_ignored(y, ignore_index):
    """Return whether the integer `y` is `ignore_index`; an unsigned one is never negative, whatever its bits."""
    return np.int64(y) == ignore_index and (y < 0) == (ignore_index < 0)


@inlined
def _weights_of(class_weight, label):
    """Return the weights of a vector of classes as float64, 1 without `class_weight`; 0 where a label is negative."""
    if class_weight is None:
        return widen(select(label >= 0, constant(label, 1), 0))
    return widen(select(label >= 0, lookup(class_weight, label), 0.0))


@shared
def _survey(launcher, blocks, block, target, classes, ignore_index, class_weight, rows_per_block, out_sums):
    """Fill `out_sums` with the sums of the weights of the valid class indices, by blocks of `rows_per_block`.

    Its element `INVALID`, 0 so far, becomes 1 where there is an invalid one. `target` (outer, inner) is of any integer
    dtype; an index is valid in [0, classes), and neither valid nor invalid where it is `ignore_index`. Without
    `class_weight` each weighs 1. Reads the targets once.
    """
    if distributed(launcher, blocks, block):
        return
    at = block * rows_per_block
    last = min(at + rows_per_block, target.size)
    inner = target.shape[1]
    step = target.strides[1] // target.itemsize
    weights = pointer(class_weight, (0,))
    invalid = lane_numbers() & 0
    weight, of_huge = widen(invalid), 0.0
    while at < last:
        o = at // inner
        start = at - o * inner
        stop = min(start + last - at, inner)
        row = pointer(target, (o, 0))
        if classes <= LARGEST_INT32:
            for i in range(start, stop, LANES):
                label = class_indices(row, i * step, step, stop - i, classes, ignore_index)
                weight = weight + _weights_of(weights, label)
                invalid = invalid + select(label < -1, constant(label, 1), 0)
        else:
            for i in range(start, stop):
                label = class_index(target, o, i, classes, ignore_index)
                if label >= 0:
                    of_huge += weight_of(class_weight, label)
                elif not is_ignored(target[o, i], ignore_index):
                    out_sums[INVALID] = 1.0
        at += stop - start
    if sum_lanes(invalid) > 0:
        out_sums[INVALID] = 1.0  # several threads may write it, all the same value
    out_sums[block] = sum_lanes(weight) + of_huge


@shared
def surveyed(launcher, block, target, classes, ignore_index, class_weight, out_sums):
    """Return whether the kernel goes on: False in a user's call, where `block` is -1, with an invalid class index.

    The user's call looks at all of them, before anything is written: it puts what `WEIGHT` and `INVALID` say into
    `out_sums`, zeros so far. The other elements, the kernel's sums of losses, hold those of the weights meanwhile.
    """
    if target is None or block >= 0:
        return True
    blocks = out_sums.size - 2
    rows_per_block = (target.size + blocks - 1) // blocks
    launcher = launcher if target.size >= SERIAL_ROWS else 0
    _survey(launcher, blocks, block, target, classes, ignore_index, class_weight, rows_per_block, out_sums)
    weight = 0.0
    for number in range(blocks):
        weight += out_sums[number]
    out_sums[WEIGHT] = weight
    return out_sums[INVALID] == 0.0


@inlined
def scale_of_rows(scale, mean, out_sums):
    """Return the factor of the gradient: `scale`, for the `mean` over what `surveyed` found divided by its weight."""
    return scale / out_sums[WEIGHT] if mean else scale
