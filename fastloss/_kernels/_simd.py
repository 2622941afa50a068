"""The vector value type: eight lanes of one dtype that add, multiply and compare like a number.

A `Vector` is a Numba type whose value is one LLVM vector, so LLVM maps it to whatever registers the CPU has: two of
SSE, one of AVX2, half of AVX-512, two of NEON. Every operation here is generic LLVM, none belongs to one architecture.

The functions take scalars as well as vectors, so that a formula written with them compiles for both. Memory is reached
through a pointer to an element (`pointer`) and an offset in elements; nothing is checked here. Half-precision
elements widen to float32 on `load` and narrow on `store`, both rounded to nearest even. They travel as integers of
16 bits, because Numba has no such type on a CPU: `int16` holds IEEE float16, `uint16` holds bfloat16.
"""

from __future__ import annotations

import operator
import platform

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, lower_builtin, register_model, type_callable

from fastloss._kernels._jit import inlined_by_type

LANES = 8
"""Lanes of every vector: a register of AVX2 in float32, two in float64."""

CACHE_LINE = 64
"""Bytes of a cache line, of x86-64 and of most AArch64."""


class Vector(types.Type):
    """The Numba type of `LANES` values of `dtype`."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(f"vector({dtype}x{LANES})")


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(_llvm_scalar(vector.dtype), LANES))


def _llvm_scalar(dtype):
    if dtype == types.boolean:
        return ir.IntType(1)
    if dtype == types.float32:
        return ir.FloatType()
    if dtype == types.float64:
        return ir.DoubleType()
    return ir.IntType(dtype.bitwidth)


def _llvm(number):
    """Return the LLVM type that holds a value of the Numba type `number`, a scalar or a vector."""
    if isinstance(number, Vector):
        return ir.VectorType(_llvm_scalar(number.dtype), LANES)
    return _llvm_scalar(number)


def element_type(number):
    """Return the Numba type of the elements of `number`, a scalar or a vector."""
    return number.dtype if isinstance(number, Vector) else number


def _withelement_type(number, dtype):
    """Return the type shaped like `number` (scalar or vector) with elements of `dtype`."""
    return Vector(dtype) if isinstance(number, Vector) else dtype


def _splat(builder, scalar):
    """Return the vector that holds `scalar` in every lane."""
    if isinstance(scalar, ir.Constant):
        return ir.Constant(ir.VectorType(scalar.type, LANES), [scalar] * LANES)
    lane_type = ir.IntType(32)
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(lane_type, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(lane_type, LANES), [0] * LANES))


def _convert(context, builder, value, source, target):
    """Return `value` of the Numba type `source` as `target`: its element type converted, a scalar splatted."""
    if source == target:
        return value
    if isinstance(source, Vector):
        return _convert_lanes(builder, value, source.dtype, target)
    scalar = context.cast(builder, value, source, element_type(target))
    return _splat(builder, scalar) if isinstance(target, Vector) else scalar


def _convert_lanes(builder, value, source, target):
    """Return the vector `value` with its lanes converted from `source` to those of the type `target`."""
    into, llvm = target.dtype, _llvm(target)
    if isinstance(source, types.Float) and isinstance(into, types.Float):
        return builder.fpext(value, llvm) if into.bitwidth > source.bitwidth else builder.fptrunc(value, llvm)
    if isinstance(source, types.Float):
        return builder.fptosi(value, llvm)
    if isinstance(into, types.Float):
        return builder.sitofp(value, llvm)
    if into.bitwidth < source.bitwidth:
        return builder.trunc(value, llvm)
    return builder.sext(value, llvm)


# Operators. A scalar operand is converted to the vector's element type and splatted.

_FLOAT, _INTEGER = 0, 1


def _joint(left, right):
    """Return the vector type in which `left` and `right` meet, or None where neither is a vector."""
    if isinstance(left, Vector) and (left == right or isinstance(right, types.Number)):
        return left
    if isinstance(right, Vector) and isinstance(left, types.Number):
        return right
    return None


def _binary(operation, emit, result=None):
    @type_callable(operation)
    def typer(context):
        def type_of(left, right):
            joint = _joint(left, right)
            return joint if joint is None or result is None else Vector(result)

        return type_of

    def lower(context, builder, signature, arguments):
        joint = _joint(*signature.args)
        left, right = (
            _convert(context, builder, value, source, joint)
            for value, source in zip(arguments, signature.args, strict=True)
        )
        return emit(builder, left, right, isinstance(joint.dtype, types.Float))

    for operands in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(operation, *operands)(lower)


def _arithmetic(on_floats, on_integers):
    def emit(builder, left, right, is_float):
        return getattr(builder, on_floats if is_float else on_integers)(left, right)

    return emit


def _comparison(symbol):
    def emit(builder, left, right, is_float):
        if not is_float:
            return builder.icmp_signed(symbol, left, right)
        compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        return compare(symbol, left, right)

    return emit


_binary(operator.add, _arithmetic("fadd", "add"))
_binary(operator.sub, _arithmetic("fsub", "sub"))
_binary(operator.mul, _arithmetic("fmul", "mul"))
_binary(operator.truediv, _arithmetic("fdiv", "sdiv"))
_binary(operator.and_, _arithmetic(None, "and_"))
_binary(operator.or_, _arithmetic(None, "or_"))
for _symbol, _operation in (
    ("<", operator.lt),
    ("<=", operator.le),
    (">", operator.gt),
    (">=", operator.ge),
    ("==", operator.eq),
    ("!=", operator.ne),
):
    _binary(_operation, _comparison(_symbol), types.boolean)


@type_callable(operator.neg)
def _type_negative(context):
    def type_of(vector):
        return vector if isinstance(vector, Vector) else None

    return type_of


@lower_builtin(operator.neg, Vector)
def _lower_negative(context, builder, signature, arguments):
    (value,) = arguments
    return builder.fneg(value) if isinstance(signature.args[0].dtype, types.Float) else builder.neg(value)


# Arithmetic on scalars and vectors alike.


@intrinsic
def constant(typingctx, like, value):
    """Return `value` as a number of the type of `like`."""

    def generate(context, builder, signature, arguments):
        return _convert(context, builder, arguments[1], signature.args[1], signature.return_type)

    return like(like, value), generate


def _emit_multiply_add(builder, a, b, c, number):
    llvm = _llvm(number)
    signature = ir.FunctionType(llvm, [llvm] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.{_suffix(number)}")
    return builder.call(function, [a, b, c])


@intrinsic
def multiply_add(typingctx, a, b, c):
    """Return a * b + c, rounded once where the CPU has the instruction, else twice.

    The result is of the type of the first vector among the operands or, where there is none, of `a`.
    """
    number = next((operand for operand in (a, b, c) if isinstance(operand, Vector)), a)

    def generate(context, builder, signature, arguments):
        operands = [
            _convert(context, builder, value, source, number)
            for value, source in zip(arguments, signature.args, strict=True)
        ]
        return _emit_multiply_add(builder, *operands, number)

    return number(a, b, c), generate


@intrinsic
def polynomial(typingctx, x, coefficients):
    """Return c0 + c1 x + c2 x**2 + ... of the tuple `coefficients`.

    It halves and halves (G. Estrin, 1960): the chain of dependent operations is half as long as Horner's, which on one
    core of AMD's Zen 4 brings the exponential from 0.42 to 0.22 ns an element.
    """

    def generate(context, builder, signature, arguments):
        terms = [
            _convert(context, builder, value, source, x)
            for value, source in zip(cgutils.unpack_tuple(builder, arguments[1]), coefficients, strict=True)
        ]
        power = arguments[0]
        while len(terms) > 1:
            pairs = [
                _emit_multiply_add(builder, power, high, low, x)
                for low, high in zip(terms[::2], terms[1::2], strict=False)
            ]
            terms = pairs + terms[2 * len(pairs) :]
            power = builder.fmul(power, power)
        return terms[0]

    return x(x, coefficients), generate


def _suffix(number):
    scalar = f"f{element_type(number).bitwidth}"
    return f"v{LANES}{scalar}" if isinstance(number, Vector) else scalar


def _unary(name):
    @intrinsic
    def function(typingctx, x):
        def generate(context, builder, signature, arguments):
            number = signature.return_type
            llvm = _llvm(number)
            intrinsic_name = f"llvm.{name}.{_suffix(number)}"
            callee = cgutils.get_or_insert_function(builder.module, ir.FunctionType(llvm, [llvm]), intrinsic_name)
            return builder.call(callee, arguments)

        return x(x), generate

    return function


absolute = _unary("fabs")
"""Return |x| of a float scalar or vector; nan stays nan."""


@intrinsic
def select(typingctx, mask, if_true, if_false):
    """Return `if_true` where `mask` holds, else `if_false`, lane by lane; both of the type of the first float."""
    number = if_true if isinstance(if_true, Vector) or not isinstance(if_false, Vector) else if_false

    def generate(context, builder, signature, arguments):
        condition, yes, no = arguments
        yes = _convert(context, builder, yes, signature.args[1], number)
        no = _convert(context, builder, no, signature.args[2], number)
        if isinstance(number, Vector) and not isinstance(mask, Vector):
            condition = _splat(builder, condition)
        return builder.select(condition, yes, no)

    return number(mask, if_true, if_false), generate


@intrinsic
def as_bits(typingctx, x):
    """Return the bits of a float32 or float64 scalar or vector as integers of the same width."""
    integers = _withelement_type(x, types.int32 if element_type(x) == types.float32 else types.int64)

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _llvm(integers))

    return integers(x), generate


@intrinsic
def from_bits(typingctx, bits):
    """Return the float32 or float64 scalar or vector whose bits are the integers `bits`."""
    floats = _withelement_type(bits, types.float32 if element_type(bits) == types.int32 else types.float64)

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _llvm(floats))

    return floats(bits), generate


def _on_bits(emit):
    """Return the intrinsic that does `emit` on integers in their own width; Numba's operators widen to 64 bits."""

    @intrinsic
    def function(typingctx, bits, other):
        def generate(context, builder, signature, arguments):
            operand = _convert(context, builder, arguments[1], signature.args[1], bits)
            return emit(builder, arguments[0], operand)

        return bits(bits, other), generate

    return function


