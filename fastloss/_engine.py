"""Allocate, choose the kernel for the layout, run it, reduce: what the public functions stand on.

Arguments are arrays that `_checks` has passed; those of bfloat16 can also be uint16 arrays of its bits. Which kernel
serves which cross-entropy or softmax of logits (`nll_rows` serves all log-probabilities):

| classes lie          | and a row has             | kernel                  |
| -------------------- | ------------------------- | ----------------------- |
| side by side         | 256 and more (1)          | `cross_entropy_rows`    |
| side by side         | 262,144 and more          | `cross_entropy_chunks`  |
| side by side         | 65,536 in under 64 rows   | `cross_entropy_chunks`  |
| anywhere             | 2, with class indices (2) | `cross_entropy_pairs`   |
| side by side (3)     | 2 to 16, class indices    | `cross_entropy_few`     |
| side by side (3)     | 2 to 16, without targets  | `softmax_few`           |
| side by side (4)     | 64 to 255 (5)             | `cross_entropy_batches` |
| apart (6)            | up to 2,048 other         | `cross_entropy_planes`  |
| anywhere             | any other number          | `cross_entropy_tiles`   |

(1) In float64 128 and more: a row of the kernel's own numbers takes 1 KiB.
(2) Without label smoothing.
(3) As are the rows, of the outputs too. In float64 up to 8: a row of the kernel's own numbers takes 64 bytes.
(4) As are the rows of outputs; those of the input are at equal distances.
(5) In float64 32 to 127. The loss alone from 160 on, 80 in float64. With class indices (2) or without targets.
(6) The rows side by side, of the outputs too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastloss import _checks, _layout, _reduction, _threads
from fastloss._kernels._apart import apart

ROW_BYTES_FROM = 1 << 10
"""From classes on that take so much, one row at a time is faster than a tile or a batch of rows."""

CHUNKS_FROM = 1 << 18
"""From so many classes on, the threads share each row: its exponentials would no longer fit in a thread's cache."""

FEW_ROWS, CHUNKS_OF_FEW_ROWS_FROM = 64, 1 << 16
"""Fewer rows than this would not keep many threads busy, so they share rows from so many classes on."""

CHUNKS = 1 << 14
"""Rows are cut into about so many chunks at most: their statistics take 512 KiB."""

FEW_BYTES = 64
"""Rows of at most so many bytes have a kernel for their number of classes, which keeps groups of them in registers."""

BATCH_BYTES_FROM, BATCH_BYTES_OF_LOSS_FROM = 256, 640
"""From classes on that take so much, batches of rows are faster than tiles: with an output of elements, and without."""

TILE_ELEMENTS, TILE_ROWS = 1 << 10, 128
"""A tile of rows whose classes lie side by side has at most so many elements and rows: the first-level cache holds it,
its copy in the order of the output, and what is read next."""

RUN_ELEMENTS, RUN_ROWS = 1 << 16, 192
"""A tile of other rows has at most so many: what is read and written at once are the rows of one class, and the longer
these runs are the better, while the second-level cache holds them."""

PLANES = RUN_ELEMENTS // 32
"""Up to so many classes runs of rows are long enough, two vectors, to be worth what is done once for each."""

TILES = 64
"""Where there are rows for it there are at least so many tiles, to keep as many threads busy."""

TILE_CLASSES = 1 << 17
"""Rows of more classes that do not lie side by side are copied: a tile would take more memory than that."""

LOOKED_AT_ONCE = 1 << 16
"""Elements among which the first one out of range is looked for at once."""

STREAMED_BYTES = 1 << 23
"""From inputs of this size on the outputs, which are as large, bypass the caches, which they would only flush; not
those of the kernels of few classes, which keep a core as busy as memory."""


