"""Cross-entropy, log-sum-exp and softmax with lanes that run over the rows.

It serves what no other kernel does (see the table in `_engine`): fewer classes than those of `cross_entropy`, for which
what is done once for a row would take longest, and classes that do not lie side by side in memory. A tile of some rows
is turned class-major in a cache, widened on the way, so that each class of `LANES` rows is one vector whatever the
layout was. The formulas are those of `cross_entropy`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastloss._kernels._blocks import distributed
from fastloss._kernels._classes import PAIR, load_classes, store_classes
from fastloss._kernels._jit import inlined, inlined_by_type, kernel, shared
from fastloss._kernels._memory import (
    SQUARE,
    advance,
    class_indices,
    empty_accumulators,
    fence,
    gather,
    keep,
    load,
    load_first,
    lookup,
    pointer,
    prefetch,
    put_at,
    scatter,
    store,
    store_first,
    store_two,
    transpose,
    zeros_like,
)
from fastloss._kernels._simd import LANES, constant, lane_numbers, select, sum_lanes, widen
from fastloss._kernels.elementary import exp_scaled, log1p_of_sum, log_of_normal, total_above_one, unscale
from fastloss._kernels.softmax import lines_of, load_lanes, write_lanes
from fastloss._kernels.targets import scale_of_rows, surveyed, weight_of

ADDENDS = 16
"""Terms that are added before their sum is added to the sum of such sums: rounding errors grow with both, not all."""


@inlined
def _steps(array):
    """Return how many elements lead from class to class and from row to row."""
    return array.strides[1] // array.itemsize, array.strides[2] // array.itemsize


@inlined
def _rows_in_squares(count, classes, row_step, elements):
    """Return how many of `count` rows have whole squares of `SQUARE` classes within the `elements` from the first on.

    A square takes what lies behind a row of fewer classes along.
    """
    if classes >= SQUARE:
        return count
    return min(count, (elements - SQUARE) // row_step + 1) if row_step > 0 else 0


@shared
def _stage(array, o, start, count, tile, tile_rows):
    """Copy array[o, :, start:start + count] class-major to `tile`; lanes past `count` get values of no meaning."""
    classes = array.shape[1]
    class_step, row_step = _steps(array)
    source = pointer(array, (o, 0, start))
    in_squares = _rows_in_squares(count, classes, row_step, (array.shape[2] - start - 1) * row_step + classes)
    row = 0
    if row_step == 1:
        whole = count - count % LANES
        for c in range(classes):
            for r in range(0, whole, LANES):
                store(tile, c * tile_rows + r, load(source, c * class_step + r))
            if whole < count:
                rest = load_first(source, c * class_step + whole, count - whole, 0.0)
                store(tile, c * tile_rows + whole, rest)
        return
    if class_step == 1:
        while row + LANES <= in_squares:
            for r in range(row, row + LANES, SQUARE):
                for c in range(0, classes, SQUARE):
                    c = max(min(c, classes - SQUARE), 0)  # the last square overlaps the one before
                    transpose(advance(source, r * row_step + c), row_step, advance(tile, c * tile_rows + r), tile_rows)
            row += LANES
    if class_step == 1 and classes == row_step == 2:
        while row + LANES <= count:
            first, second = load_classes(advance(source, row * 2), PAIR)
            store(tile, row, first)
            store(tile, tile_rows + row, second)
            row += LANES
    while row < count:
        for c in range(classes):
            offset = c * class_step + row * row_step
            if row + LANES <= count:
                store(tile, c * tile_rows + row, gather(source, offset, row_step, LANES))
            else:
                store(tile, c * tile_rows + row, gather(source, offset, row_step, count - row))
        row += LANES


@shared
def _unstage(tile, tile_rows, out, class_step, row_step, classes, count):
    """Copy `count` rows of the class-major `tile` to `out`, where the steps lead from class to class, row to row."""
    row = 0
    if row_step == 1:
        whole = count - count % LANES
        for c in range(classes):
            for r in range(0, whole, LANES):
                store(out, c * class_step + r, load(tile, c * tile_rows + r))
            if whole < count:
                store_first(out, c * class_step + whole, load(tile, c * tile_rows + whole), count - whole)
        return
    if class_step == 1 and (classes >= SQUARE or row_step == classes):
        # What a square writes behind a row of fewer classes is written over with the next rows.
        while row + LANES <= _rows_in_squares(count, classes, row_step, count * row_step):
            for r in range(row, row + LANES, SQUARE):
                for c in range(0, classes, SQUARE):
                    c = max(min(c, classes - SQUARE), 0)
                    transpose(advance(tile, c * tile_rows + r), tile_rows, advance(out, r * row_step + c), row_step)
            row += LANES
    if class_step == 1 and classes == row_step == 2:
        while row + LANES <= count:
            store_classes(advance(out, row * 2), (load(tile, row), load(tile, tile_rows + row)))
            row += LANES
    while row < count:
        for c in range(classes):
            offset = c * class_step + row * row_step
            if row + LANES <= count:
                scatter(out, offset, row_step, load(tile, c * tile_rows + row), LANES)
            else:
                scatter(out, offset, row_step, load(tile, c * tile_rows + row), count - row)
        row += LANES


@shared
def write_run(source, out, length, streaming):
    """Copy `length` elements to `out`, whole cache lines past the caches if `streaming`; a `fence` must follow."""
    first, last = lines_of(out, 0, length, streaming)
    for begin, end, past in ((0, first, False), (first, last, True), (last, length, False)):
        i = begin
        while i + 2 * LANES <= end:
            store_two(out, i, load(source, i), load(source, i + LANES), past)
            i += 2 * LANES
        while i < end:
            count = min(end - i, LANES)
            write_lanes(out, i, load_lanes(source, i, count, 0.0), count, past)
            i += LANES


@inlined
def _write_tile(tile, tile_rows, flat, array, o, start, count, streaming):
    """Copy the class-major `tile` to array[o, :, start:start + count]."""
    classes = array.shape[1]
    class_step, row_step = _steps(array)
    out = pointer(array, (o, 0, start))
    if row_step == 1 and count > LANES:  # single lines far apart are faster through the caches
        for c in range(classes):
            write_run(advance(tile, c * tile_rows), advance(out, c * class_step), count, streaming)
    elif class_step == 1 and row_step == classes:
        _unstage(tile, tile_rows, flat, class_step, classes, classes, count)
        write_run(flat, out, count * classes, streaming)
    else:
        _unstage(tile, tile_rows, out, class_step, row_step, classes, count)


@shared
def stage_soft_target(probabilities, class_weight, keep_share, spread, o, start, count, classes, tile, tile_rows):
    """Fill the class-major `tile` with q = w (keep_share * t + spread), t being 0 without `probabilities`."""
    if probabilities is not None:
        _stage(probabilities, o, start, count, tile, tile_rows)
    for c in range(classes):
        for r in range(0, count, LANES):
            i = c * tile_rows + r
            q = constant(zeros_like(tile), spread)
            if probabilities is not None:
                q = q + load(tile, i) * keep_share
            store(tile, i, q * weight_of(class_weight, c))


@inlined_by_type
def tile_like(array, needed, size):
    """Return a new array of `size` accumulators of `array`, None where `needed` is None."""
    if isinstance(needed, types.NoneType):
        return lambda array, needed, size: None
    return lambda array, needed, size: empty_accumulators(array, size)


@inlined
def _rows_of_tile(
    tile, soft_tile, tile_rows, classes, r, label, hard, has_target, spread, soft_mass, scale, out_gradient, out_log,
    out_loss, do_beside, beside, state,
):  # fmt: skip
    """Turn the logits of the rows [r, r + LANES) of a tile into what `out_*` asks for; return (their losses, state).

    `label` is -1 in rows to ignore: their losses and gradients are 0. Without a target, losses are 0 unless there is an
    `out_loss`: nobody needs the logarithm then. Beside each vector of exponentials, the state becomes
    do_beside(beside, state, r, c).
    """
    highest = constant(zeros_like(tile), -np.inf)
    for c in range(classes):
        x = load(tile, c * tile_rows + r)
        highest = select(x > highest, x, highest)
    rest = zeros_like(tile)
    e_label, offset, mass, dot, smooth = rest, rest, rest, rest, rest
    at = select(label >= 0, label, 0) * tile_rows + lane_numbers() + r
    if has_target is not None and spread is None:
        # The label's logit is taken out of the tile: the loops over the classes need not look for it, which takes a
        # third of their instructions. Lanes to ignore take another's, and lose what comes of it.
        offset = lookup(tile, at) - highest
        e_label = exp_scaled(offset)
        put_at(tile, at, constant(highest, -np.inf))
    for first in range(0, classes, ADDENDS):
        part = zeros_like(tile)
        part_mass, part_dot = part, part
        for c in range(first, min(first + ADDENDS, classes)):
            i = c * tile_rows + r
            state = do_beside(beside, state, r, c)
            d = load(tile, i) - highest
            e = exp_scaled(d)
            if has_target is None or spread is None:
                part = part + e
            else:
                hit = label == c
                part = part + select(hit, 0.0, e)
                e_label, offset = select(hit, e, e_label), select(hit, d, offset)
            if spread is not None:
                q = load(soft_tile, i)
                part_mass, part_dot = part_mass + q, part_dot + q * d
                if has_target is not None:
                    smooth = select(hit, q, smooth)
            if out_gradient is not None:
                store(tile, i, e)
            if out_log is not None:
                store(tile, i, d)
        rest, mass, dot = rest + part, mass + part_mass, dot + part_dot
    if spread is not None and has_target is not None:
        mass = constant(mass, soft_mass)
    total = rest + e_label
    log_total = log_of_normal(total * unscale(total))
    inverse = constant(total, scale) / total
    loss = zeros_like(tile)
    at_label = loss
    if has_target is not None:
        # Where the label is the maximum its e is one and the loss log1p(rest); else the loss is at least log(2).
        log_total = log1p_of_sum(total_above_one(rest, e_label))
        loss = hard * (log_total - offset)
        at_label = (mass * e_label - hard * rest) * inverse - smooth * scale
    if spread is not None:
        loss = loss + (mass * log_total - dot)
    elif has_target is None and out_loss is not None:
        loss = highest + log_total
    if has_target is not None:
        loss = select(label >= 0, loss, 0.0)
    if out_log is not None:
        for c in range(classes):
            i = c * tile_rows + r
            store(tile, i, load(tile, i) - log_total)
    if out_gradient is not None:
        factor = (hard + mass) * inverse
        for c in range(classes):
            i = c * tile_rows + r
            gradient = load(tile, i) * factor
            if spread is not None:
                gradient = gradient - load(soft_tile, i) * scale
            if has_target is not None:
                if spread is not None:
                    gradient = select(label == c, at_label, gradient)
                gradient = select(label >= 0, gradient, 0.0)
            store(tile, i, gradient)
        if has_target is not None and spread is None:
            put_at(tile, at, select(label >= 0, at_label, 0.0))
    return loss, state


@inlined
def losses_of_tile(
    tile, soft_tile, tile_rows, count, o, start, classes, target, class_weight, ignore_index, keep_share, spread,
    soft_mass, scale, out_gradient, out_log, out_loss, do_beside, beside, state,
):  # fmt: skip
    """Turn the logits of a tile of the rows o, [start, start + count) into what `out_*` asks for.

    `out_loss` is (outer, inner), contiguous. Return (the lanes' sums of the losses, state): see `_rows_of_tile`.
    """
    loss_sum = widen(zeros_like(tile))
    for r in range(0, count, LANES):
        label = lane_numbers()
        hard = constant(zeros_like(tile), keep_share)
        if target is not None:
            step = target.strides[1] // target.itemsize
            row = pointer(target, (o, start + r))
            label = class_indices(row, 0, step, count - r, classes, ignore_index)
            if class_weight is not None:
                hard = hard * lookup(pointer(class_weight, (0,)), label)
        elif spread is not None:
            hard = zeros_like(tile)
        loss, state = _rows_of_tile(
            tile, soft_tile, tile_rows, classes, r, label, hard, target, spread, soft_mass, scale, out_gradient,
            out_log, out_loss, do_beside, beside, state,
        )  # fmt: skip
        if out_loss is not None:
            write_lanes(pointer(out_loss, (o, start + r)), 0, loss, min(count - r, LANES), False)
        loss_sum = loss_sum + widen(select(lane_numbers() < count - r, loss, 0.0))
    return loss_sum, state


class _Upcoming(NamedTuple):
    """The pointer to a tile's logits, and how many elements lead from line to line by its rows and its classes."""

    source: Any
    line_of_row: int
    line_of_class: int


@inlined
def _prefetch(upcoming, nothing, r, c):
    prefetch(upcoming.source, r * upcoming.line_of_row + c * upcoming.line_of_class)
    return nothing


@kernel
def cross_entropy_tiles(
    launcher, blocks, block, x, target, probabilities, class_weight, ignore_index, keep_share, spread, soft_mass, scale,
    mean, streaming, tile_rows, tiles_per_block, out_gradient, out_log_softmax, out_loss, out_sums,
):  # fmt: skip
    """Rows of any layout, `LANES` at a time: fills the `out_*` that are not None, `out_log_softmax` without a target.

    The arguments are those of `cross_entropy_rows`, but no axis of elements need be contiguous. A tile is `tile_rows`
    rows, a multiple of `LANES`, and `out_sums[b]` the sum of the losses of the b-th `tiles_per_block` tiles. Each
    thread needs a tile of memory, one for an output of rows, and one with `spread`.
    """
    classes, inner = x.shape[1], x.shape[2]
    if not surveyed(launcher, block, target, classes, ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    tiles_of_inner = (inner + tile_rows - 1) // tile_rows
    tile_array = empty_accumulators(x, max(classes, SQUARE) * tile_rows)
    tile = pointer(tile_array, (0,))
    gradient_array = tile_like(x, out_gradient, max(classes, SQUARE) * tile_rows)
    log_array = tile_like(x, out_log_softmax, max(classes, SQUARE) * tile_rows)
    soft_array = tile_like(x, spread, max(classes, SQUARE) * tile_rows)
    soft_tile = pointer(soft_array, (0,))
    loss_sum = widen(zeros_like(tile))
    first = block * tiles_per_block
    last = min(first + tiles_per_block, x.shape[0] * tiles_of_inner)
    for number in range(first, last):
        o = number // tiles_of_inner
        start = (number - o * tiles_of_inner) * tile_rows
        count = min(tile_rows, inner - start)
        _stage(x, o, start, count, tile, tile_rows)
        following = min(number + 1, last - 1)
        upcoming = pointer(x, (following // tiles_of_inner, 0, following % tiles_of_inner * tile_rows))
        class_step, row_step = _steps(x)
        line_of_row, line_of_class = (1, class_step) if row_step == 1 else (row_step, LANES)
        if spread is not None:
            stage_soft_target(
                probabilities, class_weight, keep_share, spread, o, start, count, classes, soft_tile, tile_rows
            )
        losses, _ = losses_of_tile(
            tile, soft_tile, tile_rows, count, o, start, classes, target, class_weight, ignore_index, keep_share,
            spread, soft_mass, scale, out_gradient, out_log_softmax, out_loss, _prefetch,
            _Upcoming(upcoming, line_of_row, line_of_class), (),
        )  # fmt: skip
        loss_sum = loss_sum + losses
        if out_gradient is not None:
            _write_tile(tile, tile_rows, pointer(gradient_array, (0,)), out_gradient, o, start, count, streaming)
        if out_log_softmax is not None:
            _write_tile(tile, tile_rows, pointer(log_array, (0,)), out_log_softmax, o, start, count, streaming)
    keep(tile_array)
    keep(gradient_array)
    keep(log_array)
    keep(soft_array)
    if streaming:
        fence()
    out_sums[block] = sum_lanes(loss_sum)
