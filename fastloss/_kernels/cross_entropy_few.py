"""Cross-entropy with class indices and softmax of few classes, in rows that lie side by side, with lanes over the rows.

The compiler knows the number of classes, so that the logits of `LANES` rows are turned class-major, exponentiated and
turned back in registers (what does not fit is spilled), where the tiles of `cross_entropy_tiles` go through a cache
four times. The formulas are those of `cross_entropy`.
"""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._classes import (
    AHEAD,
    ROWS,
    give_rows,
    load_classes,
    lookup_few,
    store_classes,
    take_rows,
    unrolled,
)
from fastloss._kernels._jit import inlined, kernel, shared
from fastloss._kernels._memory import (
    CACHE_LINE,
    advance,
    if_needed,
    itemsize_of,
    keep,
    load_one,
    pointer,
    prefetch,
    zeros_like,
)
from fastloss._kernels._simd import LANES, constant, select, sum_lanes, widen
from fastloss._kernels.elementary import compounded, exp_scaled, log1p_of_sum, log_of_normal, total_above_one, unscale
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


@inlined
def _load_group(source, classes):
    """Return the logits of `LANES` rows from the pointer `source` on, and ask for later ones."""
    for line in range(0, LANES * len(classes), CACHE_LINE // itemsize_of(source)):
        prefetch(source, AHEAD + line)
    return load_classes(source, classes)


@inlined
def _larger(c, highest, x, given):
    return select(x > highest, x, highest), x


@inlined
def _counted(c, nothing, x, label):
    return nothing, select(label >= 0, x, 0.0)


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
    return nothing, select(label == c, at_label, e * factor)


@inlined
def _soft_target(c, class_weight, spread):
    """Return what smoothing makes of the class `c` as a target, times its weight: rounded as `soft_mass` sums it."""
    return spread if class_weight is None else spread * load_one(class_weight, c)


@inlined
def _soft_offset(c, dot, x, given):
    highest, class_weight, spread = given
    return dot + _soft_target(c, class_weight, spread) * (x - highest), x


@inlined
def _soft_gradient(c, nothing, gradient, given):
    label, scale, class_weight, spread = given
    return nothing, select(label >= 0, gradient - _soft_target(c, class_weight, spread) * scale, 0.0)


@inlined
def _group(source, labels, plain, classes, class_weight, ignore_index, smoothing, scale, count, out, out_loss, sums):
    """Do `LANES` rows from the pointers on, of which the first `count` count; return `sums` with their losses.

    These are the sum of what is not a logarithm, and the product of what is in one: see `compounded`; and how many rows
    are `counted`, which nobody has done if there is neither a gradient nor a weight.
    """
    linear, growth, counts = sums
    zero = zeros_like(source)
    logits = _load_group(source, classes)
    label, all_valid = labels_of(labels, count, plain, len(classes), ignore_index)
    if out is None and class_weight is None:
        counts = counted(counts, label, all_valid)
    if not all_valid:
        _, logits = unrolled(_counted, (), logits, label)  # what is ignored can be nan
    highest, _ = unrolled(_larger, constant(zero, -np.inf), logits, ())
    (rest, e_label, offset), e = unrolled(_exponential, (zero, zero, zero), logits, (highest, label))
    # Where the label is the maximum its e is one and the loss log1p(rest); else the loss is at least log(2).
    above_one = select(label >= 0, total_above_one(rest, e_label), zero)
    total = rest + e_label
    hard = constant(zero, 1)
    if class_weight is not None:
        hard = lookup_few(class_weight, label, logits)
    if smoothing is not None:
        keep_share, spread, soft_mass = smoothing
        hard, spread = hard * keep_share, constant(zero, spread)
    if class_weight is None and smoothing is None and out_loss is None:
        sums = linear - offset, compounded(growth, above_one), counts
    else:
        log_total = log1p_of_sum(above_one)
        loss = hard * (log_total - offset)
        if smoothing is not None:
            dot, _ = unrolled(_soft_offset, zero, logits, (highest, class_weight, spread))
            loss = select(label >= 0, loss + (log_total * soft_mass - dot), zero)
        if out_loss is not None:
            write_lanes(out_loss, 0, loss, min(count, LANES), False)
        sums = linear + loss, growth, counts
    if out is not None:
        inverse = select(label >= 0, constant(zero, scale) / total, zero)
        factor = hard * inverse
        at_label = -rest * factor
        if smoothing is not None:
            of_mass = inverse * soft_mass
            factor, at_label = factor + of_mass, at_label + e_label * of_mass
        _, gradient = unrolled(_gradient, (), e, (label, at_label, factor))
        if smoothing is not None:
            _, gradient = unrolled(_soft_gradient, (), gradient, (label, scale, class_weight, spread))
        store_classes(out, gradient)
    return sums


@shared
def _groups(source, labels, plain, classes, class_weight, ignore_index, smoothing, scale, count, out, out_loss, counts):
    """Do `count` rows from the pointers on, in whole groups of `LANES`; return the lanes' sums of their losses.

    And `counts` with these rows: see `_group`.
    """
    zero = zeros_like(source)
    sums = (zero, zero, counts)
    for r in range(0, count, LANES):
        at = r * len(classes)
        sums = _group(
            advance(source, at), advance(labels, r), plain, classes, class_weight, ignore_index, smoothing, scale,
            count - r, advance(out, at), advance(out_loss, r), sums,
        )  # fmt: skip
    linear, growth, counts = sums
    return widen(linear + log1p_of_sum(growth)), counts


@kernel
def cross_entropy_few(
    launcher, blocks, block, x, target, class_weight, ignore_index, scale, mean, smoothing, classes, rows_per_block,
    out_gradient, out_loss, out_sums,
):  # fmt: skip
    """Rows of few classes that lie side by side, as the classes of a row do: fills the `out_*` that are not None.

    The arguments are those of `cross_entropy_rows`, but `outer` is 1, `smoothing` is its (keep_share, spread,
    soft_mass) or None, and `classes` is a tuple with an entry for each class: the kernel is compiled for each number of
    classes. Each thread needs a group of rows of memory and `ROWS` class indices.
    """
    number = len(classes)
    if out_gradient is not None and not surveyed(launcher, block, target, number, ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    source, out = pointer(x, (0, 0, 0)), pointer(out_gradient, (0, 0, 0))
    weights, losses = pointer(class_weight, (0,)), pointer(out_loss, (0, 0))
    group_array, label_array = np.empty(LANES * number, x.dtype), np.empty(ROWS, target.dtype)
    group = pointer(group_array, (0,))
    out_group = if_needed(out_gradient, group)
    total = widen(zeros_like(source))
    counts = np.int64(0), np.int64(0)
    plain = class_weight is None and out_sums[WEIGHT] == target.size  # never without a gradient
    r = block * rows_per_block
    last = min(r + rows_per_block, x.shape[2])
    while r < last:
        until = min(r + ROWS, last)
        if out_gradient is None and class_weight is not None:
            plain = survey_rows(target, r, until, number, ignore_index, class_weight, block, out_sums)
        labels = side_by_side(target, 0, r, until - r, label_array)
        whole = (until - r) // LANES * LANES
        if whole > 0:
            losses_of_rows, counts = _groups(
                advance(source, r * number), labels, plain, classes, weights, ignore_index, smoothing, scale, whole,
                advance(out, r * number), advance(losses, r), counts,
            )  # fmt: skip
            total = total + losses_of_rows
            labels = advance(labels, whole)
            r += whole
        if r < until:  # copied, for a group has no fewer rows
            take_rows(x, 0, r, until - r, group_array)
            losses_of_rows, counts = _groups(
                group, labels, plain, classes, weights, ignore_index, smoothing, scale, until - r, out_group,
                advance(losses, r), counts,
            )  # fmt: skip
            total = total + losses_of_rows
            give_rows(group_array, out_gradient, 0, r, until - r)
            r = until
    keep(group_array)
    keep(label_array)
    if out_gradient is None and class_weight is None:
        add_counts(counts, block, out_sums)
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
        logits = _load_group(advance(source, r * len(classes)), classes)
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
        take_rows(x, 0, first + whole, count - whole, group_array)
        _softmax_groups(
            group, classes, count - whole, if_needed(out_softmax, group), if_needed(out_log_softmax, group),
            advance(losses, first + whole),
        )  # fmt: skip
        give_rows(group_array, out_softmax, 0, first + whole, count - whole)
        give_rows(group_array, out_log_softmax, 0, first + whole, count - whole)
        keep(group_array)
