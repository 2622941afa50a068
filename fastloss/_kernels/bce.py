"""Binary cross-entropy of probabilities and of logits."""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined, kernel
from fastloss._kernels._simd import constant, multiply_add, select
from fastloss._kernels.elementary import decay, log1p_of_fraction, log_of_ratio
from fastloss._kernels.pointwise import kernel_of, pointwise_block

LOG_FLOOR = -100.0
"""torch.nn.BCELoss clamps its logarithms here, so that its loss is finite."""

VARIANCE_FLOOR = 1e-12
"""torch's derivative of BCELoss (binary_cross_entropy_backward) divides by at least this."""


@inlined
def _of_probabilities(x, target, pos_weight, summed):
    """-t log(x) - (1 - t) log(1 - x), nan unless both are in [0, 1]; by x, (x - t) / (x (1 - x)). Torch's floors.

    Let s be the smaller of x and 1 - x over the larger, which then are s / (1 + s) and 1 / (1 + s). So the loss is
    log(1 + s) - u log(s), where u is t or 1 - t: neither term is negative, and the first is one of those that a product
    adds up. The smaller of x and 1 - x is exact, and negative where x is out of range.
    """
    zero, one, highest = constant(x, 0), constant(x, 1), constant(x, -LOG_FLOOR)
    complement, rest = one - x, one - target
    below = x < complement
    smaller, larger = select(below, x, complement), select(below, complement, x)
    minus_log = log_of_ratio(larger, smaller)
    minus_log = select(minus_log < highest, minus_log, highest)
    valid = (smaller >= zero) & (target * rest >= zero)
    loss = select(valid, select(below, target, rest) * minus_log, constant(x, np.nan))
    variance, lowest = x * complement, constant(x, VARIANCE_FLOOR)
    derivative = (x - target) / select(variance > lowest, variance, lowest)
    if summed is not None:
        return loss, (smaller, larger, one), derivative
    return loss + log1p_of_fraction(smaller / larger), None, derivative


@inlined
def _of_logits(x, target, pos_weight, summed):
    """(1 - t) x + s softplus(-x) with s = 1 + (p - 1) t, without the cancellation of its terms.

    softplus(-x) is log(1 + e**-|x|), plus -x for x < 0, where the sum of what is linear in x is -p t x. At -inf it is
    what torch's order of these operations gives, which can be nan.
    """
    zero, one = constant(x, 0), constant(x, 1)
    positive = x > zero
    e = decay(x)
    rest, label = one - target, -target
    softplus_at_inf = -x
    if pos_weight is not None:
        label = pos_weight * label
        softplus_at_inf = softplus_at_inf * (rest - label)
    slope = select(positive, rest, label)
    at_inf = x == constant(x, -np.inf)
    loss_at_inf = multiply_add(rest, x, softplus_at_inf)
    derivative = multiply_add(select(positive, label, rest), e, slope) / (one + e)
    if summed is not None:
        return select(at_inf, loss_at_inf, slope * x), (e, one, one + e), derivative
    log_one_plus = log1p_of_fraction(e)
    if pos_weight is not None:
        log_one_plus = log_one_plus * (rest - label)
    return select(at_inf, loss_at_inf, multiply_add(slope, x, log_one_plus)), None, derivative


@inlined
def _outside_unit(x, target, pos_weight, summed):
    """1 where x or t is not in [0, 1], nan included, else 0."""
    zero, one = constant(x, 0), constant(x, 1)
    inside = (x >= zero) & (x <= one) & (target >= zero) & (target <= one)
    return select(inside, zero, one), None, x


bce = kernel_of(_of_probabilities, has_logs=True)
bce_with_logits = kernel_of(_of_logits, has_logs=True)


@kernel
def count_outside_unit(launcher, blocks, block, x, target, units_per_block, out_count):
    """Count the elements of a 3-D `x` and `target` where either is not in [0, 1], by blocks like those of `kernel_of`.

    The last block comes first, so that what `bce` begins with is still in the cache that the cores share.
    """
    if distributed(launcher, blocks, block):
        return
    out_count[block] = pointwise_block(
        _outside_unit, None, blocks - 1 - block, units_per_block, x, target, None, None, 1.0, False, None, None
    )
