"""Cross-entropy with class indices and softmax of few classes, in rows that lie side by side, with lanes over the rows.

The compiler knows the number of classes, so that the logits of `LANES` rows are turned class-major, exponentiated and
turned back in registers (what does not fit is spilled), where the tiles of `cross_entropy_tiles` go through a cache
four times. The formulas are those of `cross_entropy`.
"""

from __future__ import annotations

import numpy as np
from numba import types

from fastloss._kernels._blocks import distributed
from fastloss._kernels._classes import load_classes, store_classes, unrolled
from fastloss._kernels._jit import inlined, inlined_by_type, kernel, shared
from fastloss._kernels._memory import (
    advance,
    class_indices,
    empty_accumulators,
    keep,
    load,
    lookup,
    pointer,
    store,
    zeros_like,
)
from fastloss._kernels._simd import LANES, constant, select, sum_lanes, widen
from fastloss._kernels.elementary import exp_scaled, log1p_of_sum, log_of_normal, unscale
from fastloss._kernels.softmax import write_lanes
from fastloss._kernels.targets import scale_of_rows, surveyed

BATCH = 8 * LANES
"""Rows whose losses are computed at once: each logarithm is a chain of operations, and several keep the CPU busy."""


@inlined
def _larger(c, highest, x, given):
    return select(x > highest, x, highest), x


@inlined
def _exponential(c, sums, x, given):
    rest, e_label, offset = sums
    highest, label = given
    d = x - highest
    e = exp_scaled(d)
    hit = label == c
    return (rest + select(hit, 0.0, e), select(hit, e, e_label), select(hit, d, offset)), e


@inlined
def _gradient(c, nothing, e, given):
    label, at_label, factor = given
    return nothing, select(label >= 0, select(label == c, at_label, e * factor), 0.0)


@shared
def _groups(
    source, labels, label_step, classes, class_weight, ignore_index, scale, count, out, sums, label_of_row
):  # fmt: skip
    """Do `count` rows from the pointer `source` on: write their gradients to `out`, and what `_losses` needs.

    All rows of a group are read, `LANES` of them, and written. `sums` gets, for each group, the sum without the label's
    term, that term, and the label's logit minus the largest.
    """
    zero = zeros_like(source)
    for r in range(0, count, LANES):
        logits = load_classes(advance(source, r * len(classes)), classes)
        label = class_indices(labels, r * label_step, label_step, count - r, len(classes), ignore_index)
        highest, _ = unrolled(_larger, constant(zero, -np.inf), logits, ())
        (rest, e_label, offset), e = unrolled(_exponential, (zero, zero, zero), logits, (highest, label))
        store(sums, 3 * r, rest)
        store(sums, 3 * r + LANES, e_label)
        store(sums, 3 * r + 2 * LANES, offset)
        store(label_of_row, r, label)
        if out is not None:
            factor = constant(zero, scale) / (rest + e_label)
            if class_weight is not None:
                factor = factor * lookup(class_weight, label)
            _, gradient = unrolled(_gradient, (), e, (label, -rest * factor, factor))
            store_classes(advance(out, r * len(classes)), gradient)


@shared
def _losses(class_weight, count, sums, label_of_row, out_loss):
    """Return the lanes' sums of the losses of `count` rows, from what `_groups` wrote; write them to `out_loss`."""
    some = zeros_like(sums)
    one = constant(some, 1) / unscale(some)
    for r in range(0, count, LANES):
        rest, e_label, offset = load(sums, 3 * r), load(sums, 3 * r + LANES), load(sums, 3 * r + 2 * LANES)
        label = load(label_of_row, r)
        # Where the label is the maximum its e is one and the loss log1p(rest); else the loss is at least log(2).
        loss = log1p_of_sum((rest + (e_label - one)) * unscale(some)) - offset
        if class_weight is not None:
            loss = loss * lookup(class_weight, label)
        loss = select(label >= 0, loss, 0.0)
        some = some + loss
        if out_loss is not None:
            write_lanes(out_loss, r, loss, min(count - r, LANES), False)
    return some


