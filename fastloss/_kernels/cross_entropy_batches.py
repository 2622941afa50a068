"""Cross-entropy, log-sum-exp and softmax of rows of medium length, in batches of `LANES` rows.

Lanes run over the classes of a row where something is done for each class, and over the rows of a batch where it is
done once for a row: so no row waits for the largest of its lanes or for their sum, and nothing is turned into another
order. A batch is copied from memory to the first-level cache. If what becomes of it bypasses the caches, it is written
between the rows of the next batch, so that memory and arithmetic are busy at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined_by_type, kernel, shared
from fastloss._kernels._memory import (
    advance,
    class_indices,
    either,
    elements_to_line,
    empty_accumulators,
    fence,
    if_needed,
    keep,
    largest_of_rows,
    load,
    load_one,
    lookup,
    pointer,
    prefetch,
    put,
    store,
    stream,
    sums_of_rows,
    zeros_like,
)
from fastloss._kernels._simd import LANES, constant, lane_numbers, select, sum_lanes, widen
from fastloss._kernels.cross_entropy_tiles import write_run
from fastloss._kernels.elementary import exp_scaled, log1p_of_sum, log_of_normal, total_above_one, unscale
from fastloss._kernels.softmax import lines_of, write_lanes, write_zeros
from fastloss._kernels.targets import scale_of_rows, surveyed

HIGHEST, LOGIT, FACTOR, TERM = range(4)
"""Where numbers of a row are among those of a batch: its largest logit, the label's, and two that `_give` takes."""


class _Pending(NamedTuple):
    """Pointers to results of the previous batch and to where they go, whole cache lines, and how many elements."""

    results: Any
    out: Any
    left: int


@inlined_by_type
def _streamed(pending, most):
    """Write at most so many elements of what is pending past the caches; return what is pending then."""
    if isinstance(pending, types.NoneType):
        return lambda pending, most: None

    def streamed(pending, most):
        results, out, left = pending
        count = min(left, most)
        for i in range(0, count, LANES):
            stream(out, i, load(results, i))
        return _Pending(advance(results, count), advance(out, count), left - count)

    return streamed


@inlined_by_type
def _empty_like(out, size):
    """Return a new array for `size` elements like those of `out`, None for None."""
    if isinstance(out, types.NoneType):
        return lambda out, size: None
    return lambda out, size: np.empty(size, out.dtype)


@shared
def _take(source, row_step, count, classes, target, labels, batch, room, lanes, numbers):
    """Copy `count` rows to the `batch`, `room` from one to the next, -inf behind each and in the place of the label.

    A vector whose largest lane is the row's largest logit goes to `lanes`, and the label's logit to `numbers`.
    """
    last = classes - LANES
    for r in range(count):
        of_row, row = advance(source, r * row_step), advance(batch, r * room)
        store(row, classes, constant(zeros_like(batch), -np.inf))  # what reaches into the next row is overwritten
        highest = load(of_row, last)
        store(row, last, highest)
        for i in range(0, last, LANES):
            x = load(of_row, i)
            store(row, i, x)
            highest = select(x > highest, x, highest)
        store(lanes, r * LANES, highest)
        if target is not None:
            label = max(load_one(labels, r), 0)  # in a row to ignore another's, nothing comes of it
            put(numbers, LOGIT * LANES + r, load_one(of_row, label))
            put(row, label, -np.inf)


@shared
def _add(batch, room, count, numbers, lanes, stored, upcoming, row_step, pending):
    """Put vectors of the sums of the rows' exponentials to `lanes`, and if they are to be `stored`, these to the batch.

    Meanwhile the rows from `upcoming` on come into the cache, and what is `pending` leaves. Return what is then.
    """
    for r in range(count):
        row, source = advance(batch, r * room), advance(upcoming, r * row_step)
        reference = load_one(numbers, HIGHEST * LANES + r)
        total = zeros_like(batch)
        for i in range(0, room, LANES):
            prefetch(source, i)
            e = exp_scaled(load(row, i) - reference)
            if stored is not None:
                store(row, i, e)
            total = total + e
        store(lanes, r * LANES, total)
        pending = _streamed(pending, room)
    return pending


@shared
def _give(batch, room, count, classes, target, labels, numbers, out_gradient, results):
    """Make results of the batch's rows, one after the other.

    They are the factor times the exponential, the term in the place of the label; without `out_gradient` they are the
    logit less the largest one and the term.
    """
    last = classes - LANES
    for r in range(count):
        row, of_row = advance(batch, r * room), advance(results, r * classes)
        highest, factor = load_one(numbers, HIGHEST * LANES + r), load_one(numbers, FACTOR * LANES + r)
        term = load_one(numbers, TERM * LANES + r)
        if target is not None and load_one(labels, r) < 0:
            write_zeros(of_row, 0, classes, False)
        elif out_gradient is not None:
            for i in range(0, last, LANES):
                store(of_row, i, load(row, i) * factor)
            store(of_row, last, load(row, last) * factor)
            if target is not None:
                put(of_row, load_one(labels, r), term)
        else:
            for i in range(0, last, LANES):
                store(of_row, i, (load(row, i) - highest) - term)
            store(of_row, last, (load(row, last) - highest) - term)


