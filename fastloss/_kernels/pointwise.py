"""Losses and functions of one element at a time, and the loop that they share.

A formula is an inlined function of vectors (x, target, pos_weight), the last two None where the loss has none, and of
`summed`: True where a call needs nothing but the sum of the losses, without weights, else None. It returns (loss,
in_log, derivative by x). With `summed`, in_log can be (a, b, a + b) instead of None, a >= 0 and 1/2 <= b <= 1; then
log(1 + a / b) is to be added to the loss, so that one logarithm serves the sum of many. Weights, sums and layouts are
the loop's.
"""

from __future__ import annotations

from numba import types

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined, inlined_by_type, kernel
from fastloss._kernels._memory import fence, if_needed, load_one, pointer, prefetch, zeros_like
from fastloss._kernels._simd import LANES, constant, lane_numbers, select, sum_lanes, widen
from fastloss._kernels.elementary import compounded_ratio, exp, log, log1p_of_sum, sigmoid, softplus
from fastloss._kernels.softmax import lines_of, load_lanes, write_lanes

PIECE = 4096
"""Elements along the innermost axis that make a unit of work: their loads and stores stay in the first-level cache."""

ADDENDS = 32
"""Losses that a lane adds in its own precision before it adds their sum in float64."""

AHEAD = 512
"""Elements by which the loop asks for what it reads: where it also reads weights, this takes a ninth off the time."""


@inlined
def _lanes_from(source, count):
    """Return the vector of the `count` elements from the pointer `source` on, and ask for later ones."""
    prefetch(source, AHEAD)
    return load_lanes(source, 0, count, 0.0)


@inlined_by_type
def _lanes(operand, a, b, i, count):
    """Return the vector of operand[a, b, i : i + count], one element repeated where that axis is broadcast; or None."""
    if isinstance(operand, types.NoneType):
        return lambda operand, a, b, i, count: None

    def lanes(operand, a, b, i, count):
        source = pointer(operand, (a, b, i))
        if operand.strides[2] == 0:
            return constant(zeros_like(source), load_one(source, 0))
        return _lanes_from(source, count)

    return lanes


@inlined_by_type
def _if_summed(has_logs, weight, pos_weight, out_value):
    """Return True where losses that have logarithms are only added, as they are, else None."""
    only_added = {weight, pos_weight, out_value} == {types.none}
    summed = None if isinstance(has_logs, types.NoneType) or not only_added else True
    return lambda has_logs, weight, pos_weight, out_value: summed


@inlined_by_type
def _grown(growth, in_log, count):
    """Return `growth` with the first `count` lanes of `in_log`, where that is not None."""
    if isinstance(in_log, types.NoneType):
        return lambda growth, in_log, count: growth

    def grown(growth, in_log, count):
        a, b, sum_of_both = in_log
        if count < LANES:
            counts = lane_numbers() < count
            a, b, sum_of_both = select(counts, a, 0.0), select(counts, b, 1.0), select(counts, sum_of_both, 1.0)
        return compounded_ratio(growth[0], growth[1], a, b, sum_of_both)

    return grown


@inlined_by_type
def _sum_of(some, growth):
    """Return the sum of the losses: `some` and, if that is not None, log(1 + the ratio `growth`)."""
    if isinstance(growth, types.NoneType):
        return lambda some, growth: some
    return lambda some, growth: some + log1p_of_sum(growth[0] / growth[1])


@inlined
def _step(
    formula, summed, x, target, weight, pos_weight, scale, a, b, i, count, out_value, out_gradient, streaming, sums
):  # fmt: skip
    """Write the loss and the gradient of the `count` <= LANES elements x[a, b, i:]; return `sums` with the losses.

    These are the sum of what is not a logarithm, and the product of what is in one: see `compounded_ratio`.
    """
    some, growth = sums
    loss, in_log, gradient = formula(
        _lanes_from(pointer(x, (a, b, i)), count), _lanes(target, a, b, i, count), _lanes(pos_weight, a, b, i, count),
        summed,
    )  # fmt: skip
    if weight is not None:
        factor = _lanes(weight, a, b, i, count)
        loss, gradient = loss * factor, gradient * factor
    if out_value is not None:
        write_lanes(pointer(out_value, (a, b, i)), 0, loss, count, streaming and out_gradient is None)
    if out_gradient is not None:
        write_lanes(pointer(out_gradient, (a, b, i)), 0, gradient * scale, count, streaming)
    if count < LANES:
        loss = select(lane_numbers() < count, loss, 0.0)
    return some + loss, _grown(growth, in_log, count)