@shared
def _take(x, first, count, group):
    """Copy the rows [first, first + count) to the array `group`."""
    classes = x.shape[1]
    for i in range(count * classes):
        group[i] = x[0, i % classes, first + i // classes]


@shared
def _give(group, out, first, count):
    """Copy `count` rows from the array `group` to those from `first` on of `out`, which may be None."""
    if out is not None:
        classes = out.shape[1]
        for i in range(count * classes):
            out[0, i % classes, first + i // classes] = group[i]


@inlined_by_type
def _if_needed(output, value):
    """Return `value`, None where `output` is None."""
    if isinstance(output, types.NoneType):
        return lambda output, value: None
    return lambda output, value: value


@kernel
def cross_entropy_few(
    launcher, blocks, block, x, target, class_weight, ignore_index, scale, mean, classes, rows_per_block, out_gradient,
    out_loss, out_sums,
):  # fmt: skip
    """Rows of few classes that lie side by side, as the classes of a row do: fills the `out_*` that are not None.

    The arguments are those of `cross_entropy_rows`, but `outer` is 1, and `classes` is a tuple with an entry for each
    class: the kernel is compiled for each number of classes. Each thread needs 3 KiB of memory beside the outputs.
    """
    if not surveyed(launcher, block, target, x.shape[1], ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    number = len(classes)
    source, out = pointer(x, (0, 0, 0)), pointer(out_gradient, (0, 0, 0))
    labels, label_step = pointer(target, (0, 0)), target.strides[1] // target.itemsize
    weights, losses = pointer(class_weight, (0,)), pointer(out_loss, (0, 0))
    sums_array = empty_accumulators(x, 3 * BATCH)
    sums = pointer(sums_array, (0,))
    label_array = np.empty(BATCH, np.int32)
    label_of_row = pointer(label_array, (0,))
    group_array = np.empty(LANES * number, x.dtype)
    group = pointer(group_array, (0,))
    out_group = _if_needed(out_gradient, group)
    total = widen(zeros_like(source))
    first = block * rows_per_block
    last = min(first + rows_per_block, x.shape[2])
    for start in range(first, last, BATCH):
        count = min(BATCH, last - start)
        whole = count - count % LANES
        _groups(
            advance(source, start * number), advance(labels, start * label_step), label_step, classes, weights,
            ignore_index, scale, whole, advance(out, start * number), sums, label_of_row,
        )  # fmt: skip
        if whole < count:  # copied, for a group has no fewer rows
            _take(x, start + whole, count - whole, group_array)
            _groups(
                group, advance(labels, (start + whole) * label_step), label_step, classes, weights, ignore_index, scale,
                count - whole, out_group, advance(sums, 3 * whole), advance(label_of_row, whole),
            )  # fmt: skip
            _give(group_array, out_gradient, start + whole, count - whole)
        total = total + widen(_losses(weights, count, sums, label_of_row, advance(losses, start)))
    keep(sums_array)
    keep(label_array)
    keep(group_array)
    out_sums[block] = sum_lanes(total)


@inlined
def _summand(c, total, x, highest):
    e = exp_scaled(x - highest)
    return total + e, e


@inlined
def _softmax(c, nothing, e, inverse):
    return nothing, e * inverse


@inlined
def _log_softmax(c, nothing, x, given):
    highest, log_total = given
    return nothing, (x - highest) - log_total


@shared
def _softmax_groups(source, classes, count, out_softmax, out_log_softmax, out_loss):
    """Do `count` rows from the pointer `source` on; all rows of a group are read, `LANES` of them, and written."""
    zero = zeros_like(source)
    for r in range(0, count, LANES):
        logits = load_classes(advance(source, r * len(classes)), classes)
        highest, _ = unrolled(_larger, constant(zero, -np.inf), logits, ())
        total, e = unrolled(_summand, zero, logits, highest)
        if out_softmax is not None:
            _, softmax = unrolled(_softmax, (), e, constant(zero, 1) / total)
            store_classes(advance(out_softmax, r * len(classes)), softmax)
        log_total = log_of_normal(total * unscale(total))
        if out_log_softmax is not None:
            _, log_softmax = unrolled(_log_softmax, (), logits, (highest, log_total))
            store_classes(advance(out_log_softmax, r * len(classes)), log_softmax)
        if out_loss is not None:
            write_lanes(out_loss, r, highest + log_total, min(count - r, LANES), False)


@kernel
def softmax_few(launcher, blocks, block, x, classes, rows_per_block, out_softmax, out_log_softmax, out_loss):
    """Softmax, its logarithm and the log-sum-exp (the loss without a target) of rows like those of `cross_entropy_few`.

    It fills the `out_*` that are not None, of the first two one at most. Each thread needs a group of rows of memory.
    """
    if distributed(launcher, blocks, block):
        return
    number = len(classes)
    source, losses = pointer(x, (0, 0, 0)), pointer(out_loss, (0, 0))
    softmax, log_softmax = pointer(out_softmax, (0, 0, 0)), pointer(out_log_softmax, (0, 0, 0))
    first = block * rows_per_block
    count = min(rows_per_block, x.shape[2] - first)
    whole = count - count % LANES
    _softmax_groups(
        advance(source, first * number), classes, whole, advance(softmax, first * number),
        advance(log_softmax, first * number), advance(losses, first),
    )  # fmt: skip
    if whole < count:  # copied, for a group has no fewer rows
        group_array = np.empty(LANES * number, x.dtype)
        group = pointer(group_array, (0,))
        _take(x, first + whole, count - whole, group_array)
        _softmax_groups(
            group, classes, count - whole, _if_needed(out_softmax, group), _if_needed(out_log_softmax, group),
            advance(losses, first + whole),
        )  # fmt: skip
        _give(group_array, out_softmax, first + whole, count - whole)
        _give(group_array, out_log_softmax, first + whole, count - whole)
        keep(group_array)
