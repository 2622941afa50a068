"""Targets that are class indices: whether they are valid, what they weigh, and so the scale of the gradient."""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined, shared
from fastloss._kernels._memory import advance, can_equal, class_indices, load_integers, lookup, pointer
from fastloss._kernels._simd import (
    LANES,
    as_bits,
    constant,
    count_lanes,
    lane_numbers,
    narrow,
    select,
    shift_right,
    sum_lanes,
    widen,
)

WEIGHT, INVALID = -2, -1
"""Where a kernel's sums hold, behind those by blocks, the sum of the weights, and 1 where an index is invalid."""

LARGEST_INT32 = (1 << 31) - 1
"""Up to so many classes their indices are looked at in vectors."""

COUNTED_CLASSES = 8
"""Up to so many classes it is faster to count the rows of each than to look up each row's weight."""

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


@inlined
def _outside(y, classes):
    """Return a vector whose sign is that of the indices `y` below 0 or beyond the last class.

    A sign, not a mask: before AVX-512 a mask has the width of what was compared, and LLVM would convert it.
    """
    return y | ((classes - 1) - y)


@shared
def _are_inside(source, count, classes):
    """Return whether `count` adjoining class indices, a multiple of `LANES`, are all in [0, classes)."""
    signs = as_bits(widen(lane_numbers() & 0))
    for i in range(0, count, LANES):
        signs = signs | _outside(load_integers(source, i), classes)
    return sum_lanes(shift_right(signs, 63)) == 0


@shared
def _count(source, count, classes, ignore_index):
    """Return (how many are valid, how many invalid) of `count` adjoining class indices, a multiple of `LANES`.

    Most often all are valid, which takes a third of the time to find.
    """
    if not 0 <= ignore_index < classes and _are_inside(source, count, classes):
        return count, 0
    zero = as_bits(widen(lane_numbers() & 0))
    outside, ignored = zero, zero
    for i in range(0, count, LANES):
        y = load_integers(source, i)
        outside = outside + shift_right(_outside(y, classes), 63)
        ignored = ignored + select(y == ignore_index, constant(y, 1), zero)
    beyond, left_out = sum_lanes(outside), sum_lanes(ignored)
    if not can_equal(source, ignore_index):
        left_out = 0
    if 0 <= ignore_index < classes:
        return count - beyond - left_out, beyond
    return count - beyond, beyond - left_out


@shared
def _count_equal(source, count, number):
    """Return how many of `count` adjoining class indices, a multiple of `LANES`, are `number`."""
    equal = as_bits(widen(lane_numbers() & 0))
    for i in range(0, count, LANES):
        y = load_integers(source, i)
        equal = equal + select(y == number, constant(y, 1), constant(y, 0))
    return sum_lanes(equal)


