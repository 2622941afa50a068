"""Pieces of a softmax over classes that lie side by side in memory: lanes run over the classes.

A row is walked in blocks of `BLOCK` classes, small enough that a block stays in the first-level cache. Of each block
there is its maximum and the sum of the exponentials relative to it; `merge` makes one such pair of many, whichever
threads found them. That is the online softmax (M. Milakov and N. Gimelshein, arXiv:1805.02867, section 3) over blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastloss._kernels._jit import inlined, inlined_by_type, shared
from fastloss._kernels._memory import (
    PAGE,
    advance,
    ahead,
    elements_of_line,
    elements_to_line,
    empty_accumulators,
    itemsize_of,
    load,
    load_first,
    load_one,
    pointer,
    prefetch,
    put,
    store,
    store_first,
    store_two,
    stream,
    zeros_like,
)
from fastloss._kernels._simd import LANES, constant, lane_numbers, max_lanes, multiply_add, select, sum_lanes
from fastloss._kernels.elementary import exp, exp_scaled, unscale

ALIASED = 512
"""Bytes. Where a loop writes less than that ahead of where it reads, modulo `PAGE`, its loads wait for its stores.

If it reads from 0x10000 on and writes from 0x20040 on, say, it reads 0x10040 while the store to 0x20040 is on its way.
On AMD's Zen 4 the loop of the rows takes 1.1 to 2 times as long then.
"""

BLOCK = 2048
"""Classes in a block: 8 KiB of float32. A lane adds 128 of them in its own precision, the rest is float64."""


@inlined
def load_lanes(source, i, count, fill):
    """Return the vector of the `count` <= LANES elements from source[i] on; the other lanes hold `fill`."""
    return load(source, i) if count == LANES else load_first(source, i, count, fill)


@inlined
def write_lanes(out, i, vector, count, streaming):
    """Write the first `count` <= LANES lanes of `vector` to out[i:]; whole vectors past the caches if `streaming`."""
    if count < LANES:
        store_first(out, i, vector, count)
    elif streaming:
        stream(out, i, vector)
    else:
        store(out, i, vector)


@shared
def maximum(source, start, stop):
    """Return the largest of source[start:stop] as float64, -inf where there is none; nan may be passed over."""
    lowest = constant(zeros_like(source), -np.inf)
    a, b = lowest, lowest
    i = start
    while i + 2 * LANES <= stop:
        x, y = load(source, i), load(source, i + LANES)
        a, b = select(x > a, x, a), select(y > b, y, b)
        i += 2 * LANES
    while i < stop:
        x = load_lanes(source, i, min(stop - i, LANES), -np.inf)
        a = select(x > a, x, a)
        i += LANES
    return np.float64(max_lanes(select(b > a, b, a)))


@inlined
def _is_just_ahead(written, read):
    """Return whether a loop that writes from the pointer `written` on and reads from `read` on waits: see `ALIASED`."""
    return 0 < ahead(written, read) < ALIASED


@inlined_by_type
def row_buffer(x, out, size):
    """Return a new array for `size` exponentials of elements of `x`, None where `out`, made of them, is None."""
    if isinstance(out, types.NoneType):
        return lambda x, out, size: None
    return lambda x, out, size: empty_accumulators(x, size)


@inlined
def room_of_row(classes):
    """Return how many exponentials the memory for a row is to hold, so that `place` can choose where they begin.

    That is up to a line (for `head`) and three quarters of a page behind its start, and the last vector can be longer
    than the row. A page is counted in elements of float32: in float64 that is more than it takes.
    """
    float32_of_page = PAGE // 4
    return (classes + 4 * LANES) // LANES * LANES + float32_of_page


@inlined_by_type
def homes(buffer, room):
    """Return pointers to two rooms in the array `buffer`, None twice for None."""
    if isinstance(buffer, types.NoneType):
        return lambda buffer, room: (None, None)

    def implementation(buffer, room):
        start = pointer(buffer, (0,))
        start = advance(start, elements_to_line(start))
        return start, advance(start, room)

    return implementation


@inlined
def place(home, head, classes, source, spare, out):
    """Return where in its `home` the exponentials of the row at `source` go, so that loads do not wait for stores.

    While they are written `source` and `spare` are read, and while they are read `out` is written: each of the three
    excludes one of four places, a quarter of a page apart, at most. (Halves take half as many bytes in `source` and
    `out`, so that they come too near for a part of the row all the same.) In rows of several blocks, whole lines begin
    at the element `head`, as in `out`.
    """
    place = advance(home, -head % elements_of_line(home) if classes > BLOCK else 0)
    for _ in range(3):
        if not (_is_just_ahead(place, source) or _is_just_ahead(place, spare) or _is_just_ahead(out, place)):
            break
        place = advance(place, PAGE // 4 // itemsize_of(home))
    return place


@inlined
def _exponential(source, scratch, i, count, reference):
    """Return e**(x - reference), scaled, of the `count` <= LANES classes from i on; write it to `scratch` if any."""
    e = exp_scaled(load_lanes(source, i, count, -np.inf) - reference)
    if scratch is not None:
        store(scratch, i, e)
    return e


@inlined
def _without(e, i, label):
    """Return the vector `e` of the classes from i on with 0 for the label's."""
    if label is not None and 0 <= label - i < LANES:
        return select(lane_numbers() == label - i, 0.0, e)
    return e