def _load() -> SimpleNamespace:
    with _threads.loading:
        from fastloss._kernels import (
            _simd,
            bce,
            cross_entropy,
            cross_entropy_batches,
            cross_entropy_few,
            cross_entropy_pairs,
            cross_entropy_planes,
            cross_entropy_tiles,
            nll,
            pointwise,
            softmax,
        )
    of_rows = {
        "nll": nll.nll_rows,
        "pairs": cross_entropy_pairs.cross_entropy_pairs,
        "few": cross_entropy_few.cross_entropy_few,
        "softmax_few": cross_entropy_few.softmax_few,
        "batches": cross_entropy_batches.cross_entropy_batches,
        "planes": cross_entropy_planes.cross_entropy_planes,
        "tiles": cross_entropy_tiles.cross_entropy_tiles,
        "chunks": cross_entropy.cross_entropy_chunks,
        "rows": cross_entropy.cross_entropy_rows,
    }
    of_elements = {
        "binary_cross_entropy": bce.bce,
        "binary_cross_entropy_with_logits": bce.bce_with_logits,
        "mse_loss": pointwise.mse,
        "kl_div": pointwise.kl_div,
        "kl_div_of_logs": pointwise.kl_div_of_logs,
        "sigmoid": pointwise.sigmoid_of,
        "log_sigmoid": pointwise.log_sigmoid_of,
    }
    return SimpleNamespace(
        lanes=_simd.LANES, bce=bce, pointwise=pointwise, softmax=softmax, of_rows=of_rows, of_elements=of_elements
    )


@functools.cache
def _lazy() -> SimpleNamespace:
    """Return the kernels. They import Numba, which takes four times as long as NumPy, so the first call does."""
    return apart(_load)


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    interface = a.__array_interface__, b.__array_interface__
    return a.strides == b.strides and interface[0]["data"][0] == interface[1]["data"][0]


def _is_plain(out: np.ndarray) -> bool:
    """Return whether `out` is aligned and has memory of its own for each element."""
    return out.flags.aligned and (out.flags.c_contiguous or not _layout.overlaps_itself(out))


def _is_apart(out: np.ndarray, input: np.ndarray, *others: np.ndarray | None) -> bool:
    """Return whether `out` is the memory of `input` or does not overlap it, and overlaps no other operand."""
    if out is not input and np.may_share_memory(out, input) and not _same_memory(out, input):
        return False
    for other in others:  # noqa: SIM110  # `all` with a generator takes three times as long
        if other is not None and np.may_share_memory(out, other):
            return False
    return True


def _buffer(out: np.ndarray | None, input: np.ndarray, *others: np.ndarray | None) -> np.ndarray:
    """Return where to write a result: `out` where a kernel can, else a new array in the memory order of `input`."""
    if out is not None and _is_plain(out) and _is_apart(out, input, *others):
        return out
    return np.empty_like(input, subok=False)