add_bits = _on_bits(lambda builder, bits, other: builder.add(bits, other))
subtract_bits = _on_bits(lambda builder, bits, other: builder.sub(bits, other))
and_bits = _on_bits(lambda builder, bits, other: builder.and_(bits, other))
shift_left = _on_bits(lambda builder, bits, count: builder.shl(bits, count))
shift_right = _on_bits(lambda builder, bits, count: builder.lshr(bits, count))


@intrinsic
def to_float(typingctx, like, integers):
    """Return `integers` converted to the type of `like`, a float of the same shape."""

    def generate(context, builder, signature, arguments):
        return builder.sitofp(arguments[1], _llvm(like))

    return like(like, integers), generate


# Memory.


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
    """Return the pointer `count` elements behind `source`."""

    def generate(context, builder, signature, arguments):
        return _element_address(context, builder, signature, arguments)

    return source(source, count), generate


@intrinsic
def elements_to_line(typingctx, target):
    """Return how many elements lie before the first cache line that begins at or behind `target`."""

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(64)
        misaligned = builder.neg(builder.ptrtoint(arguments[0], integer))
        misaligned = builder.and_(misaligned, ir.Constant(integer, CACHE_LINE - 1))
        return builder.udiv(misaligned, ir.Constant(integer, target.dtype.bitwidth // 8))

    return types.int64(target), generate


def accumulator(dtype):
    """Return the type in which elements of `dtype` are computed: float32 for the half types, else itself."""
    return types.float32 if dtype in (types.int16, types.uint16) else dtype


def _element_address(context, builder, signature, arguments):
    """Return the address of element `arguments[1]` behind the pointer `arguments[0]`."""
    offset = context.cast(builder, arguments[1], signature.args[1], types.int64)
    return cgutils.gep_inbounds(builder, arguments[0], offset)


def _stored(dtype, lanes=LANES):
    return ir.VectorType(_llvm_scalar(dtype), lanes)


def _converts_float16():
    """Return whether the CPU compiled for surely has instructions for float16; LLVM calls a missing function if not."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return False
    return platform.machine() in ("aarch64", "arm64") or bool(binding.get_host_cpu_features().get("f16c"))


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
    wide = ir.VectorType(ir.IntType(32), LANES)
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
    return builder.trunc(builder.or_(result, sign), _stored(types.int16))


def _widen(builder, value, dtype):
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


def _narrow(builder, value, dtype):
    """Return the lanes of `dtype` that hold the vector of floats `value`, rounded to nearest even."""
    if dtype == types.int16:
        if not _converts_float16():
            return _narrow_float16(builder, value)
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), LANES))
        return builder.bitcast(half, _stored(dtype))
    if dtype == types.uint16:
        wide = ir.VectorType(ir.IntType(32), LANES)

        def splat(number):
            return ir.Constant(wide, [number] * LANES)

        bits = builder.bitcast(value, wide)
        odd = builder.and_(builder.lshr(bits, splat(16)), splat(1))
        rounded = builder.add(bits, builder.add(odd, splat(0x7FFF)))
        quiet_nan = builder.or_(bits, splat(0x400000))  # the addition above could carry a nan's bits into inf
        rounded = builder.select(builder.fcmp_unordered("uno", value, value), quiet_nan, rounded)
        return builder.trunc(builder.lshr(rounded, splat(16)), _stored(dtype))
    return value


@intrinsic
def load(typingctx, source, offset):
    """Return the `LANES` elements from `source[offset]` on, as a vector of their accumulator."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        address = builder.bitcast(address, _stored(dtype).as_pointer())
        return _widen(builder, builder.load(address, align=dtype.bitwidth // 8), dtype)

    return Vector(accumulator(dtype))(source, offset), generate


def _first_lanes(context, builder, count, source):
    """Return the mask of the first `count` lanes."""
    count = _splat(builder, context.cast(builder, count, source, types.int32))
    return builder.icmp_signed("<", ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES))), count)


@intrinsic
def load_first(typingctx, source, offset, count, fill):
    """Return the vector of the `count` < LANES elements from `source[offset]` on; the other lanes hold `fill`."""
    dtype = source.dtype
    vector = Vector(accumulator(dtype))

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        stored = _stored(dtype)
        address = builder.bitcast(address, stored.as_pointer())
        mask = _first_lanes(context, builder, arguments[2], signature.args[2])
        suffix = f"v{LANES}{'f' if isinstance(dtype, types.Float) else 'i'}{dtype.bitwidth}"
        signature_of = ir.FunctionType(stored, [address.type, ir.IntType(32), mask.type, stored])
        callee = cgutils.get_or_insert_function(builder.module, signature_of, f"llvm.masked.load.{suffix}.p0")
        alignment = ir.Constant(ir.IntType(32), dtype.bitwidth // 8)
        value = builder.call(callee, [address, alignment, mask, ir.Constant(stored, None)])
        filled = _convert(context, builder, arguments[3], signature.args[3], vector)
        return builder.select(mask, _widen(builder, value, dtype), filled)

    return vector(source, offset, count, fill), generate


@intrinsic
def load_one(typingctx, source, offset):
    """Return the element `source[offset]`, a scalar of its accumulator."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        one = builder.bitcast(address, _stored(dtype, 1).as_pointer())
        vector = _widen(builder, builder.load(one, align=dtype.bitwidth // 8), dtype)
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return accumulator(dtype)(source, offset), generate


@intrinsic
def prefetch(typingctx, source, offset):
    """Ask for the cache line of `source[offset]`, which need not be readable."""

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        integer = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [address.type, integer, integer, integer])
        callee = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        to_read, keep_in_all_caches, data = 0, 3, 1
        builder.call(callee, [address, *(ir.Constant(integer, flag) for flag in (to_read, keep_in_all_caches, data))])
        return context.get_dummy_value()

    return types.void(source, offset), generate


@intrinsic
def store(typingctx, target, offset, vector):
    """Write `vector` to the `LANES` elements from `target[offset]` on."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        address = builder.bitcast(address, _stored(dtype).as_pointer())
        builder.store(_narrow(builder, arguments[2], dtype), address, align=dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, offset, vector), generate


@intrinsic
def put(typingctx, target, offset, number):
    """Write the float `number` to the element `target[offset]`."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        vector = _convert(context, builder, arguments[2], number, Vector(accumulator(dtype)))
        value = builder.extract_element(_narrow(builder, vector, dtype), ir.Constant(ir.IntType(32), 0))
        builder.store(value, address)
        return context.get_dummy_value()

    return types.void(target, offset, number), generate


@intrinsic
def stream(typingctx, target, offset, vector):
    """Write `vector` past the caches to the aligned elements from `target[offset]` on; a fence must follow."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        address = _element_address(context, builder, signature, arguments)
        value = _narrow(builder, arguments[2], dtype)
        address = builder.bitcast(address, value.type.as_pointer())
        instruction = builder.store(value, address, align=LANES * dtype.bitwidth // 8)
        one = ir.Constant(ir.IntType(32), 1)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    return types.void(target, offset, vector), generate


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
        return _widen(builder, value, dtype)

    return Vector(accumulator(dtype))(source, offset, step, count), generate


@intrinsic
def scatter(typingctx, target, offset, step, vector, count):
    """Write the first `count` lanes of `vector` to the elements `target[offset + lane * step]`."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        # Lane by lane under a branch each: AMD's masked store takes longer, and LLVM has none for 16 bits.
        address = _element_address(context, builder, signature, arguments)
        step = context.cast(builder, arguments[2], signature.args[2], types.int64)
        value = _narrow(builder, arguments[3], dtype)
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
    """Copy the `LANES` x `LANES` block at `source` to `target` transposed; the steps lead from row to row."""

    def generate(context, builder, signature, arguments):
        source_step, target_step = (context.cast(builder, arguments[i], signature.args[i], types.int64) for i in (1, 3))
        rows = []
        for row in range(LANES):
            offset = builder.mul(ir.Constant(source_step.type, row), source_step)
            address = cgutils.gep_inbounds(builder, arguments[0], offset)
            rows.append(_load_vector(builder, address, 0, source.dtype))
        for row, column in enumerate(_transposed(builder, rows)):
            offset = builder.mul(ir.Constant(target_step.type, row), target_step)
            _store_vector(builder, column, arguments[2], offset, target.dtype)
        return context.get_dummy_value()

    return types.void(source, source_step, target, target_step), generate


@intrinsic(prefer_literal=True)
def split_columns(typingctx, source, columns, target, target_step):
    """Copy `LANES` rows of `columns` adjoining elements at `source` to columns at `target`, `target_step` apart.

    `columns` is a literal of at most `LANES`: the rows are loaded whole and sorted by shuffles.
    """
    count = columns.literal_value

    def generate(context, builder, signature, arguments):
        step = context.cast(builder, arguments[3], signature.args[3], types.int64)
        loaded = [_load_vector(builder, arguments[0], number, source.dtype) for number in range(count)]
        for column in range(count):
            places = [divmod(lane * count + column, LANES) for lane in range(LANES)]
            offset = builder.mul(ir.Constant(step.type, column), step)
            _store_vector(builder, _picked(builder, loaded, places), arguments[2], offset, target.dtype)
        return context.get_dummy_value()

    return types.void(source, columns, target, target_step), generate


@intrinsic(prefer_literal=True)
def join_columns(typingctx, source, source_step, columns, target):
    """Copy columns of `LANES` at `source`, `source_step` apart, to rows of `columns` adjoining elements at `target`.

    It undoes `split_columns`.
    """
    count = columns.literal_value

    def generate(context, builder, signature, arguments):
        step = context.cast(builder, arguments[1], signature.args[1], types.int64)
        loaded = []
        for column in range(count):
            offset = builder.mul(ir.Constant(step.type, column), step)
            address = cgutils.gep_inbounds(builder, arguments[0], offset)
            loaded.append(_load_vector(builder, address, 0, source.dtype))
        for number in range(count):
            places = [divmod(number * LANES + lane, count)[::-1] for lane in range(LANES)]
            offset = ir.Constant(step.type, number * LANES)
            _store_vector(builder, _picked(builder, loaded, places), arguments[3], offset, target.dtype)
        return context.get_dummy_value()

    return types.void(source, source_step, columns, target), generate


def _load_vector(builder, base, number, dtype):
    """Return the `number`-th vector behind `base`."""
    address = cgutils.gep_inbounds(builder, base, number * LANES)
    address = builder.bitcast(address, _stored(dtype).as_pointer())
    return _widen(builder, builder.load(address, align=dtype.bitwidth // 8), dtype)


def _store_vector(builder, vector, base, offset, dtype):
    address = builder.bitcast(cgutils.gep_inbounds(builder, base, offset), _stored(dtype).as_pointer())
    builder.store(_narrow(builder, vector, dtype), address, align=dtype.bitwidth // 8)


def _picked(builder, vectors, places):
    """Return the vector whose lane i is the lane places[i][1] of vectors[places[i][0]]."""
    index = ir.VectorType(ir.IntType(32), LANES)
    result = ir.Constant(vectors[0].type, ir.Undefined)
    for number, vector in enumerate(vectors):
        chosen = [LANES + lane if at == number else own for own, (at, lane) in enumerate(places)]
        result = builder.shuffle_vector(result, vector, ir.Constant(index, chosen))
    return result


@intrinsic
def class_indices(typingctx, source, offset, step, count, classes, ignore_index):
    """Return the int32 vector of the integers `source[offset + lane * step]` that are classes, -1 for the others.

    A class is in [0, classes) and not `ignore_index`. Lanes from `count` on are -1.
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
        slot = cgutils.alloca_once(builder, _stored(dtype))
        with builder.if_else(adjoining) as (at_once, one_by_one):
            with at_once:
                whole = builder.bitcast(address, _stored(dtype).as_pointer())
                builder.store(builder.load(whole, align=dtype.bitwidth // 8), slot)
            with one_by_one:
                builder.store(_gathered(builder, address, step, count, dtype), slot)
        value = builder.load(slot)
        if dtype.bitwidth < 64:
            value = builder.sext(value, wide) if dtype.signed else builder.zext(value, wide)
        lanes = ir.Constant(wide, list(range(LANES)))
        valid = builder.icmp_unsigned("<", value, _splat(builder, classes))
        valid = builder.and_(valid, builder.icmp_signed("!=", value, _splat(builder, ignored)))
        valid = builder.and_(valid, builder.icmp_signed("<", lanes, _splat(builder, count)))
        narrow = _llvm(Vector(types.int32))
        return builder.select(valid, builder.trunc(value, narrow), ir.Constant(narrow, [-1] * LANES))

    return Vector(types.int32)(source, offset, step, count, classes, ignore_index), generate


@intrinsic
def lookup(typingctx, table, index):
    """Return the vector of the elements table[index[lane]] of floats, table[0] where the index is negative."""

    def generate(context, builder, signature, arguments):
        value = ir.Constant(_stored(table.dtype), None)
        for lane in range(LANES):
            number = ir.Constant(ir.IntType(32), lane)
            one = builder.extract_element(arguments[1], number)
            zero = ir.Constant(one.type, 0)
            one = builder.select(builder.icmp_signed("<", one, zero), zero, one)
            element = builder.load(cgutils.gep_inbounds(builder, arguments[0], builder.sext(one, ir.IntType(64))))
            value = builder.insert_element(value, element, number)
        return value

    return Vector(table.dtype)(table, index), generate


def _gathered(builder, address, step, count, dtype):
    """Return the elements `address[lane * step]`; lanes from `count` on read the last again: cheaper than branches."""
    value = ir.Constant(_stored(dtype), None)
    last = builder.sub(count, ir.Constant(count.type, 1))
    for lane in range(LANES):
        number = ir.Constant(count.type, lane)
        inside = builder.select(builder.icmp_signed("<", number, count), number, last)
        element = builder.load(cgutils.gep_inbounds(builder, address, builder.mul(inside, step)))
        value = builder.insert_element(value, element, ir.Constant(ir.IntType(32), lane))
    return value


def _transposed(builder, rows):
    """Return the columns of the square of vectors `rows`, by log2(LANES) rounds that swap off-diagonal blocks."""
    rows = list(rows)
    index = ir.VectorType(ir.IntType(32), LANES)
    block = LANES // 2
    while block:
        for row in range(LANES):
            if not row & block:
                kept = [lane if not lane & block else LANES + lane - block for lane in range(LANES)]
                swapped = [lane + block if not lane & block else LANES + lane for lane in range(LANES)]
                above, below = rows[row], rows[row + block]
                rows[row] = builder.shuffle_vector(above, below, ir.Constant(index, kept))
                rows[row + block] = builder.shuffle_vector(above, below, ir.Constant(index, swapped))
        block //= 2
    return rows


# Across lanes.


@intrinsic
def lane_numbers(typingctx):
    """Return the vector 0, 1, ..., LANES - 1 of int32."""
    vector = Vector(types.int32)

    def generate(context, builder, signature, arguments):
        return ir.Constant(_llvm(vector), list(range(LANES)))

    return vector(), generate


@intrinsic
def zeros_like(typingctx, source):
    """Return the vector of zeros of the accumulator of what the pointer `source` points to."""
    vector = Vector(accumulator(source.dtype))

    def generate(context, builder, signature, arguments):
        return ir.Constant(_llvm(vector), None)

    return vector(source), generate


def _fold(combine):
    """Return the intrinsic that combines the lanes pairwise, in a fixed order, to a scalar."""

    @intrinsic
    def function(typingctx, vector):
        is_float = isinstance(vector.dtype, types.Float)

        def generate(context, builder, signature, arguments):
            value = arguments[0]
            lanes = LANES
            while lanes > 1:
                lanes //= 2
                index = ir.VectorType(ir.IntType(32), lanes)
                low = builder.shuffle_vector(value, value, ir.Constant(index, list(range(lanes))))
                high = builder.shuffle_vector(value, value, ir.Constant(index, list(range(lanes, 2 * lanes))))
                value = combine(builder, low, high, is_float)
            return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

        return vector.dtype(vector), generate

    return function


def _larger(builder, left, right, is_float):
    compare = builder.fcmp_ordered if is_float else builder.icmp_signed
    return builder.select(compare(">", left, right), left, right)


sum_lanes = _fold(_arithmetic("fadd", "add"))
"""Return the sum of a vector's lanes, a scalar of its dtype."""

max_lanes = _fold(_larger)
"""Return the largest lane of a vector, a scalar of its dtype; lanes of nan may be passed over."""


@intrinsic
def widen(typingctx, vector):
    """Return `vector` with its lanes as float64."""
    wide = Vector(types.float64)

    def generate(context, builder, signature, arguments):
        return _convert(context, builder, arguments[0], vector, wide)

    return wide(vector), generate


@intrinsic
def keep(typingctx, array):
    """Keep `array` alive up to this call: a pointer into it does not."""

    def generate(context, builder, signature, arguments):
        return context.get_dummy_value()

    return types.void(array), generate


@inlined_by_type
def empty_accumulators(like, count):
    """Return a new array of `count` accumulators of the elements of the array `like`, uninitialised."""
    dtype = np.float64 if accumulator(like.dtype) == types.float64 else np.float32
    return lambda like, count: np.empty(count, dtype)
