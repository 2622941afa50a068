"""The negative log-likelihood of log-probabilities: picks one class of each row."""

from __future__ import annotations

import numpy as np

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import kernel, shared
from fastloss._kernels._memory import fence, load_one, pointer, put
from fastloss._kernels.softmax import write_zeros
from fastloss._kernels.targets import class_index, scale_of_rows, surveyed, weight_of


@shared
def _clear(out, o, start, stop, streaming):
    """Set out[o, :, start:stop] to 0."""
    classes = out.shape[1]
    if out.strides[1] == out.itemsize:
        if out.strides[2] == classes * out.itemsize:
            write_zeros(pointer(out, (o, 0, start)), 0, (stop - start) * classes, streaming)
        else:
            for i in range(start, stop):
                write_zeros(pointer(out, (o, 0, i)), 0, classes, streaming)
    elif out.strides[2] == out.itemsize:
        for c in range(classes):
            write_zeros(pointer(out, (o, c, start)), 0, stop - start, streaming)
    else:
        for i in range(start, stop):
            for c in range(classes):
                put(pointer(out, (o, c, i)), 0, 0.0)
    if streaming:
        fence()  # before the ordinary stores of the labels' gradients


@kernel
def nll_rows(
    launcher, blocks, block, x, target, class_weight, ignore_index, scale, mean, streaming, rows_per_block,
    out_gradient, out_loss, out_sums,
):  # fmt: skip
    """The loss -w[y] x[y] of each row and its gradient, for arguments and outputs like `cross_entropy_rows`.

    Any layout. It reads one element of each row and, for the gradient, writes zeros everywhere else.
    """
    classes, inner = x.shape[1], x.shape[2]
    if not surveyed(launcher, block, target, classes, ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    at = block * rows_per_block
    last = min(at + rows_per_block, x.shape[0] * inner)
    loss_sum = 0.0
    while at < last:
        o = at // inner
        start = at - o * inner
        stop = min(start + last - at, inner)
        for i in range(start, stop):
            label = class_index(target, o, i, classes, ignore_index)
            loss = 0.0
            if label >= 0:
                loss = -weight_of(class_weight, label) * np.float64(load_one(pointer(x, (o, label, i)), 0))
            loss_sum += loss
            if out_loss is not None:
                out_loss[o, i] = loss
        if out_gradient is not None:  # only now: it may be the memory of x
            _clear(out_gradient, o, start, stop, streaming)
            for i in range(start, stop):
                label = class_index(target, o, i, classes, ignore_index)
                if label >= 0:
                    put(pointer(out_gradient, (o, label, i)), 0, -scale * weight_of(class_weight, label))
        at += stop - start
    out_sums[block] = loss_sum
