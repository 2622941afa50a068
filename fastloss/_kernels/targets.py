"""Targets that are class indices: where they are valid, what they weigh."""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined, kernel
from fastloss._kernels._memory import class_indices, pointer
from fastloss._kernels._simd import LANES, constant, lane_numbers, select, sum_lanes


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


@kernel
def survey_targets(
    launcher, blocks, block, target, classes, ignore_index, class_weight, rows_per_block, out_weight, out_invalid
):
    """Sum the weights of the valid class indices and count the invalid ones, by blocks of `rows_per_block`.

    `target` (outer, inner) is of any integer dtype; an index is valid in [0, classes), and neither valid nor invalid
    where it is `ignore_index`. Without `class_weight` each weighs 1. Reads the targets once.
    """
    if distributed(launcher, blocks, block):
        return
    at = block * rows_per_block
    last = min(at + rows_per_block, target.size)
    inner = target.shape[1]
    step = target.strides[1] // target.itemsize
    invalid, weight = 0, 0.0
    while at < last:
        o = at // inner
        start = at - o * inner
        stop = min(start + last - at, inner)
        row = pointer(target, (o, 0))
        lanes_valid = lane_numbers() & 0
        for i in range(start, stop, LANES):
            label = class_indices(row, i * step, step, stop - i, classes, ignore_index)
            lanes_valid = lanes_valid + select(label >= 0, constant(label, 1), 0)
        valid_of_row = sum_lanes(lanes_valid)
        if class_weight is not None or valid_of_row < stop - start:
            for i in range(start, stop):
                label = class_index(target, o, i, classes, ignore_index)
                if label >= 0:
                    weight += weight_of(class_weight, label)
                elif not is_ignored(target[o, i], ignore_index):
                    invalid += 1
        else:
            weight += valid_of_row
        at += stop - start
    out_weight[block], out_invalid[block] = weight, invalid