@inlined
def merge(highest, total, other_highest, other_total):
    """Return the (maximum, sum of exponentials relative to it) of the union of two sets of logits."""
    if other_highest > highest:
        if total == 0.0:
            return other_highest, other_total
        return other_highest, total * exp(highest - other_highest) + other_total
    if other_highest == -np.inf:  # of this set all is -inf, or nothing but nan is left
        return highest, total + other_total
    return highest, total + other_total * exp(other_highest - highest)


class SoftTarget(NamedTuple):
    """The target q[c] = w[c] (keep * t[c] + spread) of a row: class probabilities t, weighted by w and smoothed.

    `probabilities` and `class_weight` are pointers; without the first t is 0, without the second w is 1.
    """

    probabilities: Any
    class_weight: Any
    keep: float
    spread: float


@inlined_by_type
def soft_target(probabilities, class_weight, keep, spread):
    """Return the `SoftTarget` of a row, None where `spread` is None."""
    if isinstance(spread, types.NoneType):
        return lambda probabilities, class_weight, keep, spread: None
    return lambda probabilities, class_weight, keep, spread: SoftTarget(probabilities, class_weight, keep, spread)


@inlined
def _soft_lanes(like, probabilities, class_weight, keep, spread, i, count):
    q = constant(like, spread)
    if probabilities is not None:
        q = multiply_add(load_lanes(probabilities, i, count, 0.0), constant(like, keep), q)
    if class_weight is not None:
        q = q * load_lanes(class_weight, i, count, 0.0)
    return q if count == LANES else select(lane_numbers() < count, q, 0.0)


@inlined
def soft_lanes(like, soft, i, count):
    """Return q of the `count` <= LANES classes from i on, in the type of the vector `like`; 0 in the other lanes."""
    return _soft_lanes(like, soft.probabilities, soft.class_weight, soft.keep, soft.spread, i, count)


@shared
def soft_sums(source, soft, start, stop, reference):
    """Return the sums of q and of q (x - reference) over [start, stop) as float64."""
    mass, dot = 0.0, 0.0
    i = start
    while i < stop:
        end = min(i + BLOCK, stop)
        block_mass = zeros_like(source)
        block_dot = block_mass
        while i < end:
            count = min(end - i, LANES)
            q = soft_lanes(block_mass, soft, i, count)
            block_mass = block_mass + q
            block_dot = block_dot + q * (load_lanes(source, i, count, reference) - reference)
            i += LANES
        mass += np.float64(sum_lanes(block_mass))
        dot += np.float64(sum_lanes(block_dot))
    return mass, dot


@inlined
def lines_of(out, start, stop, streaming):
    """Return the part of [start, stop) to stream to `out`: its whole cache lines, nothing unless `streaming`.

    A line written partly past the caches and partly through them costs several times as much as either.
    """
    if not streaming:
        return stop, stop
    first = min(start + elements_to_line(advance(out, start)), stop)
    return first, stop - (stop - first) % elements_of_line(out)


@inlined
def _gradient_lanes(source, scratch, reference, factor, scale, soft, label, at_label, i, count):
    if scratch is None:
        e = exp_scaled(load_lanes(source, i, count, 0.0) - reference)
    else:
        e = load(scratch, i)
    gradient = e * factor * unscale(e)
    if soft is not None:
        gradient = gradient - soft_lanes(e, soft, i, count) * scale
    if label is not None and 0 <= label - i < LANES:
        gradient = select(lane_numbers() == label - i, at_label, gradient)
    return gradient


@shared
def _write_gradient(source, scratch, reference, factor, scale, soft, label, at_label, out, start, stop, streaming):
    i = start
    while i + 2 * LANES <= stop:
        first = _gradient_lanes(source, scratch, reference, factor, scale, soft, label, at_label, i, LANES)
        second = _gradient_lanes(source, scratch, reference, factor, scale, soft, label, at_label, i + LANES, LANES)
        store_two(out, i, first, second, streaming)
        i += 2 * LANES
    while i < stop:
        count = min(stop - i, LANES)
        gradient = _gradient_lanes(source, scratch, reference, factor, scale, soft, label, at_label, i, count)
        write_lanes(out, i, gradient, count, streaming)
        i += LANES


