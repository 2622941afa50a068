"""Vectors from memory and back: through a pointer to an element (`pointer`) and offsets in elements.

Nothing is checked here. Elements widen to their accumulator on loads and narrow on stores.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastloss._kernels._elements import accumulator, lane_list, narrowed, stored, widened
from fastloss._kernels._jit import inlined_by_type
from fastloss._kernels._simd import LANES, Vector, added, convert, larger, llvm_type, splat_scalar

CACHE_LINE = 64
"""Bytes of a cache line, of x86-64 and of most AArch64."""

PAGE = 4096
"""Bytes after which addresses look alike: loads wait for earlier stores whose lowest 12 bits match (AMD, Software
Optimization Guide for AMD64 Processors, 25112, section 5.5; Intel calls it 4K aliasing)."""

SQUARE = 8
"""Rows and columns of the blocks that are transposed: they fit in 16 registers of 256 bits."""


@intrinsic
def pointer(typingctx, array, indices):
    """Return the pointer to the element of `array` at the tuple `indices`, which may be one past the end.

    The pointer into an absent array, None, is None.
    """
    if isinstance(array, types.NoneType):
        return types.none(array, indices), lambda context, *_: context.get_dummy_value()

    def generate(context, builder, signature, arguments):
        structure = context.make_array(array)(context, builder, arguments[0])
        strides = cgutils.unpack_tuple(builder, structure.strides, array.ndim)
        offset = ir.Constant(ir.IntType(64), 0)
        for position, stride in enumerate(strides):
            index = builder.extract_value(arguments[1], position)
            index = context.cast(builder, index, indices[position], types.int64)
            offset = builder.add(offset, builder.mul(index, stride))
        return cgutils.pointer_add(builder, structure.data, offset, structure.data.type)

    return types.CPointer(array.dtype)(array, indices), generate


@intrinsic
def advance(typingctx, source, count):
    """Return the pointer `count` elements behind `source`, None for None."""
    if isinstance(source, types.NoneType):
        return types.none(source, count), lambda context, *_: context.get_dummy_value()

    def generate(context, builder, signature, arguments):
        return _element_address(context, builder, signature, arguments)

    return source(source, count), generate


@intrinsic
def itemsize_of(typingctx, source):
    """Return the bytes of an element of what `source` points to."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), source.dtype.bitwidth // 8)

    return types.int64(source), generate