@inlined
def pointwise_block(
    formula, has_logs, block, units_per_block, x, target, weight, pos_weight, scale, streaming, out_value, out_gradient
):  # fmt: skip
    """Do the units of a block, at most `PIECE` elements of one innermost row each; return the sum of the losses."""
    inner = x.shape[2]
    pieces = (inner + PIECE - 1) // PIECE
    first = block * units_per_block
    zero = zeros_like(pointer(x, (0, 0, 0)))
    total = widen(zero)
    summed = _if_summed(has_logs, weight, pos_weight, out_value)
    for unit in range(first, min(first + units_per_block, x.shape[0] * x.shape[1] * pieces)):
        row = unit // pieces
        start = (unit - row * pieces) * PIECE
        stop = min(start + PIECE, inner)
        a = row // x.shape[1]
        b = row - a * x.shape[1]
        begin, end = start, stop
        if out_gradient is not None:
            begin, end = lines_of(pointer(out_gradient, (a, b, 0)), start, stop, streaming)
        elif out_value is not None:
            begin, end = lines_of(pointer(out_value, (a, b, 0)), start, stop, streaming)
        for low, high, past in ((start, begin, False), (begin, end, streaming), (end, stop, False)):
            i = low
            while i < high:
                sums = (zero, if_needed(summed, (zero, constant(zero, 1))))
                until = min(i + ADDENDS * LANES, high)
                while i + LANES <= until:
                    sums = _step(
                        formula, summed, x, target, weight, pos_weight, scale, a, b, i, LANES, out_value, out_gradient,
                        past, sums,
                    )  # fmt: skip
                    i += LANES
                if i < until:
                    sums = _step(
                        formula, summed, x, target, weight, pos_weight, scale, a, b, i, until - i, out_value,
                        out_gradient, past, sums,
                    )  # fmt: skip
                    i = until
                some, growth = sums
                total = total + widen(_sum_of(some, growth))
    if streaming:
        fence()
    return sum_lanes(total)


def kernel_of(formula, factor=1.0, has_logs=None):
    """Return the kernel of the losses of a `formula`, and of its derivatives times `factor`.

    `has_logs` is True if the formula can return an `in_log`, else None.

    It fills the `out_*` that are not None. All arrays are (outer, middle, inner), their innermost axis contiguous, or
    broadcast for `target`, `weight` and `pos_weight`. `out_value` gets the weighted losses, `out_gradient` the weighted
    derivatives times `scale`, `out_sum[b]` the sum of the losses of the b-th `units_per_block` units, a unit being
    `PIECE` elements of an innermost row. One pass, no memory beside the outputs.
    """

    def of_elements(
        launcher, blocks, block, x, target, weight, pos_weight, scale, streaming, units_per_block, out_value,
        out_gradient, out_sum,
    ):  # fmt: skip
        if distributed(launcher, blocks, block):
            return
        out_sum[block] = pointwise_block(
            formula, has_logs, block, units_per_block, x, target, weight, pos_weight, factor * scale, streaming,
            out_value, out_gradient,
        )  # fmt: skip

    return kernel(of_elements)


@inlined
def _squared_error(x, target, pos_weight, summed):
    """(x - t)**2, and half its derivative, as all of it may overflow where it does not once it is scaled."""
    difference = x - target
    return difference * difference, None, difference


@inlined
def _kullback_leibler(x, target, pos_weight, summed):
    """t log(t) - t x, of log-probabilities x and probabilities t."""
    t_log_t = select(target == 0.0, 0.0, target * log(target))
    return t_log_t - target * x, None, -target


@inlined
def _kullback_leibler_of_logs(x, target, pos_weight, summed):
    """e**t (t - x), of log-probabilities x and t."""
    probability = exp(target)
    return probability * (target - x), None, -probability


@inlined
def _sigmoid(x, target, pos_weight, summed):
    """1 / (1 + e**-x), as the value."""
    return sigmoid(x), None, x


@inlined
def _log_sigmoid(x, target, pos_weight, summed):
    """-log(1 + e**-x), as the value."""
    return -softplus(-x), None, x


mse = kernel_of(_squared_error, factor=2.0)
kl_div = kernel_of(_kullback_leibler)
kl_div_of_logs = kernel_of(_kullback_leibler_of_logs)
sigmoid_of = kernel_of(_sigmoid)
log_sigmoid_of = kernel_of(_log_sigmoid)
