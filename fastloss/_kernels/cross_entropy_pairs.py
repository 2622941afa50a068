"""Cross-entropy of two classes with class indices and no label smoothing, with lanes that run over the rows.

It is a function of one number, z, the other class's logit minus the label's: the loss is log(1 + e**z), its derivative
the sigmoid of z, with opposite signs at the two classes. One exponential serves a row, one logarithm the sum of many,
and nothing but the logits, the labels and the gradient goes through memory.
"""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._classes import AHEAD, PAIR, load_classes, lookup_few, store_classes
from fastloss._kernels._jit import inlined, kernel, shared
from fastloss._kernels._memory import (
    advance,
    gather,
    if_needed,
    keep,
    load,
    pointer,
    prefetch,
    scatter,
    store,
    zeros_like,
)
from fastloss._kernels._simd import LANES, constant, multiply_add, select, sum_lanes, widen
from fastloss._kernels.elementary import compounded, decay, log1p_of_fraction, log1p_of_sum
from fastloss._kernels.softmax import write_lanes
from fastloss._kernels.targets import (
    WEIGHT,
    add_counts,
    counted,
    labels_of,
    scale_of_rows,
    side_by_side,
    survey_rows,
    surveyed,
)

ROWS = 32 * LANES
"""Rows whose losses are added in their own precision, and by one logarithm of a product of at most 2**32 a lane, before
their sum is added in float64. More classes have half as many."""


@inlined
def _class_step(array):
    """Return how many elements lead from class to class where vectors can go to the array as it is, else 0.

    Its rows lie side by side: with both classes (1), or those of a class by themselves. 1 where there is no array.
    """
    if array is None:
        return 1
    class_step, row_step = array.strides[1] // array.itemsize, array.strides[2] // array.itemsize
    return class_step if row_step == (2 if class_step == 1 else 1) else 0


