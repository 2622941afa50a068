"""Elements as memory holds them, to their accumulators and back: code for LLVM that `_memory` loads and stores with.

Half-precision ones travel as integers of 16 bits, because Numba has no such type on a CPU: `int16` holds IEEE float16,
`uint16` holds bfloat16. Both round to nearest even.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types

from fastloss._kernels._simd import LANES, cpu_has, llvm_scalar


def accumulator(dtype):
    """Return the type in which elements of `dtype` are computed: float32 for the half types, else itself."""
    return types.float32 if dtype in (types.int16, types.uint16) else dtype


def lane_list(lanes):
    lanes = list(lanes)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def stored(dtype, lanes=LANES):
    return ir.VectorType(llvm_scalar(dtype), lanes)


def _converts_float16():
    """Return whether the CPU compiled for surely has instructions for float16; LLVM calls a missing function if not."""
    return platform.machine() in ("aarch64", "arm64") or cpu_has("f16c")


def _widen_float16(builder, value):
    """Return float16 as float32 in integer arithmetic; the multiplication that rebases the exponent is exact."""
    wide = ir.VectorType(ir.IntType(32), value.type.count)
    floats = ir.VectorType(ir.FloatType(), value.type.count)

    def splat(number, type=wide):
        return ir.Constant(type, [number] * type.count)

    bits = builder.zext(value, wide)
    sign = builder.shl(builder.and_(bits, splat(0x8000)), splat(16))
    magnitude = builder.and_(bits, splat(0x7FFF))
    rebased = builder.bitcast(builder.shl(magnitude, splat(13)), floats)
    rebased = builder.bitcast(builder.fmul(rebased, splat(2.0**112, floats)), wide)  # the biases' difference: 127 - 15
    special = builder.or_(builder.shl(magnitude, splat(13)), splat(0x7F800000))
    finite = builder.icmp_signed("<", magnitude, splat(0x7C00))
    return builder.bitcast(builder.or_(builder.select(finite, rebased, special), sign), floats)


def _narrow_float16(builder, value):
    """Return float32 rounded to float16 in integer arithmetic, ties to even."""
    wide = ir.VectorType(ir.IntType(32), value.type.count)
    floats = value.type

    def splat(number, type=wide):
        return ir.Constant(type, [number] * type.count)

    bits = builder.bitcast(value, wide)
    magnitude = builder.and_(bits, splat(0x7FFFFFFF))
    sign = builder.lshr(builder.and_(bits, splat(0x80000000)), splat(16))
    odd = builder.and_(builder.lshr(magnitude, splat(13)), splat(1))
    normal = builder.add(magnitude, builder.add(odd, splat(0xFFF - (112 << 23))))
    normal = builder.lshr(normal, splat(13))
    # Where the result is subnormal, adding 1/2 rounds at its last bit, 2**-24, which is that of 1/2 in float32.
    tiny = builder.fadd(builder.bitcast(magnitude, floats), splat(0.5, floats))
    tiny = builder.sub(builder.bitcast(tiny, wide), splat(0x3F000000))
    result = builder.select(builder.icmp_signed("<", magnitude, splat(0x38800000)), tiny, normal)
    result = builder.select(builder.icmp_signed(">=", magnitude, splat(0x477FF000)), splat(0x7C00), result)
    is_nan = builder.icmp_signed(">", magnitude, splat(0x7F800000))
    result = builder.select(is_nan, splat(0x7E00), result)
    return builder.trunc(builder.or_(result, sign), stored(types.int16, value.type.count))


def widened(builder, value, dtype):
    """Return the vector of float lanes that the loaded lanes `value` of `dtype` stand for."""
    lanes = value.type.count
    if dtype == types.int16:
        if not _converts_float16():
            return _widen_float16(builder, value)
        half = builder.bitcast(value, ir.VectorType(ir.HalfType(), lanes))
        return builder.fpext(half, ir.VectorType(ir.FloatType(), lanes))
    if dtype == types.uint16:
        wide = ir.VectorType(ir.IntType(32), lanes)
        bits = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * lanes))
        return builder.bitcast(bits, ir.VectorType(ir.FloatType(), lanes))
    return value


def narrowed(builder, value, dtype):
    """Return the lanes of `dtype` that hold the vector of floats `value`, rounded to nearest even."""
    lanes = value.type.count
    if dtype == types.int16:
        if not _converts_float16():
            return _narrow_float16(builder, value)
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
        return builder.bitcast(half, stored(dtype, lanes))
    if dtype == types.uint16:
        wide = ir.VectorType(ir.IntType(32), lanes)

        def splat(number):
            return ir.Constant(wide, [number] * lanes)

        bits = builder.bitcast(value, wide)
        odd = builder.and_(builder.lshr(bits, splat(16)), splat(1))
        rounded = builder.add(bits, builder.add(odd, splat(0x7FFF)))
        is_nan = builder.fcmp_unordered("uno", value, value)  # the addition could carry its bits into inf
        rounded = builder.select(is_nan, splat(0x7FC00000), rounded)
        # The upper halves (all CPUs of Numba's are little-endian), taken so: of two registers in one instruction, where
        # a shift and a truncation would be six.
        halves = builder.bitcast(rounded, stored(dtype, 2 * lanes))
        return builder.shuffle_vector(halves, halves, lane_list(range(1, 2 * lanes, 2)))
    return value
