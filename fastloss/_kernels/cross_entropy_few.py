"""Cross-entropy of few classes with class indices, in rows that lie side by side, with lanes that run over the rows.

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
from fastloss._kernels.elementary import exp_scaled, log1p_of_sum, unscale
from fastloss._kernels.softmax import write_lanes

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


@inlined_by_type
def _if_needed(output, value):
    """Return `value`, None where `output` is None."""
    if isinstance(output, types.NoneType):
        return lambda output, value: None
    return lambda output, value: value


@kernel
def cross_entropy_few(
    launcher, blocks, block, x, classes, target, class_weight, ignore_index, scale, rows_per_block, out_gradient,
    out_loss, out_loss_sum,
):  # fmt: skip
    """Rows of few classes that lie side by side, as the classes of a row do: fills the `out_*` that are not None.

    The arguments are those of `cross_entropy_rows`, but `outer` is 1, and `classes` is a tuple with an entry for each
    class: the kernel is compiled for each number of classes. Each thread needs 3 KiB of memory beside the outputs.
    """
    if distributed(launcher, blocks, block):
        return
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
            for i in range((count - whole) * number):
                group_array[i] = x[0, i % number, start + whole + i // number]
            _groups(
                group, advance(labels, (start + whole) * label_step), label_step, classes, weights, ignore_index, scale,
                count - whole, out_group, advance(sums, 3 * whole), advance(label_of_row, whole),
            )  # fmt: skip
            if out_gradient is not None:
                for i in range((count - whole) * number):
                    out_gradient[0, i % number, start + whole + i // number] = group_array[i]
        total = total + widen(_losses(weights, count, sums, label_of_row, advance(losses, start)))
    keep(sums_array)
    keep(label_array)
    keep(group_array)
    out_loss_sum[block] = sum_lanes(total)