@inlined
def _load(source, class_step):
    """Return the vectors of the logits of either class of the rows from `source` on, and ask for later ones."""
    if class_step == 1:
        prefetch(source, AHEAD)
        prefetch(source, AHEAD + LANES)
        return load_classes(source, PAIR)
    prefetch(source, AHEAD // 2)
    prefetch(source, class_step + AHEAD // 2)
    return load(source, 0), load(source, class_step)


@inlined
def _write(out, class_step, first, second):
    """Write the gradients at either class of the rows from the pointer `out` on."""
    if class_step == 1:
        store_classes(out, (first, second))
    else:
        store(out, 0, first)
        store(out, class_step, second)


@inlined
def _step(source, class_step, labels, plain, class_weight, ignore_index, scale, count, out, out_step, out_loss, sums):
    """Do `LANES` rows from the pointers on, of which the first `count` count; return `sums` with their losses.

    These are the sum of what is not a logarithm, and the product of what is in one: see `compounded`; and how many rows
    are `counted`, which nobody has done if there is neither a gradient nor a weight.
    """
    linear, growth, counts = sums
    first, second = _load(source, class_step)
    prefetch(labels, AHEAD // 2)
    prefetch(labels, AHEAD // 2 + LANES // 2)
    label, all_valid = labels_of(labels, count, plain, 2, ignore_index)
    if out is None and class_weight is None:
        counts = counted(counts, label, all_valid)
    zero, one = constant(first, 0), constant(first, 1)
    highest = select(second > first, second, first)
    # The last term is nan where the larger logit is infinite, as softmax is there.
    z = multiply_add(zero, highest, select(label == 0, second - first, first - second))
    if not all_valid:
        z = select(label >= 0, z, -np.inf)
    e = decay(z)
    above = select(zero > z, zero, z)
    if class_weight is not None:
        weight = lookup_few(class_weight, label, (first, second))
    if class_weight is None and out_loss is None:
        sums = linear + above, compounded(growth, e), counts
    else:
        loss = above + log1p_of_fraction(e)
        if class_weight is not None:
            loss = loss * weight
        if out_loss is not None:
            write_lanes(out_loss, 0, loss, min(count, LANES), False)
        sums = linear + loss, growth, counts
    if out is not None:
        other = select(z > zero, one, e) / (one + e)
        if class_weight is not None:
            other = other * weight
        gradient = select(label >= 0, other * scale, zero)
        gradient = select(label == 0, -gradient, gradient)
        _write(out, out_step, gradient, -gradient)
    return sums


@shared
def _groups(
    source, class_step, row_step, labels, plain, class_weight, ignore_index, scale, count, out, out_step, out_row_step,
    out_loss, counts,
):  # fmt: skip
    """Do `count` rows from the pointers on, in whole groups of `LANES`; return the lanes' sums of their losses.

    And `counts` with these rows: see `_step`.
    """
    zero = zeros_like(source)
    sums = (zero, zero, counts)
    for r in range(0, count, LANES):
        sums = _step(
            advance(source, r * row_step), class_step, advance(labels, r), plain, class_weight, ignore_index, scale,
            count - r, advance(out, r * out_row_step), out_step, advance(out_loss, r), sums,
        )  # fmt: skip
    linear, growth, counts = sums
    return widen(linear + log1p_of_sum(growth)), counts


@shared
def _take(x, o, first, count, group):
    """Copy the `count` <= `ROWS` rows of x[o] from `first` on to the pointer `group`, each class by itself."""
    row_step = x.strides[2] // x.itemsize
    for c in range(2):
        for r in range(0, count, LANES):
            rows = gather(pointer(x, (o, c, first + r)), 0, row_step, count - r)
            store(group, c * ROWS + r, rows)


@shared
def _give(group, out, o, first, count):
    """Copy what `_take` copied to out[o], where there is an `out`."""
    if out is not None:
        row_step = out.strides[2] // out.itemsize
        for c in range(2):
            for r in range(0, count, LANES):
                scatter(pointer(out, (o, c, first + r)), 0, row_step, load(group, c * ROWS + r), count - r)


@kernel
def cross_entropy_pairs(
    launcher, blocks, block, x, target, class_weight, ignore_index, scale, mean, rows_per_block, out_gradient,
    out_loss, out_sums,
):  # fmt: skip
    """Rows of two classes in any layout: fills the `out_*` that are not None, and the sum of the losses by blocks.

    The arguments are those of `cross_entropy_rows`, but no axis need be contiguous: rows that do not lie as vectors are
    read are copied to and fro. Each thread needs `ROWS` rows of memory.
    """
    classes = x.shape[1]
    if out_gradient is not None and not surveyed(
        launcher, block, target, classes, ignore_index, class_weight, out_sums
    ):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    inner = x.shape[2]
    zero = zeros_like(pointer(x, (0, 0, 0)))
    class_step, out_step = _class_step(x), _class_step(out_gradient)
    row_step = 2 if class_step == 1 else 1
    out_row_step = 2 if out_step == 1 else 1
    group_array, label_array = np.empty(2 * ROWS, x.dtype), np.empty(ROWS, target.dtype)
    group = pointer(group_array, (0,))
    out_group = if_needed(out_gradient, group)
    weights = pointer(class_weight, (0,))
    total = widen(zero)
    counts = np.int64(0), np.int64(0)
    at = block * rows_per_block
    last = min(at + rows_per_block, x.shape[0] * inner)
    plain = class_weight is None and out_sums[WEIGHT] == target.size  # never without a gradient
    while at < last:
        o = at // inner
        start = at - o * inner
        stop = min(start + last - at, inner)
        at += stop - start
        source, out = pointer(x, (o, 0, 0)), pointer(out_gradient, (o, 0, 0))
        losses = pointer(out_loss, (o, 0))
        r = start
        while r < stop:
            until = min(r + ROWS, stop)
            if out_gradient is None and class_weight is not None:
                row = o * inner + r
                plain = survey_rows(target, row, row + until - r, classes, ignore_index, class_weight, block, out_sums)
            count = until - r
            labels = side_by_side(target, o, r, count, label_array)
            taken = class_step == 0 or count % LANES != 0
            given = out_step == 0 or count % LANES != 0
            if taken:
                _take(x, o, r, count, group)
            losses_of_rows, counts = _groups(
                group if taken else advance(source, r * row_step), ROWS if taken else class_step,
                1 if taken else row_step, labels, plain, weights, ignore_index, scale, count,
                out_group if given else advance(out, r * out_row_step), ROWS if given else out_step,
                1 if given else out_row_step, advance(losses, r), counts,
            )  # fmt: skip
            total = total + losses_of_rows
            if given:
                _give(group, out_gradient, o, r, count)
            r = until
    keep(group_array)
    keep(label_array)
    if out_gradient is None and class_weight is None:
        add_counts(counts, block, out_sums)
    out_sums[block] = sum_lanes(total)
