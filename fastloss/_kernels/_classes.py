"""A vector of `LANES` rows for each of few classes: tuples whose length the compiler knows.

A tuple stays in registers where there are enough. Rows lie side by side in memory, as do the classes of a row; those
that do not, or are too few for a vector, are copied to and fro.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastloss._kernels._elements import accumulator, lane_list
from fastloss._kernels._jit import inlined, shared
from fastloss._kernels._memory import SQUARE, load_one, load_vector, store_vector, transposed, zeros_like
from fastloss._kernels._simd import LANES, Vector, select

AHEAD = 1024
"""Elements by which the kernels of few classes ask for logits before they read them: further than CPUs do themselves,
which takes a tenth off the time where they come from memory."""

ROWS = 16 * LANES
"""Rows whose losses are added in their own precision, and by one logarithm, before their sum is added in float64."""

PAIR = (None, None)
"""What stands for two classes."""

FEWEST_IN_SQUARES = 5
"""From so many classes on squares are transposed; the rows of fewer are shuffled as one long vector."""


@intrinsic
def unrolled(typingctx, step, state, vectors, given):
    """Return (state, vectors) after state, vectors[c] = step(c, state, vectors[c], given) for each class c in turn.

    The code of `step`, a compiled function, is there once for each class.
    """
    call = typingctx.resolve_function_type(step, (types.int64, state, vectors.dtype, given), {})
    result = types.Tuple((state, vectors))

    def generate(context, builder, signature, arguments):
        function = context.get_function(step, call)
        _, state, vectors_before, given = arguments
        after = []
        for c, vector in enumerate(cgutils.unpack_tuple(builder, vectors_before)):
            pair = function(builder, (ir.Constant(ir.IntType(64), c), state, vector, given))
            state = builder.extract_value(pair, 0)
            after.append(builder.extract_value(pair, 1))
        return context.make_tuple(builder, result, [state, context.make_tuple(builder, vectors, after)])

    return result(step, state, vectors, given), generate


@inlined
def _where_label(c, chosen, vector, given):
    table, label = given
    return select(label == c, load_one(table, c), chosen), vector


@inlined
def lookup_few(table, label, vectors):
    """Return the vector of the elements table[label[lane]], 0 where the label is negative.

    There is a class for each of `vectors`, of which nothing else matters. To compare the labels with each class is
    faster than `lookup`, which goes by lanes.
    """
    return unrolled(_where_label, zeros_like(table), vectors, (table, label))[0]


def _squares(classes):
    """Return the first classes of the squares that hold `classes` of them; the last overlaps the one before."""
    return [max(min(first, classes - SQUARE), 0) for first in range(0, classes, SQUARE)]


def _width(row, classes):
    """Return how many elements of the row of a square to move: past a short one, but not past the last row."""
    return classes if row == LANES - 1 and classes < SQUARE else SQUARE


def _offset(row, classes, first):
    return ir.Constant(ir.IntType(64), row * classes + first)


@intrinsic
def load_classes(typingctx, source, classes):
    """Return the vectors of `LANES` rows from the pointer `source` on, one for each entry of the tuple `classes`."""
    dtype, number = source.dtype, len(classes)
    result = types.UniTuple(Vector(accumulator(dtype)), number)

    def generate(context, builder, signature, arguments):
        source = arguments[0]
        if number < FEWEST_IN_SQUARES:
            rows = load_vector(builder, source, _offset(0, number, 0), dtype, LANES * number)
            lanes = [lane_list(range(c, LANES * number, number)) for c in range(number)]
            return context.make_tuple(builder, result, [builder.shuffle_vector(rows, rows, each) for each in lanes])
        vectors = [None] * number
        for first in _squares(number):
            halves = []
            for top in range(0, LANES, SQUARE):
                rows = []
                for row in range(top, top + SQUARE):
                    width = _width(row, number)
                    part = load_vector(builder, source, _offset(row, number, first), dtype, width)
                    lanes = lane_list(min(lane, width - 1) for lane in range(SQUARE))
                    rows.append(builder.shuffle_vector(part, part, lanes))
                halves.append(transposed(builder, rows))
            for c in range(first, min(first + SQUARE, number)):
                top, bottom = (half[c - first] for half in halves)
                vectors[c] = builder.shuffle_vector(top, bottom, lane_list(range(LANES)))
        return context.make_tuple(builder, result, vectors)

    return result(source, classes), generate


@intrinsic
def store_classes(typingctx, target, vectors):
    """Write `LANES` rows to the pointer `target` from `vectors`, one for each class."""
    dtype, number = target.dtype, len(vectors)

    def generate(context, builder, signature, arguments):
        target = arguments[0]
        vectors = cgutils.unpack_tuple(builder, arguments[1])
        if number < FEWEST_IN_SQUARES:
            rows = _interleaved(builder, vectors)
            store_vector(builder, rows, target, _offset(0, number, 0), dtype)
            return context.get_dummy_value()
        for top in range(0, LANES, SQUARE):
            of_squares = []
            for first in _squares(number):
                columns = [vectors[min(first + column, number - 1)] for column in range(SQUARE)]
                part = lane_list(range(top, top + SQUARE))
                of_squares.append(transposed(builder, [builder.shuffle_vector(each, each, part) for each in columns]))
            for row in range(top, top + SQUARE):  # what is written past a short row is written over with the next
                for first, rows in zip(_squares(number), of_squares, strict=True):
                    lanes = lane_list(range(_width(row, number)))
                    part = builder.shuffle_vector(rows[row - top], rows[row - top], lanes)
                    store_vector(builder, part, target, _offset(row, number, first), dtype)
        return context.get_dummy_value()

    return types.void(target, vectors), generate


def _interleaved(builder, vectors):
    """Return the lanes of all `vectors` in turn as one long vector."""
    number, joined = len(vectors), vectors
    while len(joined) > 1:  # pairs of equal length; the last vector stands in where there is none
        pairs = [(joined[i], joined[min(i + 1, len(joined) - 1)]) for i in range(0, len(joined), 2)]
        joined = [builder.shuffle_vector(a, b, lane_list(range(a.type.count + b.type.count))) for a, b in pairs]
    lanes = [row + c * LANES for row in range(LANES) for c in range(number)]
    return builder.shuffle_vector(joined[0], joined[0], lane_list(lanes))


@shared
def take_rows(x, o, first, count, group):
    """Copy the rows [first, first + count) of x[o] to the array `group`, the classes of each side by side."""
    classes = x.shape[1]
    for row in range(count):
        for c in range(classes):
            group[row * classes + c] = x[o, c, first + row]


@shared
def give_rows(group, out, o, first, count):
    """Copy `count` rows from the array `group` to those from `first` on of out[o], where there is an `out`."""
    if out is not None:
        classes = out.shape[1]
        for row in range(count):
            for c in range(classes):
                out[o, c, first + row] = group[row * classes + c]
