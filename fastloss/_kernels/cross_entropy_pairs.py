"""Cross-entropy of two classes with class indices, with lanes that run over the rows.

It is a function of one number, z, the other class's logit minus the label's: the loss is log(1 + e**z), its derivative
the sigmoid of z, with opposite signs at the two classes. One exponential serves a row, and nothing but the logits, the
labels and the gradient goes through memory.
"""

from __future__ import annotations

from fastloss._kernels._blocks import distributed
from fastloss._kernels._classes import PAIR, load_classes, store_classes
from fastloss._kernels._jit import inlined, kernel
from fastloss._kernels._memory import (
    advance,
    class_indices,
    gather,
    load,
    lookup,
    pointer,
    scatter,
    store,
    zeros_like,
)
from fastloss._kernels._simd import LANES, constant, select, sum_lanes, widen
from fastloss._kernels.elementary import decay, log1p_of_fraction
from fastloss._kernels.pointwise import ADDENDS
from fastloss._kernels.targets import scale_of_rows, surveyed


@inlined
def _load(source, class_step, row_step, r, count):
    """Return the vectors of the logits of either class, of the `count` <= LANES rows from r on."""
    if count == LANES and class_step == 1 and row_step == 2:
        return load_classes(advance(source, 2 * r), PAIR)
    if count == LANES and row_step == 1:
        return load(source, r), load(source, r + class_step)
    return gather(source, r * row_step, row_step, count), gather(source, r * row_step + class_step, row_step, count)


@inlined
def _write(out, class_step, row_step, r, first, second, count):
    """Write the gradients at either class of the `count` <= LANES rows from r on."""
    if count == LANES and class_step == 1 and row_step == 2:
        store_classes(advance(out, 2 * r), (first, second))
    elif count == LANES and row_step == 1:
        store(out, r, first)
        store(out, r + class_step, second)
    else:
        scatter(out, r * row_step, row_step, first, count)
        scatter(out, r * row_step + class_step, row_step, second, count)


@inlined
def _steps(array):
    """Return how many elements lead from class to class and from row to row; (0, 0) where there is no array."""
    return (0, 0) if array is None else (array.strides[1] // array.itemsize, array.strides[2] // array.itemsize)


@inlined
def _step(x, target, class_weight, ignore_index, scale, o, r, count, out_gradient, out_loss):
    """Do the `count` <= LANES rows from r on of x[o]; return their losses."""
    class_step, row_step = _steps(x)
    first, second = _load(pointer(x, (o, 0, 0)), class_step, row_step, r, count)
    target_step = target.strides[1] // target.itemsize
    label = class_indices(pointer(target, (o, 0)), r * target_step, target_step, count, 2, ignore_index)
    zero, one = constant(first, 0), constant(first, 1)
    highest = select(second > first, second, first)
    # The last term is nan where the larger logit is infinite, as softmax is there.
    z = select(label == 0, second - first, first - second) + (highest - highest)
    positive = z > 0.0
    e = decay(z)
    loss = select(positive | (z != z), z, zero) + log1p_of_fraction(e)
    other = select(positive, one, e) / (one + e)
    if class_weight is not None:
        weight = lookup(pointer(class_weight, (0,)), label)
        loss, other = loss * weight, other * weight
    loss = select(label >= 0, loss, zero)
    if out_gradient is not None:
        gradient = select(label >= 0, other * scale, zero)
        gradient = select(label == 0, -gradient, gradient)
        class_step, row_step = _steps(out_gradient)
        _write(pointer(out_gradient, (o, 0, 0)), class_step, row_step, r, gradient, -gradient, count)
    if out_loss is not None:
        scatter(pointer(out_loss, (o, 0)), r, 1, loss, count)
    return loss


@kernel
def cross_entropy_pairs(
    launcher, blocks, block, x, target, class_weight, ignore_index, scale, mean, rows_per_block, out_gradient,
    out_loss, out_sums,
):  # fmt: skip
    """Rows of two classes in any layout: fills the `out_*` that are not None, and the sum of the losses by blocks.

    The arguments are those of `cross_entropy_rows`, but no axis need be contiguous. No memory beside the outputs.
    """
    if not surveyed(launcher, block, target, x.shape[1], ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    inner = x.shape[2]
    total = widen(zeros_like(pointer(x, (0, 0, 0))))
    at = block * rows_per_block
    last = min(at + rows_per_block, x.shape[0] * inner)
    while at < last:
        o = at // inner
        start = at - o * inner
        stop = min(start + last - at, inner)
        at += stop - start
        r = start
        while r < stop:
            some = zeros_like(pointer(x, (0, 0, 0)))
            until = min(r + ADDENDS * LANES, stop)
            while r + LANES <= until:
                some = some + _step(x, target, class_weight, ignore_index, scale, o, r, LANES, out_gradient, out_loss)
                r += LANES
            if r < until:
                some = some + _step(
                    x, target, class_weight, ignore_index, scale, o, r, until - r, out_gradient, out_loss
                )
                r = until
            total = total + widen(some)
    out_sums[block] = sum_lanes(total)