@shared
def survey_rows(target, first, last, classes, ignore_index, class_weight, number, out_sums):
    """Look at the class indices of the rows [first, last): add the sum of their weights to `out_sums`.

    It is added to that of the block `number` (see `surveyed`). The element `INVALID`, 0 at first, becomes 1 where there
    is an invalid one. `target` (outer, inner) is of any integer dtype; an index is valid in [0, classes),
    and neither valid nor invalid where it is `ignore_index`. Without `class_weight` each weighs 1. Return whether all
    rows count, by weights of 1.
    """
    at, inner = first, target.shape[1]
    step = target.strides[1] // target.itemsize
    weights = pointer(class_weight, (0,))
    invalid = lane_numbers() & 0
    weight, total = widen(invalid), 0.0
    while at < last:
        o = at // inner
        start = at - o * inner
        stop = min(start + last - at, inner)
        row = pointer(target, (o, 0))
        at += stop - start
        if classes <= LARGEST_INT32:
            if step == 1 and (class_weight is None or classes <= COUNTED_CLASSES):
                whole = (stop - start) // LANES * LANES
                valid, wrong = _count(advance(row, start), whole, classes, ignore_index)
                if class_weight is None:
                    total += valid
                else:
                    for c in range(classes):
                        rows = _count_equal(advance(row, start), whole, c)
                        if rows > 0 and c != ignore_index:  # the weight of a class without rows can be infinite
                            total += rows * weight_of(class_weight, c)
                if wrong > 0:
                    out_sums[INVALID] = 1.0
                start += whole
            for i in range(start, stop, LANES):
                label = class_indices(row, i * step, step, stop - i, classes, ignore_index)
                weight = weight + _weights_of(weights, label)
                invalid = invalid + select(label < -1, constant(label, 1), 0)
        else:
            for i in range(start, stop):
                label = class_index(target, o, i, classes, ignore_index)
                if label >= 0:
                    total += weight_of(class_weight, label)
                elif not is_ignored(target[o, i], ignore_index):
                    out_sums[INVALID] = 1.0
    if sum_lanes(invalid) > 0:
        out_sums[INVALID] = 1.0  # several threads may write it, all the same value
    total += sum_lanes(weight)
    out_sums[(out_sums.size - 2) // 2 + number] += total
    return class_weight is None and total == last - first


@shared
def _survey(launcher, blocks, block, target, classes, ignore_index, class_weight, rows_per_block, out_sums):
    """Do `survey_rows` of all rows, by blocks of `rows_per_block`."""
    if distributed(launcher, blocks, block):
        return
    first = block * rows_per_block
    last = min(first + rows_per_block, target.size)
    survey_rows(target, first, last, classes, ignore_index, class_weight, block, out_sums)


@shared
def surveyed(launcher, block, target, classes, ignore_index, class_weight, out_sums):
    """Return whether the kernel goes on: False in a user's call, where `block` is -1, with an invalid class index.

    The user's call looks at all of them, before anything is written. `out_sums`, zeros so far, is for the sums of the
    losses by blocks, then as many for those of the weights of the targets, `WEIGHT` for their sum, and `INVALID`. A
    kernel that only adds losses can have its blocks do `survey_rows` or `add_counts` instead: then `WEIGHT` stays 0.
    """
    if target is None or block >= 0:
        return True
    blocks = (out_sums.size - 2) // 2
    rows_per_block = (target.size + blocks - 1) // blocks
    launcher = launcher if target.size >= SERIAL_ROWS else 0
    _survey(launcher, blocks, block, target, classes, ignore_index, class_weight, rows_per_block, out_sums)
    weight = 0.0
    for number in range(blocks, 2 * blocks):
        weight += out_sums[number]
    out_sums[WEIGHT] = weight
    return out_sums[INVALID] == 0.0


@inlined
def counted(counts, label, all_valid):
    """Return `counts`, how many class indices were (valid, invalid), with those that `labels_of` returned."""
    valid, invalid = counts
    if all_valid:
        return valid + LANES, invalid
    return valid + count_lanes(label >= 0), invalid + count_lanes(label < -1)


@inlined
def add_counts(counts, number, out_sums):
    """Add `counts` of the rows of the block `number` to `out_sums`, as `survey_rows` would without class weights."""
    valid, invalid = counts
    out_sums[(out_sums.size - 2) // 2 + number] += valid
    if invalid > 0:
        out_sums[INVALID] = 1.0


@shared
def side_by_side(target, o, first, count, copy):
    """Return the pointer to the class indices target[o, first : first + count], or to a copy in the array `copy`.

    Vectors of `LANES` can be read from there: what lies behind the last index is in the copy, of no meaning.
    """
    if target.strides[1] == target.itemsize and count % LANES == 0:
        return pointer(target, (o, first))
    for i in range(count):
        copy[i] = target[o, first + i]
    return pointer(copy, (0,))


@inlined
def labels_of(source, count, plain, classes, ignore_index):
    """Return (class indices, whether all are surely valid) of `LANES` rows from the pointer `source` on, as int32.

    An index is -1 from the lane `count` on and where it is `ignore_index`, -2 where it is invalid. With `plain`, which
    `survey_rows` returned for these rows, they are not checked again. Another thread can have changed them to any
    number since, so none may be part of an address.
    """
    y = load_integers(source, 0)
    all_valid = plain or (not 0 <= ignore_index < classes and count_lanes(_outside(y, classes) < 0) == 0)
    label = narrow(y)
    if not all_valid:
        label = class_indices(source, 0, 1, LANES, classes, ignore_index)
    if count < LANES:
        label, all_valid = select(lane_numbers() < count, label, constant(label, -1)), False
    return label, all_valid


@inlined
def scale_of_rows(scale, mean, out_sums):
    """Return the factor of the gradient: `scale`, for the `mean` over what `surveyed` found divided by its weight."""
    return scale / out_sums[WEIGHT] if mean else scale
