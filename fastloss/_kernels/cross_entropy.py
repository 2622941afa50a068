"""Cross-entropy, log-sum-exp and softmax where the classes of a row lie side by side in memory.

One pass over the row gives its loss and its gradient. With p the softmax of the logits x, w the class weights, e the
label smoothing and q[c] = w[c] ((1 - e) t[c] + e / C) the target, the loss is the sum over c of -q[c] log(p[c]) and its
gradient mass p[c] - q[c], where mass is the sum of q. For a class index y the target t is one at y, and the part
(1 - e) w[y] of the loss and the gradient at y come from the sum of the *other* classes' exponentials, so that nothing
cancels when the label is all but certain. Without any target the loss is the log-sum-exp, with the softmax as gradient.
"""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined, kernel, shared
from fastloss._kernels._memory import (
    advance,
    elements_to_line,
    fence,
    keep,
    load,
    load_one,
    pointer,
    prefetch_to_write,
    put,
    store,
    zeros_like,
)
from fastloss._kernels._simd import LANES, lane_numbers, select, sum_lanes
from fastloss._kernels.elementary import exp, log, log1p_of_sum
from fastloss._kernels.softmax import (
    BLOCK,
    homes,
    maximum_and_sum,
    merge,
    place,
    room_of_row,
    row_buffer,
    row_gradient,
    soft_sums,
    soft_target,
    write_blocks,
    write_gradient,
    write_log_softmax,
    write_zeros,
)
from fastloss._kernels.targets import class_index, scale_of_rows, surveyed, weight_of


@inlined
def _label_terms(source, class_weight, keep_share, spread, label):
    """Return (logit, weight of the label alone, the smoothing's share of the target) at the class `label`."""
    weight = weight_of(class_weight, label)
    return np.float64(load_one(source, label)), keep_share * weight, _smoothing_share(spread, weight)


@inlined
def _smoothing_share(spread, weight):
    return 0.0 if spread is None else spread * weight


@inlined
def _loss(target, spread, highest, rest, mass, dot, offset, e, hard):
    """Return (loss, log of the sum of e**(x - highest)), of one row or of a vector of them, all in float64.

    `rest` is that sum without the label's term `e`, e**offset, `offset` the label's logit less `highest`. `mass` and
    `dot` are the `soft_sums` relative to `highest`, `hard` the label's weight alone.
    """
    log_total = log(rest + e)
    if target is None:
        if spread is None:
            return highest + log_total, log_total
        return mass * log_total - dot, log_total
    # Where the label is the maximum its e is 1 and the loss log1p(rest); else the loss is at least log(2).
    loss = hard * (log1p_of_sum(rest + (e - 1.0)) - offset)
    return loss if spread is None else loss + (mass * log_total - dot), log_total


@inlined
def _factors(target, spread, scale, rest, mass, e, hard, smooth):
    """Return (factor, gradient at the label) of a row, of the numbers that `_loss` takes; `smooth` is q there.

    Elsewhere the gradient is factor e**(x - highest) - scale q; without any target it is the softmax.
    """
    total = rest + e
    if target is None and spread is None:
        return scale / total, 0.0
    return scale * (hard + mass) / total, scale * ((mass * e - hard * rest) / total - smooth)


HIGHEST, REST, MASS, DOT, OFFSET, HARD = range(6)
"""Where the numbers of a row that `_loss` takes are among those of `LANES` rows."""


@inlined
def _keep_row(statistics, lane, highest, rest, mass, dot, offset, hard):
    """Put what `_loss` takes of a row into `statistics`, in a `lane` of a vector for each number."""
    put(statistics, HIGHEST * LANES + lane, highest)
    put(statistics, REST * LANES + lane, rest)
    put(statistics, MASS * LANES + lane, mass)
    put(statistics, DOT * LANES + lane, dot)
    put(statistics, OFFSET * LANES + lane, offset)
    put(statistics, HARD * LANES + lane, hard)