def _delivered(buffer: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Return `out` with the contents of `buffer`, or `buffer` where there is no `out`."""
    if out is None or out is buffer:
        return buffer
    out[...] = buffer
    return out


@functools.lru_cache(256)
def _blocks(units: int, elements_per_unit: int) -> tuple[int, int]:
    """Return (units of work of a block, number of blocks)."""
    length = _threads.block_length(units, elements_per_unit)
    return length, _threads.block_count(units, length)


def _first_where(array: np.ndarray, wrong: Callable[[np.ndarray], np.ndarray]) -> tuple[Any, ...] | None:
    """Return the position of the first element that is `wrong`, None where none is any more: others may write to it."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, LOOKED_AT_ONCE):
        with np.errstate(invalid="ignore"):  # ml_dtypes warns where it compares with nan
            found = wrong(flat[start : start + LOOKED_AT_ONCE])
        if found.any():
            return np.unravel_index(start + int(found.argmax()), array.shape)
    return None


def _raise_invalid(target: np.ndarray, classes: int, ignore_index: int) -> None:
    """Raise the IndexError of the first class index that is out of range."""
    position = _first_where(target, lambda some: ((some < 0) | (some >= classes)) & (some != ignore_index))
    if position is None:
        raise IndexError(f"target has been changed during the call; a class index was none of {classes} classes")
    raise IndexError(f"target{_checks.at(position)} is {target[position]}, but there are {classes} classes")


class _Plan(NamedTuple):
    """Which kernel serves rows of some shape and strides, and how they are cut."""

    name: str
    """The kernel's, as it stands in the table of `_load`."""
    kernel: Any
    layout: _layout.Rows
    blocks: int
    """How many sums of losses there are."""
    settings: tuple[Any, ...]
    """What the kernel takes between its inputs and its outputs."""
    chunks: int = 0
    """How many a row is cut into for `cross_entropy_chunks`; no other kernel has them."""


def _plan_for(name: str, *cut: Any) -> _Plan:
    return _Plan(name, _lazy().of_rows[name], *cut)


@functools.lru_cache(256)
def _plan(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...] | None, ...],
    axis: int,
    itemsize: int,
    of_logits: bool,
    for_few: str | None,
    smoothed: bool,
) -> _Plan | None:
    """Return the plan of the table above for arrays of one shape, None where no kernel can walk them.

    `for_few` is the kernel that serves few classes: "few" for class indices, "softmax_few" without targets.
    """
    of_arrays = [of_array for of_array in strides if of_array is not None]
    of_outputs = [of_array for of_array in strides[2:] if of_array is not None]
    layout = _layout.rows(shape, of_arrays, axis)
    side_by_side = all(of_array[axis] == itemsize for of_array in of_arrays)
    if layout is None or (shape[axis] > TILE_CLASSES and not side_by_side):
        return None
    outer, classes, inner = layout.shape
    row_bytes = classes * max(itemsize, 4)
    rows, lanes = outer * inner, _lazy().lanes
    streamed = rows * classes * itemsize >= STREAMED_BYTES
    length = _threads.block_length(rows, classes)
    if not of_logits:
        return _plan_for("nll", layout, _threads.block_count(rows, length), (streamed, length))

    def rows_adjoin(some_arrays: list[tuple[int, ...]]) -> bool:
        row, step = layout.row_axis, classes * itemsize
        return outer == 1 and all(row is None or of_array[row] == step for of_array in some_arrays)

    if for_few == "few" and classes == 2 and not smoothed:
        length = -(-length // lanes) * lanes
        return _plan_for("pairs", layout, _threads.block_count(rows, length), (length,))
    if for_few and classes > 1 and row_bytes <= FEW_BYTES and side_by_side and rows_adjoin(of_arrays):
        length = -(-length // lanes) * lanes
        settings: tuple[Any, ...] = (None,) * classes, length
        if for_few == "few":
            settings = None, *settings  # the smoothing, if any, is put there
        return _plan_for(for_few, layout, _threads.block_count(rows, length), settings)
    if (
        for_few and not smoothed and side_by_side and rows_adjoin(of_outputs)
        and (BATCH_BYTES_FROM if of_outputs else BATCH_BYTES_OF_LOSS_FROM) <= row_bytes < ROW_BYTES_FROM
    ):  # fmt: skip
        length = -(-length // lanes) * lanes
        return _plan_for("batches", layout, _threads.block_count(rows, length), (streamed, length))
    if not side_by_side or row_bytes < ROW_BYTES_FROM:
        most_elements, most_rows = (TILE_ELEMENTS, TILE_ROWS) if side_by_side else (RUN_ELEMENTS, RUN_ROWS)
        most_rows = max(min(most_elements // classes, most_rows, rows // TILES) // lanes, 1) * lanes
        tiles_of_inner = -(-inner // most_rows)
        tile_rows = -(-inner // (tiles_of_inner * lanes)) * lanes
        tiles = outer * tiles_of_inner
        length = _threads.block_length(tiles, tile_rows * classes)
        adjoin = layout.row_axis is not None and all(of_array[layout.row_axis] == itemsize for of_array in of_arrays)
        name = "planes" if adjoin and classes <= PLANES else "tiles"
        return _plan_for(name, layout, _threads.block_count(tiles, length), (streamed, tile_rows, length))
    if classes >= (CHUNKS_OF_FEW_ROWS_FROM if rows < FEW_ROWS else CHUNKS_FROM):
        block = _lazy().softmax.BLOCK
        length = max(-(-classes * rows // (CHUNKS * block)), 8) * block
        return _plan_for("chunks", layout, rows, (streamed, length), -(-classes // length))
    return _plan_for("rows", layout, _threads.block_count(rows, length), (streamed, length))


def _classes_last(array: np.ndarray, axis: int) -> np.ndarray:
    """Return a contiguous array with the class axis at the end."""
    return np.ascontiguousarray(np.moveaxis(array, axis, -1))


def _plan_of(
    input: np.ndarray,
    axis: int,
    target: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    gradient: np.ndarray | None = None,
    log_softmax: np.ndarray | None = None,
    of_logits: bool = True,
    smoothed: bool = False,
) -> _Plan | None:
    """Return the plan for these arrays, None where no kernel can walk them or there is nothing to do."""
    if input.size == 0:
        return None
    strides = (
        input.strides,
        None if probabilities is None else probabilities.strides,
        None if gradient is None else gradient.strides,
        None if log_softmax is None else log_softmax.strides,
    )
    for_few = "few" if target is not None else "softmax_few" if probabilities is None else None
    return _plan(input.shape, strides, axis, input.itemsize, of_logits, for_few, smoothed)


def _run_rows(
    plan: _Plan | None,
    input: np.ndarray,
    axis: int,
    target: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    class_weight: np.ndarray | None = None,
    ignore_index: int = 0,
    keep_share: float = 1.0,
    spread: float | None = None,
    soft_mass: float = 0.0,
    scale: float = 1.0,
    mean: bool = False,
    gradient: np.ndarray | None = None,
    log_softmax: np.ndarray | None = None,
    per_row: bool = False,
    of_logits: bool = True,
) -> tuple[float, float, np.ndarray | None]:
    """Run the kernel of the `plan` for these arrays on what `cross_entropy_rows` takes.

    The input holds log-probabilities unless `of_logits`.

    Return (sum of the losses, that of the targets' weights, with `per_row` the loss of each row). The first class index
    that is out of range raises an IndexError, before anything is written.
    """
    if plan is None:
        return _run_rows_on_copies(
            input, axis, target, probabilities, class_weight, ignore_index, keep_share, spread, soft_mass, scale, mean,
            gradient, log_softmax, per_row, of_logits,
        )  # fmt: skip
    name, kernel, layout, blocks, settings, chunks = plan
    x = layout.view(input)
    loss = np.empty(layout.shape[::2], _checks.accumulator(input.dtype)) if per_row else None
    sums = np.zeros(2 * blocks + 2)
    labels = None if target is None else layout.batch(target)
    if probabilities is not None:
        probabilities = layout.view(probabilities)
    if gradient is not None:
        gradient = layout.view(gradient)
    if log_softmax is not None:
        log_softmax = layout.view(log_softmax)
    arguments: tuple[Any, ...]
    if name in ("few", "pairs", "nll"):
        if name == "few" and spread is not None:
            settings = (keep_share, spread, soft_mass), *settings[1:]
        arguments = (x, labels, class_weight, ignore_index, scale, mean, *settings, gradient, loss, sums)
    elif name == "batches":
        arguments = (x, labels, class_weight, ignore_index, scale, mean, *settings, gradient, log_softmax, loss, sums)
    elif name == "softmax_few":
        arguments = (x, *settings, gradient, log_softmax, loss)
    else:
        if name == "chunks":
            settings += np.empty((blocks, chunks, 4)), np.empty((blocks, 4))
        arguments = (
            x, labels, probabilities, class_weight, ignore_index, keep_share, spread, soft_mass, scale, mean, *settings,
            gradient, log_softmax, loss, sums,
        )  # fmt: skip
    if name == "chunks":
        units_of_phases = [chunks * blocks, blocks, chunks * blocks]
        if gradient is None and log_softmax is None:
            del units_of_phases[2]
        for phase, units in enumerate(units_of_phases):
            elements = chunks * blocks if phase == 1 else input.size  # of the chunks' statistics
            _threads.run(kernel, elements, units, phase, *arguments)
            if sums[-1]:
                break
    else:
        _threads.run(kernel, input.size, _threads.threads_for(input.size) if name == "rows" else blocks, *arguments)
    numbers = sums.tolist()
    if numbers[-1]:
        assert target is not None
        _raise_invalid(target, input.shape[axis], ignore_index)
    losses = None if loss is None else layout.unbatch(loss)
    if blocks == 1:
        return 0.0 + numbers[0], numbers[1], losses  # no -0.0, as in the sum of several
    return sum(numbers[:blocks]), sum(numbers[blocks:-2]), losses


def _run_rows_on_copies(
    input: np.ndarray,
    axis: int,
    target: np.ndarray | None,
    probabilities: np.ndarray | None,
    class_weight: np.ndarray | None,
    ignore_index: int,
    keep_share: float,
    spread: float | None,
    soft_mass: float,
    scale: float,
    mean: bool,
    gradient: np.ndarray | None,
    log_softmax: np.ndarray | None,
    per_row: bool,
    of_logits: bool,
) -> tuple[float, float, np.ndarray | None]:
    """Do what `_run_rows` does, on copies with the classes side by side; where there are no elements, nothing."""
    if input.size == 0:
        shape = input.shape[:axis] + input.shape[axis + 1 :]
        if target is not None and (target != ignore_index).any():  # of no classes
            _raise_invalid(target, 0, ignore_index)
        return 0.0, 0.0, np.zeros(shape) if per_row else None
    moved = _classes_last(input, axis)
    soft = None if probabilities is None else _classes_last(probabilities, axis)
    outputs = [(out, None if out is None else np.empty_like(moved)) for out in (gradient, log_softmax)]
    last, copies = input.ndim - 1, (outputs[0][1], outputs[1][1])
    plan = _plan_of(moved, last, target, soft, *copies, of_logits, spread is not None)
    result = _run_rows(
        plan, moved, last, target, soft, class_weight, ignore_index, keep_share, spread, soft_mass, scale, mean,
        *copies, per_row, of_logits,
    )  # fmt: skip
    for out, copy in outputs:
        if out is not None and copy is not None:
            out[...] = np.moveaxis(copy, -1, axis)
    return result


ClassLoss = Callable[..., tuple[Any, np.ndarray | None]]
"""Computes (loss, gradient times `upstream` or None) of (input, target, weight, out, upstream=1.0).

The loss is a float, or with the reduction "none" an array in the accumulator of the input's dtype.
"""


def class_loss(
    input: np.ndarray,
    target: np.ndarray | None,
    probabilities: np.ndarray | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    return_grad: bool,
    out: np.ndarray | None,
    of_logits: bool = True,
) -> ClassLoss:
    """Return what computes a loss for indices `target` or, if that is None, `probabilities`.

    It is the cross-entropy of logits or, unless `of_logits`, the negative log-likelihood of log-probabilities. What is
    returned can be called with any arrays of the dtypes, shapes, strides and flags of these; it keeps none of them.
    """
    axis = _checks.class_axis(input)
    classes, accumulator = input.shape[axis], _checks.accumulator(input.dtype)
    indexed, mean, per_row = target is not None, reduction == "mean", reduction == "none"
    spread = None if indexed and label_smoothing == 0.0 else label_smoothing / max(classes, 1)
    rows = float(math.prod(input.shape[:axis] + input.shape[axis + 1 :])) if mean and not indexed else 1.0
    mean_of_weights, keep_share = mean and indexed, 1.0 - label_smoothing
    out_is_plain = out is not None and _is_plain(out)
    gradient_like = None
    if return_grad:
        gradient_like = out if out_is_plain else np.empty_like(input, subok=False)
    plan = _plan_of(input, axis, target, probabilities, gradient_like, None, of_logits, spread is not None)
    del input, target, probabilities, out, gradient_like

    def call(
        input: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray | None,
        out: np.ndarray | None,
        upstream: float = 1.0,
    ) -> tuple[Any, np.ndarray | None]:
        gradient = None
        if return_grad:
            if out is None:
                gradient = np.empty_like(input, subok=False)
            elif out_is_plain and _is_apart(out, input, target, weight):
                gradient = out
            else:
                apart = class_loss(
                    input, target if indexed else None, None if indexed else target, ignore_index, label_smoothing,
                    reduction, True, None, of_logits,
                )  # fmt: skip
                loss, gradient = apart(input, target, weight, None, upstream)
                assert gradient is not None
                return loss, _delivered(gradient, out)
        if weight is not None and not weight.flags.writeable:
            weight = _layout.writable(weight)
        soft_mass = 0.0
        if indexed and spread is not None:
            soft_mass = _reduction.soft_mass(spread, weight, classes, accumulator)
        loss_sum, weight_sum, losses = _run_rows(
            plan, input, axis, target if indexed else None, None if indexed else target, weight, ignore_index,
            keep_share, spread, soft_mass, upstream if indexed else _reduction.ratio(upstream, rows), mean_of_weights,
            gradient, None, per_row, of_logits,
        )  # fmt: skip
        if losses is not None:
            return losses, gradient
        return _reduction.ratio(loss_sum, weight_sum if mean_of_weights else rows), gradient

    return call


def log_softmax(input: np.ndarray, axis: int, out: np.ndarray | None) -> np.ndarray:
    buffer = _buffer(out, input)
    _run_rows(_plan_of(input, axis, log_softmax=buffer), input, axis, log_softmax=buffer)
    return _delivered(buffer, out)


def softmax(input: np.ndarray, axis: int, out: np.ndarray | None) -> np.ndarray:
    """Return the softmax, which is the gradient of the log-sum-exp."""
    buffer = _buffer(out, input)
    _run_rows(_plan_of(input, axis, gradient=buffer), input, axis, gradient=buffer)
    return _delivered(buffer, out)


def logsumexp(input: np.ndarray, axis: int, out: np.ndarray | None) -> Any:
    losses = _run_rows(_plan_of(input, axis), input, axis, per_row=True)[2]
    assert losses is not None
    if input.shape[axis] == 0:
        losses[...] = -np.inf
    unclear = np.isnan(losses)
    with np.errstate(all="ignore"):
        if unclear.any():  # the maximum is nan or infinite, and is the result; its difference from itself is nan
            losses[unclear] = np.max(np.moveaxis(input, axis, -1)[unclear], axis=-1)
        result = losses.astype(input.dtype, copy=False)
    return result[()] if out is None else _delivered(result, out)


def element_loss(
    name: str,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    pos_weight: np.ndarray | None,
    reduction: str,
    return_grad: bool,
    out: np.ndarray | None,
    upstream: float = 1.0,
    out_is_new: bool = False,
) -> tuple[Any, np.ndarray | None]:
    """Return (loss, gradient times `upstream` or None) of the kernel `name`.

    All arrays are of the input's shape, the weights in its accumulator and the others in its dtype. The loss is a float
    or, with the reduction "none", an array of that dtype. Probabilities outside [0, 1] raise a ValueError; nothing has
    been written to `out` then, unless `out_is_new`.
    """
    batch = input.shape[0] if input.ndim else 1
    divides = weight if name == "mse_loss" else None  # torch's other means are over the elements whatever they weigh
    divisor = _reduction.denominator(reduction, divides, input.size, batch)
    gradient = _buffer(out, input, target, weight, pos_weight) if return_grad else None
    losses = np.empty_like(input, subok=False) if reduction == "none" else None
    scale = _reduction.ratio(upstream, divisor)
    check_first = gradient is not None and gradient is out and not out_is_new
    if name == "binary_cross_entropy" and check_first:
        _check_probabilities(input, target)
    loss_sum = _run_elements(name, input, (target, weight, pos_weight), scale, losses, gradient)
    loss = _reduction.ratio(loss_sum, divisor)
    if name == "binary_cross_entropy" and not check_first and math.isnan(loss):
        _check_probabilities(input, target)
    grad = None if gradient is None else _delivered(gradient, out)
    return loss if losses is None else losses, grad


def element_function(name: str, input: np.ndarray, out: np.ndarray | None) -> Any:
    """Return the values of the kernel `name` at `input`."""
    buffer = _buffer(out, input)
    _run_elements(name, input, (None, None, None), 1.0, buffer, None)
    return _delivered(buffer, out) if out is not None else buffer[()]


def _run_elements(
    name: str,
    input: np.ndarray,
    operands: tuple[np.ndarray | None, ...],
    scale: float,
    value: np.ndarray | None,
    gradient: np.ndarray | None,
) -> float:
    """Run the kernel `name` of elements; return the sum of its values."""
    if input.size == 0:
        return 0.0
    k = _lazy()
    dense_gradient, dense_value = _dense(gradient, input), _dense(value, input)
    views = _layout.elements(input, operands, (dense_value, dense_gradient))
    streamed = input.nbytes >= STREAMED_BYTES
    total = 0.0
    for x, others, outputs in _layout.with_joined_rows(*views, k.pointwise.PIECE):
        length, count = _unit_blocks(x.shape)
        sums = np.empty(count)
        _threads.run(k.of_elements[name], x.size, count, x, *others, scale, streamed, length, *outputs, sums)
        total += sum(sums.tolist())  # floats of Python, that do not warn of inf - inf
    for dense, output in ((dense_value, value), (dense_gradient, gradient)):
        if dense is not None:
            _delivered(dense, output)
    return total


def _dense(output: np.ndarray | None, input: np.ndarray) -> np.ndarray | None:
    """Return `output`, or another buffer where no kernel can walk it along with `input`."""
    if output is None or _layout.is_walkable_like(output, input):
        return output
    return np.empty_like(input, subok=False)


def _unit_blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (units of work of a block, number of blocks) of an (outer, middle, inner) array."""
    outer, middle, inner = shape
    piece = _lazy().pointwise.PIECE
    return _blocks(outer * middle * -(-inner // piece), min(inner, piece))


def _check_probabilities(input: np.ndarray, target: np.ndarray) -> None:
    """Raise the ValueError of the first element that is not in [0, 1]."""
    if input.size == 0:
        return
    k = _lazy()
    # Each by itself where they would have to be copied to be walked together.
    pairs = [(input, target)] if input.strides == target.strides else [(input, input), (target, target)]
    for pair in pairs:
        x, (other,), _ = _layout.elements(pair[0], pair[1:], ())
        length, count = _unit_blocks(x.shape)
        outside = np.empty(count)
        _threads.run(k.bce.count_outside_unit, x.size, count, x, other, length, outside)
        if outside.any():
            break
    else:
        return
    for name, array in (("input", input), ("target", target)):
        position = _first_where(array, lambda some: ~((some >= 0) & (some <= 1)))
        if position is not None:
            raise ValueError(f"{name}{_checks.at(position)} is {array[position]}; it must lie between 0 and 1")
    raise ValueError("input or target has been changed during the call; an element was not between 0 and 1")
