"""Cross-entropy, log-sum-exp and softmax of rows that lie side by side, class by class, as the pixels of images do.

They are walked in tiles, like those of `cross_entropy_tiles`, which does the arithmetic. Beside each vector of
exponentials a vector of the next tile is copied from memory and one of the previous tile's results is written, so that
memory and arithmetic are busy at once: that takes two thirds of the time of one after the other. A tile is copied class
by class, since the same row of many classes can lie a power of two apart, where a cache holds few of them at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from fastloss._kernels._blocks import distributed
from fastloss._kernels._jit import inlined, inlined_by_type, kernel, shared
from fastloss._kernels._memory import (
    advance,
    either,
    elements_to_line,
    empty_accumulators,
    fence,
    keep,
    load,
    load_first,
    pointer,
    prefetch,
    store,
    zeros_like,
)
from fastloss._kernels._simd import LANES, sum_lanes, widen
from fastloss._kernels.cross_entropy_tiles import losses_of_tile, stage_soft_target, tile_like, write_run
from fastloss._kernels.softmax import lines_of, write_lanes
from fastloss._kernels.targets import scale_of_rows, surveyed

AHEAD = 2
"""Classes by which the logits to copy are asked for."""


class _Beside(NamedTuple):
    """What is done beside the arithmetic of a tile: how the next tile is copied, and the previous one written."""

    class_step: int
    to_copy: int
    """Rows to copy, a multiple of `LANES`."""
    out_step: int
    to_write: int
    """Rows to write."""
    streaming: bool
    room: int
    """Elements from class to class of a tile."""
    to_next: int
    """Elements from a class behind the last to that which is copied after it, in the tile after the next."""


class _Copying(NamedTuple):
    """Pointers to the vector to copy next and to its place, the rows and classes left, and how far to look ahead."""

    source: Any
    tile: Any
    rows: int
    classes: int
    ahead: int


class _Writing(NamedTuple):
    """Pointers to the vector to write next and to its place, its row of those up to `last`, and the classes left."""

    tile: Any
    out: Any
    row: int
    last: int
    classes: int


@inlined_by_type
def _step_of_classes(array):
    """Return how many elements lead from class to class, 0 where there is no array."""
    if isinstance(array, types.NoneType):
        return lambda array: 0
    return lambda array: array.strides[1] // array.itemsize


@inlined
def _ahead(beside, classes):
    """Return how many elements ahead to ask for logits, with so many `classes` left to copy."""
    return AHEAD * beside.class_step + (beside.to_next if classes <= AHEAD else 0)


@inlined
def _copied(beside, copying):
    """Copy a vector of the next tile, if any is left; return what is left then."""
    source, tile, rows, classes, ahead = copying
    if classes > 0:
        store(tile, 0, load(source, 0))
        prefetch(source, ahead)
        source, tile, rows = advance(source, LANES), advance(tile, LANES), rows - LANES
        if rows == 0:
            rows, classes = beside.to_copy, classes - 1
            source, tile = advance(source, beside.class_step - rows), advance(tile, beside.room - rows)
            ahead = _ahead(beside, classes)
    return _Copying(source, tile, rows, classes, ahead)


@inlined
def _writing(beside, tile, out, classes):
    """Write what precedes the whole vectors of the class at `tile`; return what is left to write then."""
    first, last = 0, beside.to_write // LANES * LANES
    if out is not None and beside.streaming and classes > 0:
        first, last = lines_of(out, 0, beside.to_write, True)
        if first > 0:
            write_run(tile, out, first, False)
    return _Writing(advance(tile, first), advance(out, first), first, last, classes)


@inlined
def _written(beside, out, writing):
    """Write a vector of the previous tile to memory, if there is an `out` and any is left; return what is left then."""
    if out is not None and writing.classes > 0:
        tile, out, row, last, classes = writing
        if row < last:
            write_lanes(out, 0, load(tile, 0), LANES, beside.streaming)
            tile, out, row = advance(tile, LANES), advance(out, LANES), row + LANES
        writing = _Writing(tile, out, row, last, classes)
        if row >= last:
            if row < beside.to_write:
                write_run(tile, out, beside.to_write - row, False)
            writing = _writing(
                beside, advance(tile, beside.room - row), advance(out, beside.out_step - row), classes - 1
            )
    return writing


@inlined
def _do_beside(beside, state, r, c):
    copying, writing = state
    return _copied(beside, copying), _written(beside, writing.out, writing)


@inlined
def _finished(beside, state):
    """Do what is left to do beside a tile."""
    while state[0].classes > 0 or state[1].classes > 0:
        state = _do_beside(beside, state, 0, 0)


@shared
def _copy_rest(source, class_step, whole, count, tile, room, classes):
    """Copy the rows [whole, count), fewer than `LANES`, of all classes to a tile."""
    if whole < count:
        for c in range(classes):
            store(tile, c * room + whole, load_first(source, c * class_step + whole, count - whole, 0.0))


@inlined_by_type
def _lead(out, streaming):
    """Return by how many rows the tiles, but the first, begin earlier to begin with whole lines of `out`, where its
    classes are whole lines apart (of halves with whole vectors).

    So the order of the losses' sum, and its last bits, depend on where large outputs lie.
    """
    if isinstance(out, types.NoneType):
        return lambda out, streaming: 0
    return lambda out, streaming: -elements_to_line(out) & (LANES - 1) if streaming else 0


@kernel
def cross_entropy_planes(
    launcher, blocks, block, x, target, probabilities, class_weight, ignore_index, keep_share, spread, soft_mass, scale,
    mean, streaming, tile_rows, tiles_per_block, out_gradient, out_log_softmax, out_loss, out_sums,
):  # fmt: skip
    """Rows that are contiguous in each class: fills the `out_*` that are not None, `out_log_softmax` without a target.

    The arguments are those of `cross_entropy_tiles`, but the axis of the rows, the last one, is contiguous in all of
    `x`, `probabilities`, `out_gradient` and `out_log_softmax`. Each thread needs three tiles of memory, and one more
    with `spread`.
    """
    classes, inner = x.shape[1], x.shape[2]
    if not surveyed(launcher, block, target, classes, ignore_index, class_weight, out_sums):
        return
    if distributed(launcher, blocks, block):
        return
    scale = scale_of_rows(scale, mean, out_sums)
    out_elements = either(out_gradient, out_log_softmax)
    class_step, out_step = _step_of_classes(x), _step_of_classes(out_elements)
    room = tile_rows + LANES
    size = classes * room
    tile_array = empty_accumulators(x, 3 * size + LANES)
    tile = pointer(tile_array, (0,))
    tile = advance(tile, elements_to_line(tile))
    next_tile, previous_tile = advance(tile, size), advance(tile, 2 * size)
    soft_array = tile_like(x, spread, size)
    soft_tile = pointer(soft_array, (0,))
    loss_sum = widen(zeros_like(tile))
    tiles_of_inner = (inner + tile_rows - 1) // tile_rows
    first = block * tiles_per_block
    last = min(first + tiles_per_block, x.shape[0] * tiles_of_inner)
    o, start, count, to_write = 0, 0, 0, 0
    source, out = pointer(x, (0, 0, 0)), pointer(out_elements, (0, 0, 0))
    for number in range(first - 1, last + 1):
        # The tile `number` is computed; in the first round there is none yet, in the last none any more.
        next_o, next_start, next_count = 0, 0, 0
        if number + 1 < last:
            next_o = (number + 1) // tiles_of_inner
            of_inner = number + 1 - next_o * tiles_of_inner
            lead = _lead(pointer(out_elements, (next_o, 0, 0)), streaming)
            next_start = max(of_inner * tile_rows - lead, 0)
            stop = inner if of_inner == tiles_of_inner - 1 else (of_inner + 1) * tile_rows - lead
            next_count = stop - next_start
            source = pointer(x, (next_o, 0, next_start))
        to_copy = next_count // LANES * LANES
        beside = _Beside(class_step, to_copy, out_step, to_write, streaming, room, tile_rows - classes * class_step)
        to_do = classes if to_copy > 0 else 0
        copying = _Copying(source, next_tile, to_copy, to_do, _ahead(beside, to_do))
        writing = _writing(beside, previous_tile, out, classes if to_write > 0 else 0)
        state = copying, writing
        if count > 0:
            if spread is not None:
                stage_soft_target(
                    probabilities, class_weight, keep_share, spread, o, start, count, classes, soft_tile, room
                )
            losses, state = losses_of_tile(
                tile, soft_tile, room, count, o, start, classes, target, class_weight, ignore_index, keep_share,
                spread, soft_mass, scale, out_gradient, out_log_softmax, out_loss, _do_beside, beside, state,
            )  # fmt: skip
            loss_sum = loss_sum + losses
        _finished(beside, state)
        _copy_rest(source, class_step, to_copy, next_count, next_tile, room, classes)
        out = pointer(out_elements, (o, 0, start))
        to_write = count if out_elements is not None else 0
        o, start, count = next_o, next_start, next_count
        tile, next_tile, previous_tile = next_tile, previous_tile, tile
    keep(tile_array)
    keep(soft_array)
    if streaming:
        fence()
    out_sums[block] = sum_lanes(loss_sum)