@intrinsic
def elements_of_line(typingctx, target):
    """Return how many elements of what `target` points to fill whole cache lines and whole vectors."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), max(CACHE_LINE // (target.dtype.bitwidth // 8), LANES))

    return types.int64(target), generate


@intrinsic
def elements_to_line(typingctx, target):
    """Return how many elements lie before the first cache line that begins at or behind `target`."""

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(64)
        misaligned = builder.neg(builder.ptrtoint(arguments[0], integer))
        misaligned = builder.and_(misaligned, ir.Constant(integer, CACHE_LINE - 1))
        return builder.udiv(misaligned, ir.Constant(integer, target.dtype.bitwidth // 8))

    return types.int64(target), generate


@intrinsic
def ahead(typingctx, a, b):
    """Return by how many bytes the pointer `a` lies ahead of `b` if both lay in one page: modulo `PAGE`."""

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(64)
        a, b = (builder.ptrtoint(argument, integer) for argument in arguments)
        return builder.and_(builder.sub(a, b), ir.Constant(integer, PAGE - 1))

    return types.int64(a, b), generate


def _element_address(context, builder, signature, arguments):
    """Return the address of element `arguments[1]` behind the pointer `arguments[0]`."""
    offset = context.cast(builder, arguments[1], signature.args[1], types.int64)
    return cgutils.gep_inbounds(builder, arguments[0], offset)


@intrinsic
def load(typingctx, source, offset):
    """Return the `LANES` elements from `source[offset]` on, as a vector of their accumulator."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        address = builder.bitcast(address, stored(dtype).as_pointer())
        return widened(builder, builder.load(address, align=dtype.bitwidth // 8), dtype)

    return Vector(accumulator(dtype))(source, offset), generate


@intrinsic
def load_first(typingctx, source, offset, count, fill):
    """Return the vector of the `count` < LANES elements from `source[offset]` on; the other lanes hold `fill`.

    It does without LLVM's masked loads: LLVM 22 may take their mask away when it folds them into a multiply-add whose
    result is selected by the same mask, and then reads past the end.
    """
    dtype = source.dtype
    vector = Vector(accumulator(dtype))

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        count = context.cast(builder, arguments[2], signature.args[2], types.int64)
        slot = cgutils.alloca_once_value(builder, ir.Constant(stored(dtype), None))
        for size in _powers_below_lanes():  # from the end of the elements: each part moves those before it up
            with builder.if_then(_has_bit(builder, count, size)):
                before = builder.and_(count, ir.Constant(count.type, -2 * size))
                place = cgutils.gep_inbounds(builder, address, before)
                part = builder.bitcast(place, stored(dtype, size).as_pointer())
                part = builder.load(part, align=dtype.bitwidth // 8)
                lanes = [min(lane, size - 1) for lane in range(LANES)]
                part = builder.shuffle_vector(part, part, lane_list(lanes))
                moved = [lane if lane < size else LANES + lane - size for lane in range(LANES)]
                builder.store(builder.shuffle_vector(part, builder.load(slot), lane_list(moved)), slot)
        value = widened(builder, builder.load(slot), dtype)
        lanes = ir.Constant(ir.VectorType(count.type, LANES), list(range(LANES)))
        mask = builder.icmp_signed("<", lanes, splat_scalar(builder, count))
        return builder.select(mask, value, convert(context, builder, arguments[3], signature.args[3], vector))

    return vector(source, offset, count, fill), generate


@intrinsic
def store_first(typingctx, target, offset, vector, count):
    """Write the first `count` < LANES lanes of `vector` to the elements from `target[offset]` on."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        value = narrowed(builder, arguments[2], dtype)
        count = context.cast(builder, arguments[3], signature.args[3], types.int64)
        slot = cgutils.alloca_once_value(builder, value)
        for size in reversed(_powers_below_lanes()):
            with builder.if_then(_has_bit(builder, count, size)):
                value = builder.load(slot)
                done = builder.and_(count, ir.Constant(count.type, -2 * size))
                part = builder.shuffle_vector(value, value, lane_list(range(size)))
                place = cgutils.gep_inbounds(builder, address, done)
                builder.store(part, builder.bitcast(place, part.type.as_pointer()), align=dtype.bitwidth // 8)
                rest = [min(lane + size, LANES - 1) for lane in range(LANES)]
                builder.store(builder.shuffle_vector(value, value, lane_list(rest)), slot)
        return context.get_dummy_value()

    return types.void(target, offset, vector, count), generate


def _powers_below_lanes():
    return [1 << bit for bit in range(LANES.bit_length() - 1)]


def _has_bit(builder, count, bit):
    return builder.icmp_signed("!=", builder.and_(count, ir.Constant(count.type, bit)), ir.Constant(count.type, 0))


@intrinsic
def load_one(typingctx, source, offset):
    """Return the element `source[offset]`, a scalar of its accumulator."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        one = builder.bitcast(address, stored(dtype, 1).as_pointer())
        vector = widened(builder, builder.load(one, align=dtype.bitwidth // 8), dtype)
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return accumulator(dtype)(source, offset), generate


def _prefetch(to_write):
    """Return the intrinsic that asks for the cache line of an element."""

    @intrinsic
    def function(typingctx, source, offset):
        def generate(context, builder, signature, arguments):
            address = _element_address(context, builder, signature, arguments)
            address = builder.bitcast(address, cgutils.voidptr_t)
            integer = ir.IntType(32)
            function_type = ir.FunctionType(ir.VoidType(), [address.type, integer, integer, integer])
            callee = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
            keep_in_all_caches, data = 3, 1
            flags = (int(to_write), keep_in_all_caches, data)
            builder.call(callee, [address, *(ir.Constant(integer, flag) for flag in flags)])
            return context.get_dummy_value()

        return types.void(source, offset), generate

    return function


prefetch = _prefetch(to_write=False)
"""Ask for the cache line of `source[offset]`, which need not be readable."""

prefetch_to_write = _prefetch(to_write=True)
"""Ask for the cache line of `target[offset]` before an ordinary store needs it, which would hold up those behind it."""


@intrinsic
def store(typingctx, target, offset, vector):
    """Write `vector` to the `LANES` elements from `target[offset]` on."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        address = builder.bitcast(address, stored(dtype).as_pointer())
        builder.store(narrowed(builder, arguments[2], dtype), address, align=dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, offset, vector), generate


@intrinsic
def put(typingctx, target, offset, number):
    """Write the float `number` to the element `target[offset]`."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        vector = convert(context, builder, arguments[2], number, Vector(accumulator(dtype)))
        value = builder.extract_element(narrowed(builder, vector, dtype), ir.Constant(ir.IntType(32), 0))
        builder.store(value, address)
        return context.get_dummy_value()

    return types.void(target, offset, number), generate


@intrinsic
def stream(typingctx, target, offset, vector):
    """Write `vector` past the caches to the aligned elements from `target[offset]` on; a fence must follow."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        value = narrowed(builder, arguments[2], dtype)
        _stream(builder, value, builder.bitcast(address, value.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(target, offset, vector), generate


def _stream(builder, value, address):
    bits = value.type.count * (
        64 if value.type.element == ir.DoubleType() else getattr(value.type.element, "width", 32)
    )
    instruction = builder.store(value, address, align=min(bits // 8, CACHE_LINE))
    instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))


@intrinsic
def fence(typingctx):
    """Order the streamed stores before what this thread writes next."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def gather(typingctx, source, offset, step, count):
    """Return the vector of the elements `source[offset + lane * step]`; lanes from `count` on repeat the last."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        step, count = (context.cast(builder, arguments[i], signature.args[i], types.int64) for i in (2, 3))
        address = _element_address(context, builder, signature, arguments)
        value = _gathered(builder, address, step, count, dtype)
        return widened(builder, value, dtype)

    return Vector(accumulator(dtype))(source, offset, step, count), generate


@intrinsic
def scatter(typingctx, target, offset, step, vector, count):
    """Write the first `count` lanes of `vector` to the elements `target[offset + lane * step]`."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        # Lane by lane under a branch each: AMD's masked store takes longer, and LLVM has none for 16 bits.
        address = _element_address(context, builder, signature, arguments)
        step = context.cast(builder, arguments[2], signature.args[2], types.int64)
        value = narrowed(builder, arguments[3], dtype)
        count = context.cast(builder, arguments[4], signature.args[4], types.int64)
        for lane in range(LANES):
            number = ir.Constant(count.type, lane)
            with builder.if_then(builder.icmp_signed("<", number, count)):
                element = builder.extract_element(value, ir.Constant(ir.IntType(32), lane))
                builder.store(element, cgutils.gep_inbounds(builder, address, builder.mul(number, step)))
        return context.get_dummy_value()

    return types.void(target, offset, step, vector, count), generate


@intrinsic
def transpose(typingctx, source, source_step, target, target_step):
    """Copy the `SQUARE` x `SQUARE` block at `source` to `target` transposed; the steps lead from row to row."""

    def generate(context, builder, signature, arguments):
        source_step, target_step = (context.cast(builder, arguments[i], signature.args[i], types.int64) for i in (1, 3))
        rows = []
        for row in range(SQUARE):
            offset = builder.mul(ir.Constant(source_step.type, row), source_step)
            rows.append(load_vector(builder, arguments[0], offset, source.dtype, SQUARE))
        for row, column in enumerate(transposed(builder, rows)):
            offset = builder.mul(ir.Constant(target_step.type, row), target_step)
            store_vector(builder, column, arguments[2], offset, target.dtype)
        return context.get_dummy_value()

    return types.void(source, source_step, target, target_step), generate


@intrinsic
def store_two(typingctx, target, offset, first, second, streaming):
    """Write two vectors one behind the other to the elements from `target[offset]` on: halves fill a cache line so.

    If `streaming`, they must be aligned to a cache line, go past the caches, and a fence must follow.
    """
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        both = builder.shuffle_vector(arguments[2], arguments[3], lane_list(range(2 * LANES)))
        value = narrowed(builder, both, dtype)
        address = _element_address(context, builder, signature, arguments)
        address = builder.bitcast(address, value.type.as_pointer())
        with builder.if_else(arguments[4]) as (past, through):
            with past:
                _stream(builder, value, address)
            with through:
                builder.store(value, address, align=dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, offset, first, second, streaming), generate


def _folded(combine):
    """Return the intrinsic that combines the lanes of each of `LANES` adjoining vectors pairwise, to one vector."""

    @intrinsic
    def function(typingctx, source):
        dtype = source.dtype
        is_float = isinstance(accumulator(dtype), types.Float)

        def generate(context, builder, signature, arguments):
            offsets = (ir.Constant(ir.IntType(64), row * LANES) for row in range(LANES))
            vectors = [load_vector(builder, arguments[0], offset, dtype) for offset in offsets]
            lanes = LANES  # of each of the rows that a vector holds
            while lanes > 1:
                lanes //= 2
                low = [lane for lane in range(2 * LANES) if lane // lanes % 2 == 0]
                high = [lane + lanes for lane in low]
                pairs = zip(vectors[::2], vectors[1::2], strict=True)
                vectors = [
                    combine(
                        builder, builder.shuffle_vector(a, b, lane_list(low)),
                        builder.shuffle_vector(a, b, lane_list(high)), is_float,
                    )
                    for a, b in pairs
                ]  # fmt: skip
            return vectors[0]

        return Vector(accumulator(dtype))(source), generate

    return function


largest_of_rows = _folded(larger)
"""Return the largest lane of each of `LANES` adjoining vectors, as a vector; lanes of nan may be passed over."""

sums_of_rows = _folded(added)
"""Return the sum of the lanes of each of `LANES` adjoining vectors, as a vector."""


def load_vector(builder, base, offset, dtype, lanes=LANES):
    """Return the vector of the `lanes` elements from base[offset] on."""
    address = builder.bitcast(cgutils.gep_inbounds(builder, base, offset), stored(dtype, lanes).as_pointer())
    return widened(builder, builder.load(address, align=dtype.bitwidth // 8), dtype)


def store_vector(builder, vector, base, offset, dtype):
    value = narrowed(builder, vector, dtype)
    address = builder.bitcast(cgutils.gep_inbounds(builder, base, offset), value.type.as_pointer())
    builder.store(value, address, align=dtype.bitwidth // 8)


@intrinsic
def class_indices(typingctx, source, offset, step, count, classes, ignore_index):
    """Return the int32 vector of the class indices `source[offset + lane * step]`.

    It is -1 where they are `ignore_index` and in lanes from `count` on, else -2 where they are not in [0, classes).
    """
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        step, count, classes, ignored = (
            context.cast(builder, value, of, types.int64)
            for value, of in zip(arguments[2:], signature.args[2:], strict=True)
        )
        wide = ir.VectorType(ir.IntType(64), LANES)
        address = _element_address(context, builder, signature, arguments)
        full = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
        adjoining = builder.and_(full, builder.icmp_signed("==", step, ir.Constant(step.type, 1)))
        slot = cgutils.alloca_once(builder, stored(dtype))
        with builder.if_else(adjoining) as (at_once, one_by_one):
            with at_once:
                whole = builder.bitcast(address, stored(dtype).as_pointer())
                builder.store(builder.load(whole, align=dtype.bitwidth // 8), slot)
            with one_by_one:
                builder.store(_gathered(builder, address, step, count, dtype), slot)
        value = _as_int64(builder, builder.load(slot), dtype)
        lanes = ir.Constant(wide, list(range(LANES)))
        valid = builder.icmp_unsigned("<", value, splat_scalar(builder, classes))
        left_out = builder.icmp_signed("==", value, splat_scalar(builder, ignored))
        if not dtype.signed:  # is never negative, whatever its bits
            can_be = builder.icmp_signed(">=", ignored, ir.Constant(ignored.type, 0))
            left_out = builder.and_(left_out, splat_scalar(builder, can_be))
        left_out = builder.or_(left_out, builder.icmp_signed(">=", lanes, splat_scalar(builder, count)))
        narrow = llvm_type(Vector(types.int32))
        index = builder.select(valid, builder.trunc(value, narrow), ir.Constant(narrow, [-2] * LANES))
        return builder.select(left_out, ir.Constant(narrow, [-1] * LANES), index)

    return Vector(types.int32)(source, offset, step, count, classes, ignore_index), generate


def _as_int64(builder, value, dtype):
    """Return the vector `value` of integers of `dtype` as int64."""
    wide = ir.VectorType(ir.IntType(64), LANES)
    if dtype.bitwidth == 64:
        return value
    return builder.sext(value, wide) if dtype.signed else builder.zext(value, wide)


@intrinsic
def can_equal(typingctx, source, number):
    """Return whether the integer `number` can be among what `source` points to: unsigned ones are never negative."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        if dtype.signed:
            return ir.Constant(ir.IntType(1), 1)
        number = context.cast(builder, arguments[1], signature.args[1], types.int64)
        return builder.icmp_signed(">=", number, ir.Constant(number.type, 0))

    return types.boolean(source, number), generate


@intrinsic
def load_integers(typingctx, source, offset):
    """Return the `LANES` integers from `source[offset]` on as int64; those beyond its range wrap to negative ones."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        address = builder.bitcast(address, stored(dtype).as_pointer())
        return _as_int64(builder, builder.load(address, align=dtype.bitwidth // 8), dtype)

    return Vector(types.int64)(source, offset), generate


@intrinsic
def lookup(typingctx, table, index):
    """Return the vector of the elements table[index[lane]] of floats, table[0] where the index is negative."""

    def generate(context, builder, signature, arguments):
        value = ir.Constant(stored(table.dtype), None)
        for lane in range(LANES):
            number = ir.Constant(ir.IntType(32), lane)
            one = builder.extract_element(arguments[1], number)
            zero = ir.Constant(one.type, 0)
            one = builder.select(builder.icmp_signed("<", one, zero), zero, one)
            element = builder.load(cgutils.gep_inbounds(builder, arguments[0], builder.sext(one, ir.IntType(64))))
            value = builder.insert_element(value, element, number)
        return value

    return Vector(table.dtype)(table, index), generate


@intrinsic
def put_at(typingctx, table, index, vector):
    """Write each lane of `vector` to table[index[lane]], of accumulators."""

    def generate(context, builder, signature, arguments):
        table, index, vector = arguments
        for lane in range(LANES):
            number = ir.Constant(ir.IntType(32), lane)
            one = builder.sext(builder.extract_element(index, number), ir.IntType(64))
            builder.store(builder.extract_element(vector, number), cgutils.gep_inbounds(builder, table, one))
        return context.get_dummy_value()

    return types.void(table, index, vector), generate


def _gathered(builder, address, step, count, dtype):
    """Return the elements `address[lane * step]`; lanes from `count` on read the last again: cheaper than branches."""
    value = ir.Constant(stored(dtype), None)
    last = builder.sub(count, ir.Constant(count.type, 1))
    for lane in range(LANES):
        number = ir.Constant(count.type, lane)
        inside = builder.select(builder.icmp_signed("<", number, count), number, last)
        element = builder.load(cgutils.gep_inbounds(builder, address, builder.mul(inside, step)))
        value = builder.insert_element(value, element, ir.Constant(ir.IntType(32), lane))
    return value


def transposed(builder, rows):
    """Return the columns of the square of vectors `rows`, by rounds that swap off-diagonal blocks of half the size."""
    rows = list(rows)
    lanes = len(rows)
    index = ir.VectorType(ir.IntType(32), lanes)
    block = lanes // 2
    while block:
        for row in range(lanes):
            if not row & block:
                kept = [lane if not lane & block else lanes + lane - block for lane in range(lanes)]
                swapped = [lane + block if not lane & block else lanes + lane for lane in range(lanes)]
                above, below = rows[row], rows[row + block]
                rows[row] = builder.shuffle_vector(above, below, ir.Constant(index, kept))
                rows[row + block] = builder.shuffle_vector(above, below, ir.Constant(index, swapped))
        block //= 2
    return rows


@intrinsic
def zeros_like(typingctx, source):
    """Return the vector of zeros of the accumulator of what the pointer `source` points to."""
    vector = Vector(accumulator(source.dtype))

    def generate(context, builder, signature, arguments):
        return ir.Constant(llvm_type(vector), None)

    return vector(source), generate


@inlined_by_type
def empty_accumulators(like, count):
    """Return a new array of `count` accumulators of the elements of the array `like`, uninitialised."""
    dtype = np.float64 if accumulator(like.dtype) == types.float64 else np.float32
    return lambda like, count: np.empty(count, dtype)


@inlined_by_type
def if_needed(output, value):
    """Return `value`, None where `output` is None."""
    if isinstance(output, types.NoneType):
        return lambda output, value: None
    return lambda output, value: value


@inlined_by_type
def either(a, b):
    """Return the one of two arrays that is not None, None where both are."""
    return (lambda a, b: b) if isinstance(a, types.NoneType) else (lambda a, b: a)


@intrinsic
def keep(typingctx, array):
    """Keep `array` alive up to this call: a pointer into it does not."""

    def generate(context, builder, signature, arguments):
        return context.get_dummy_value()

    return types.void(array), generate