@shared
def _write(
    batch, room, count, classes, target, labels, numbers, out_gradient, staged, out, streaming, pending
):  # fmt: skip
    """Do `_give` to `out`, if there is one, but if `streaming` by way of `staged`; return what is `pending` then."""
    if out is not None:
        if not streaming:
            _give(batch, room, count, classes, target, labels, numbers, out_gradient, out)
        else:
            _streamed(pending, LANES * room)  # all that is left
            _give(batch, room, count, classes, target, labels, numbers, out_gradient, staged)
            stop = count * classes
            first, last = lines_of(out, 0, stop, True)
            write_run(staged, out, first, False)
            write_run(advance(staged, last), advance(out, last), stop - last, False)
            pending = _Pending(advance(staged, first), advance(out, first), last - first)
    return pending


@kernel
def cross_entropy_batches(
    launcher, blocks, block, x, target, class_weight, ignore_index, scale, mean, streaming, rows_per_block,
    out_gradient, out_log_softmax, out_loss, out_sums,
):  # fmt: skip
    """Rows of at least `LANES` classes side by side: fills the `out_*` that are not None, and the sums of the losses.

    The arguments are those of `cross_entropy_rows`, without those of soft targets, but `outer` is 1, and the rows of
    `out_gradient` and `out_log_softmax`, which there is without a target, lie side by side too. `rows_per_block` is a
    multiple of `LANES`. Each thread needs `LANES` rows of memory and, with `streaming`, as many for the results. Up to
    255 classes in float32 the former stay in the first-level cache: `cross_entropy_rows` serves more.
    """
    classes, rows = x.shape[1], x.shape[2]
    if not surveyed(launcher, block, target, classes, ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    row_step = x.strides[2] // x.itemsize
    room = (classes + LANES - 1) // LANES * LANES
    array = empty_accumulators(x, LANES * (LANES + 4 + room + 2))  # with one for what `_take` writes behind the rows
    lanes = pointer(array, (0,))
    lanes = advance(lanes, elements_to_line(lanes))
    numbers = advance(lanes, LANES * LANES)
    batch = advance(numbers, 4 * LANES)
    label_array = np.empty(LANES, np.int32)
    labels = pointer(label_array, (0,))
    out_elements = either(out_gradient, out_log_softmax)
    staged_array = _empty_like(out_elements, LANES * classes if streaming else 0)
    staged = pointer(staged_array, (0,))
    pending = if_needed(out_elements, _Pending(staged, pointer(out_elements, (0, 0, 0)), np.int64(0)))
    zero = zeros_like(batch)
    loss_sum = widen(zero)
    first = block * rows_per_block
    last = min(first + rows_per_block, rows)
    for start in range(first, last, LANES):
        count = min(last - start, LANES)
        source = pointer(x, (0, 0, start))
        hard = constant(zero, 1)
        if target is not None:
            label_step = target.strides[1] // target.itemsize
            label = class_indices(pointer(target, (0, start)), 0, label_step, count, classes, ignore_index)
            store(labels, 0, label)
            if class_weight is not None:
                hard = lookup(pointer(class_weight, (0,)), label)
        _take(source, row_step, count, classes, target, labels, batch, room, lanes, numbers)
        highest = largest_of_rows(lanes)
        store(numbers, HIGHEST * LANES, highest)
        pending = _add(
            batch, room, count, numbers, lanes, out_gradient, advance(source, LANES * row_step), row_step, pending
        )
        rest = sums_of_rows(lanes)
        if target is not None:
            offset = load(numbers, LOGIT * LANES) - highest
            e_label = exp_scaled(offset)
            factor = hard * (constant(zero, scale) / (rest + e_label))
            term = -rest * factor
            loss = select(label >= 0, hard * (log1p_of_sum(total_above_one(rest, e_label)) - offset), 0.0)
        else:
            log_total = log_of_normal(rest * unscale(rest))
            loss = highest + log_total
            factor, term = constant(zero, scale) / rest, log_total
        store(numbers, FACTOR * LANES, factor)
        store(numbers, TERM * LANES, term)
        pending = _write(
            batch, room, count, classes, target, labels, numbers, out_gradient, staged,
            pointer(out_elements, (0, 0, start)), streaming, pending,
        )  # fmt: skip
        if out_loss is not None:
            write_lanes(pointer(out_loss, (0, start)), 0, loss, count, False)
        loss_sum = loss_sum + widen(select(lane_numbers() < count, loss, 0.0))
    _streamed(pending, LANES * room)
    keep(array)
    keep(label_array)
    keep(staged_array)
    if streaming:
        fence()
    out_sums[block] = sum_lanes(loss_sum)