@inlined
def write_gradient(source, reference, factor, scale, soft, label, at_label, out, start, stop, streaming):
    """Write factor e**(x - reference) - scale q to out[start:stop], and `at_label` at the class `label`.

    Without `soft` q is 0. The whole cache lines go past the caches if `streaming`; a `fence` must follow.
    """
    first, last = lines_of(out, start, stop, streaming)
    for begin, end, past in ((start, first, False), (first, last, True), (last, stop, False)):
        _write_gradient(source, None, reference, factor, scale, soft, label, at_label, out, begin, end, past)


class RowGradient(NamedTuple):
    """The gradient of a row that is not yet written: factors[block] e**(x - reference) - scale q, but for the label.

    `exponentials`, `head` and the blocks are those of `maximum_and_sum`. All arrays are pointers: the atomic reference
    counts of arrays would wait for the streamed stores.
    """

    exponentials: Any
    factors: Any
    scale: float
    soft: Any
    label: int
    at_label: float
    out: Any
    head: int
    classes: int
    streaming: bool


@inlined_by_type
def row_gradient(exponentials, factors, scale, soft, label, at_label, out, head, classes, streaming):
    """Return the `RowGradient` to write to the pointer `out`, None where that is None."""
    if isinstance(out, types.NoneType):
        return lambda exponentials, factors, scale, soft, label, at_label, out, head, classes, streaming: None
    return lambda exponentials, factors, scale, soft, label, at_label, out, head, classes, streaming: RowGradient(
        exponentials, factors, scale, soft, label, at_label, out, head, classes, streaming
    )


@inlined
def _lines_of_block(gradient, block):
    """Return (start, first, last, stop) of the block of a `RowGradient`: [first, last) are the whole lines to stream.

    All is in [first, last) if nothing is to be streamed, nothing anywhere where the row has no such block.
    """
    start = 0 if block == 0 else gradient.head + block * BLOCK
    stop = max(min(gradient.head + (block + 1) * BLOCK, gradient.classes), start)
    first, last = start, stop
    if gradient.streaming:
        first, last = lines_of(gradient.out, start, stop, True)
    return start, first, last, stop


@inlined
def _row_gradient_lanes(gradient, factor, label, i, count):
    """Return the `count` <= LANES elements of a `RowGradient` from i on; `label` is None if its label is not there."""
    e = gradient.exponentials
    at = None if label is None else gradient.label
    return _gradient_lanes(e, e, 0.0, factor, gradient.scale, gradient.soft, at, gradient.at_label, i, count)


@inlined
def _write_block(gradient, factor, start, stop, streaming):
    """Write [start, stop), of one block, of a `RowGradient`."""
    e = gradient.exponentials
    _write_gradient(
        e, e, 0.0, factor, gradient.scale, gradient.soft, gradient.label, gradient.at_label, gradient.out, start,
        stop, streaming,
    )  # fmt: skip


@shared
def write_blocks(gradient, first_block, last_block):
    """Write the blocks [first_block, last_block) of a `RowGradient`, as far as the row has them."""
    for block in range(first_block, last_block):
        start, first, last, stop = _lines_of_block(gradient, block)
        factor = load_one(gradient.factors, block)
        for begin, end, past in ((start, first, False), (first, last, gradient.streaming), (last, stop, False)):
            _write_block(gradient, factor, begin, end, past)


@inlined
def _until(i, end, at):
    """Return where, of the pairs of vectors from i to `end`, the one with element `at` begins; `end` if none has it."""
    return i + (at - i) // (2 * LANES) * (2 * LANES) if i <= at < end else end


@inlined
def _pair_sum(total, source, scratch, upcoming, start, i, label, reference, gradient, factor, j, past):
    """Add the exponentials of two vectors to `total`, and write two of the `gradient` from element j on.

    No label is among their classes if `label` is None.
    """
    prefetch(upcoming, i - start)
    prefetch(upcoming, i + LANES - start)
    first = _exponential(source, scratch, i, LANES, reference)
    second = _exponential(source, scratch, i + LANES, LANES, reference)
    store_two(
        gradient.out, j, _row_gradient_lanes(gradient, factor, label, j, LANES),
        _row_gradient_lanes(gradient, factor, label, j + LANES, LANES), past,
    )  # fmt: skip
    return (total + _without(first, i, label)) + _without(second, i + LANES, label)