@shared
def _losses_of_rows(target, spread, statistics, count, losses, out_loss, row):
    """Return the losses of `count` rows as a vector; write them to out_loss too, from its `row` on, if there is one.

    `losses` points to memory for them.
    """
    highest, rest = load(statistics, HIGHEST * LANES), load(statistics, REST * LANES)
    mass, dot = load(statistics, MASS * LANES), load(statistics, DOT * LANES)
    offset, hard = load(statistics, OFFSET * LANES), load(statistics, HARD * LANES)
    e = zeros_like(statistics)
    if target is not None:
        e = exp(offset)
    loss, _ = _loss(target, spread, highest, rest, mass, dot, offset, e, hard)
    loss = select(lane_numbers() < count, loss, 0.0)
    if out_loss is not None:
        store(losses, 0, loss)
        inner = out_loss.shape[1]
        for lane in range(count):
            o = (row + lane) // inner
            out_loss[o, row + lane - o * inner] = load_one(losses, lane)
    return loss


@kernel
def cross_entropy_rows(
    launcher, shares, share, x, target, probabilities, class_weight, ignore_index, keep_share, spread, soft_mass, scale,
    mean, streaming, rows_per_block, out_gradient, out_log_softmax, out_loss, out_sums,
):  # fmt: skip
    """Rows of contiguous classes, each on one thread: fills the `out_*` that are not None.

    `x`, `probabilities`, `out_gradient` and `out_log_softmax` are (outer, C, inner) with contiguous classes, `target`
    and `out_loss` (outer, inner), `class_weight` (C,) in the accumulator's dtype. `out_sums[b]` is the sum of the
    losses of the b-th `rows_per_block` rows; `surveyed` says what lies behind these sums. `spread`, e / C, is
    None without label smoothing and probabilities, `keep_share` is 1 - e, and `soft_mass`, with a target, `spread`
    times the sum of the weights: a sum of many equal terms in float32 would drift. The gradient is that of the sum of
    the losses times `scale`, with `mean` over the weight of the targets. A row whose target is `ignore_index` (or out
    of range) is not read; its loss and gradient are 0.

    What is distributed are shares, one for each thread: every `shares`-th block of rows from the block number `share`
    on, so that no thread has all the rows to ignore. The gradient of a row is written while the exponentials of the
    next one are computed, from block to block. A share needs two rows of memory and some pages beside its outputs.
    """
    classes, inner = x.shape[1], x.shape[2]
    if not surveyed(launcher, share, target, classes, ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, shares, share):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    rows = x.shape[0] * inner
    zero = np.int64(0)  # a literal 0 would compile each function that it is passed to once more
    blocks = (classes + BLOCK - 1) // BLOCK
    by_block = np.empty(2 * blocks + 7 * LANES)
    references, factors = pointer(by_block, (0,)), pointer(by_block, (blocks,))
    statistics, losses = pointer(by_block, (2 * blocks,)), pointer(by_block, (2 * blocks + 6 * LANES,))
    room = room_of_row(classes)
    buffer = row_buffer(x, out_gradient, 2 * room)
    home, other_home = homes(buffer, room)
    exponentials, spare = home, other_home
    out = pointer(out_gradient, (0, 0, 0))
    soft = soft_target(pointer(probabilities, (0, 0, 0)), pointer(class_weight, (0,)), keep_share, spread)
    pending = row_gradient(spare, factors, scale, soft, -1, 0.0, out, 0, 0, streaming)
    for number in range(share, (out_sums.size - 2) // 2, shares):
        first = number * rows_per_block
        last = min(first + rows_per_block, rows)
        after = first + shares * rows_per_block  # the row behind the last
        next_o, next_i = first // inner, first % inner  # counted on, not divided for each row
        loss_sum = zeros_like(statistics)
        lane = zero
        for row in range(first, last):
            o, i = next_o, next_i
            if row + 1 < last:
                next_i += 1
                if next_i == inner:
                    next_o, next_i = o + 1, zero
            elif after < rows:
                next_o, next_i = after // inner, after % inner
            source = pointer(x, (o, 0, i))
            out = pointer(out_gradient, (o, 0, i))
            if lane == LANES:
                loss_sum = loss_sum + _losses_of_rows(target, spread, statistics, lane, losses, out_loss, row - lane)
                lane = zero
            lane += 1
            label, logit, hard, smooth, mass, dot = -1, 0.0, 0.0, 0.0, 0.0, 0.0
            if target is not None:
                label = class_index(target, o, i, classes, ignore_index)
                if label < 0:
                    if out_gradient is not None:
                        write_zeros(out, zero, classes, streaming)
                    _keep_row(statistics, lane - 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
                    continue
                logit, hard, smooth = _label_terms(source, class_weight, keep_share, spread, label)
            upcoming = pointer(x, (next_o, 0, next_i))
            head = 0
            if out_gradient is not None:
                if streaming:
                    head = elements_to_line(out)
                    prefetch_to_write(out, zero)  # the lines shared with other rows
                    prefetch_to_write(out, classes - 1)
                exponentials = place(home, head, classes, source, spare, out)
            highest, rest = maximum_and_sum(
                source, exponentials, references, upcoming, zero, head, classes, label, pending
            )
            if out_gradient is not None:
                write_blocks(pending, max((classes - head + BLOCK - 1) // BLOCK, 1), blocks)
            soft = soft_target(pointer(probabilities, (o, 0, i)), pointer(class_weight, (0,)), keep_share, spread)
            if spread is not None:
                mass, dot = soft_sums(source, soft, zero, classes, highest)
                if target is not None:
                    mass = soft_mass
            _keep_row(statistics, lane - 1, highest, rest, mass, dot, logit - highest, hard)
            if out_log_softmax is not None:
                write_log_softmax(
                    source, highest, log(rest), pointer(out_log_softmax, (o, 0, i)), zero, classes, streaming
                )
            if out_gradient is not None:
                e = 0.0
                if target is not None:
                    e = exp(logit - highest)
                factor, at_label = _factors(target, spread, scale, rest, mass, e, hard, smooth)
                put(factors, zero, factor)
                if blocks > 1:  # else the reference is the maximum
                    for block in range(blocks):
                        put(factors, block, factor * exp(load_one(references, block) - highest))
                pending = row_gradient(
                    exponentials, factors, scale, soft, label, at_label, out, head, classes, streaming
                )
                spare = exponentials
                home, other_home = other_home, home
        if lane > 0:
            loss_sum = loss_sum + _losses_of_rows(target, spread, statistics, lane, losses, out_loss, last - lane)
        out_sums[number] = sum_lanes(loss_sum)
    if out_gradient is not None:
        write_blocks(pending, zero, blocks)
    keep(buffer)
    keep(by_block)
    if streaming:
        fence()


@shared
def _sum_chunk(
    unit, x, target, probabilities, class_weight, ignore_index, keep_share, spread, chunk, statistics
):  # fmt: skip
    """Fill statistics[unit] with (maximum, sum without the label's term, mass, dot) of a chunk of a row's classes."""
    classes, inner = x.shape[1], x.shape[2]
    row = unit // statistics.shape[1]
    start = (unit - row * statistics.shape[1]) * chunk
    stop = min(start + chunk, classes)
    o = row // inner
    i = row - o * inner
    source = pointer(x, (o, 0, i))
    label = -1
    if target is not None:
        label = class_index(target, o, i, classes, ignore_index)
    highest, total = maximum_and_sum(source, None, None, advance(source, stop), start, 0, stop, label, None)
    mass, dot = 0.0, 0.0
    if spread is not None:
        soft = soft_target(pointer(probabilities, (o, 0, i)), pointer(class_weight, (0,)), keep_share, spread)
        mass, dot = soft_sums(source, soft, start, stop, 0.0 if highest == -np.inf else highest)
    of_unit = statistics[row, start // chunk]
    of_unit[0], of_unit[1], of_unit[2], of_unit[3] = highest, total, mass, dot


@shared
def _finish_row(
    row, x, target, class_weight, ignore_index, keep_share, spread, soft_mass, scale, statistics, results, out_loss
):  # fmt: skip
    """Fill results[row] with (highest, factor, gradient at the label, log of the sum); return the row's loss."""
    classes, inner = x.shape[1], x.shape[2]
    o = row // inner
    i = row - o * inner
    label, logit, hard, smooth = -1, 0.0, 0.0, 0.0
    if target is not None:
        label = class_index(target, o, i, classes, ignore_index)
        if label < 0:
            if out_loss is not None:
                out_loss[o, i] = 0.0
            return 0.0
        logit, hard, smooth = _label_terms(pointer(x, (o, 0, i)), class_weight, keep_share, spread, label)
    highest, rest, mass, dot = -np.inf, 0.0, 0.0, 0.0
    for chunk in range(statistics.shape[1]):
        highest, rest = merge(highest, rest, statistics[row, chunk, 0], statistics[row, chunk, 1])
    for chunk in range(statistics.shape[1]):
        reference = 0.0 if statistics[row, chunk, 0] == -np.inf else statistics[row, chunk, 0]
        mass += statistics[row, chunk, 2]
        dot += statistics[row, chunk, 3] + statistics[row, chunk, 2] * (reference - highest)
    if spread is not None and target is not None:
        mass = soft_mass
    offset, e = logit - highest, 0.0
    if target is not None:
        e = exp(offset)
    loss, log_total = _loss(target, spread, highest, rest, mass, dot, offset, e, hard)
    factor, at_label = _factors(target, spread, scale, rest, mass, e, hard, smooth)
    of_row = results[row]
    of_row[0], of_row[1], of_row[2], of_row[3] = highest, factor, at_label, log_total
    if out_loss is not None:
        out_loss[o, i] = loss
    return loss


@shared
def _write_chunk(
    unit, x, target, probabilities, class_weight, ignore_index, keep_share, spread, scale, streaming, chunk,
    chunks, results, out_gradient, out_log_softmax,
):  # fmt: skip
    """Write the gradient or the log-softmax of a chunk of a row's classes, by the row's `results`."""
    classes, inner = x.shape[1], x.shape[2]
    row = unit // chunks
    start = (unit - row * chunks) * chunk
    stop = min(start + chunk, classes)
    o = row // inner
    i = row - o * inner
    source = pointer(x, (o, 0, i))
    highest, factor, at_label, log_total = results[row, 0], results[row, 1], results[row, 2], results[row, 3]
    label = -1
    if target is not None:
        label = class_index(target, o, i, classes, ignore_index)
    if out_log_softmax is not None:
        write_log_softmax(source, highest, log_total, pointer(out_log_softmax, (o, 0, i)), start, stop, streaming)
    if out_gradient is not None:
        out = pointer(out_gradient, (o, 0, i))
        if target is not None and label < 0:
            write_zeros(out, start, stop, streaming)
        else:
            soft = soft_target(pointer(probabilities, (o, 0, i)), pointer(class_weight, (0,)), keep_share, spread)
            write_gradient(source, highest, factor, scale, soft, label, at_label, out, start, stop, streaming)
    if streaming:
        fence()


@kernel
def cross_entropy_chunks(
    launcher, units, unit, phase, x, target, probabilities, class_weight, ignore_index, keep_share, spread, soft_mass,
    scale, mean, streaming, chunk, statistics, results, out_gradient, out_log_softmax, out_loss, out_sums,
):  # fmt: skip
    """Few rows of very many contiguous classes: like `cross_entropy_rows`, but the threads share each row.

    A row's classes are cut into chunks of `chunk`, a multiple of `BLOCK`; `statistics` (rows, chunks, 4) and `results`
    (rows, 4) are working memory in float64. The exponentials are computed twice, since storing them would move more
    memory. `out_sums` begins with the rows' losses. It is called two or three times: for `phase` 0 with all chunks of
    all rows as units, for 1 with the rows, and if there is an output of elements for 2, with the chunks again.
    """
    if phase == 0 and not surveyed(launcher, unit, target, x.shape[1], ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, units, unit):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    if phase == 0:
        _sum_chunk(unit, x, target, probabilities, class_weight, ignore_index, keep_share, spread, chunk, statistics)
    elif phase == 1:
        out_sums[unit] = _finish_row(
            unit, x, target, class_weight, ignore_index, keep_share, spread, soft_mass, scale, statistics, results,
            out_loss,
        )  # fmt: skip
    else:
        _write_chunk(
            unit, x, target, probabilities, class_weight, ignore_index, keep_share, spread, scale, streaming,
            chunk, statistics.shape[1], results, out_gradient, out_log_softmax,
        )  # fmt: skip