@shared
def _block_sum(source, scratch, upcoming, start, head, stop, label, reference, gradient, block):
    """Return the sum of e**(x - reference) over [start, stop) as float64, without the term of the class `label`.

    In the first of several blocks, of `BLOCK` + `head` classes, vectors begin `head` elements behind the start.

    Meanwhile the logits behind the pointer `upcoming`, which are read next, come into the cache, and the block of the
    `gradient` of another row, if any, is written: the memory takes stores past the caches more slowly than a core can
    compute what they hold, so their loop has to do something else as well.
    """
    total = zeros_like(source)
    i = start
    odd = head % LANES if stop - start == BLOCK + head else 0
    if odd > 0:
        e = _without(_exponential(source, scratch, i, LANES, reference), i, label)
        total = select(lane_numbers() < odd, e, total)
        i += odd
    if gradient is not None:
        begin, first, last, end = _lines_of_block(gradient, block)
        factor, past = load_one(gradient.factors, block), gradient.streaming
        j = first
        if _is_just_ahead(advance(gradient.out, first), advance(source, i)):
            j = min(first + ALIASED // itemsize_of(gradient.out), last)
        for low, high, streaming in ((begin, first, False), (last, end, False), (first, j, past)):
            _write_block(gradient, factor, low, high, streaming)
        shift = j - i
        stop_pairs = i + min(stop - i, last - j) // (2 * LANES) * (2 * LANES)
        while i < stop_pairs:
            until = min(_until(i, stop_pairs, label), _until(i, stop_pairs, gradient.label - shift))
            while i < until:
                total = _pair_sum(
                    total, source, scratch, upcoming, start, i, None, reference, gradient, factor, i + shift,
                    past,
                )  # fmt: skip
                i += 2 * LANES
            if i < stop_pairs:
                total = _pair_sum(
                    total, source, scratch, upcoming, start, i, label, reference, gradient, factor, i + shift,
                    past,
                )  # fmt: skip
                i += 2 * LANES
        _write_block(gradient, factor, i + shift, last, past)
    while i + LANES <= stop:
        prefetch(upcoming, i - start)
        total = total + _without(_exponential(source, scratch, i, LANES, reference), i, label)
        i += LANES
    if i < stop:
        total = total + _without(_exponential(source, scratch, i, stop - i, reference), i, label)
    lanes_total = sum_lanes(total)
    return np.float64(lanes_total) * np.float64(unscale(lanes_total))


@shared
def maximum_and_sum(source, scratch, references, upcoming, start, head, stop, label, gradient):
    """Return the largest logit m of [start, stop) and the sum of e**(x - m) without the class `label`'s, as float64.

    Without that term, neither log1p of the sum nor the gradient at the label cancels where the label is all but
    certain. Blocks have `BLOCK` classes, the first one `head` more. The exponentials of block k are relative to its
    largest logit, references[k] (where that is -inf they are 0), and go, scaled, to `scratch`, in whole vectors: up to
    LANES - 1 elements past `stop`. Both can be None. The row at the pointer `upcoming` is read next. The blocks of the
    `gradient` of another row, if any, are written in the same loops: so memory and arithmetic are busy at once.
    """
    highest, total = -np.inf, 0.0
    block = np.int64(0)
    end = start + head
    while start < stop:
        end = min(end + BLOCK, stop)
        block_highest = maximum(source, start, end)
        reference = 0.0 if block_highest == -np.inf else block_highest
        following = advance(source, end) if end < stop else upcoming
        block_total = _block_sum(source, scratch, following, start, head, end, label, reference, gradient, block)
        highest, total = merge(highest, total, block_highest, block_total)
        if references is not None:
            put(references, block, block_highest)
        block += 1
        start = end
        head = 0
    return highest, total


@shared
def _write_log_softmax(source, highest, log_sum, out, start, stop, streaming):
    i = start
    while i < stop:
        count = min(stop - i, LANES)
        write_lanes(out, i, (load_lanes(source, i, count, 0.0) - highest) - log_sum, count, streaming)
        i += LANES


@inlined
def write_log_softmax(source, highest, log_sum, out, start, stop, streaming):
    """Write (x - highest) - log_sum to out[start:stop], streamed as `write_gradient` does."""
    first, last = lines_of(out, start, stop, streaming)
    for begin, end, past in ((start, first, False), (first, last, True), (last, stop, False)):
        _write_log_softmax(source, highest, log_sum, out, begin, end, past)


@shared
def _write_zeros(out, start, stop, streaming):
    i = start
    while i < stop:
        write_lanes(out, i, zeros_like(out), min(stop - i, LANES), streaming)
        i += LANES


@inlined
def write_zeros(out, start, stop, streaming):
    """Write 0 to out[start:stop], streamed as `write_gradient` does."""
    first, last = lines_of(out, start, stop, streaming)
    for begin, end, past in ((start, first, False), (first, last, True), (last, stop, False)):
        _write_zeros(out, begin, end, past)
