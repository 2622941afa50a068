"""The vector value type: `LANES` lanes of one dtype that add, multiply and compare like a number.

A `Vector` is a Numba type whose value is one LLVM vector, so LLVM maps it to whatever registers the CPU has: four of
SSE, two of AVX2, one of AVX-512, four of NEON. Operations are generic LLVM, but for `looked_up`, which LLVM has no name
for, and which is used where the CPU can do it.

The functions take scalars as well as vectors, so that a formula written with them compiles for both. `_memory` loads
and stores them.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, lower_builtin, register_model, type_callable

LANES = 16
"""Lanes of every vector: a register of AVX-512 in float32, two in float64."""


def cpu_has(feature: str) -> bool:
    """Return whether the CPU compiled for surely has what LLVM calls `feature`."""
    features: str = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    return f"+{feature}" in features.split(",")


class Vector(types.Type):
    """The Numba type of `LANES` values of `dtype`."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(f"vector({dtype}x{LANES})")


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(llvm_scalar(vector.dtype), LANES))


def llvm_scalar(dtype):
    if dtype == types.boolean:
        return ir.IntType(1)
    if dtype == types.float32:
        return ir.FloatType()
    if dtype == types.float64:
        return ir.DoubleType()
    return ir.IntType(dtype.bitwidth)


def llvm_type(number):
    """Return the LLVM type that holds a value of the Numba type `number`, a scalar or a vector."""
    if isinstance(number, Vector):
        return ir.VectorType(llvm_scalar(number.dtype), LANES)
    return llvm_scalar(number)


def element_type(number):
    """Return the Numba type of the elements of `number`, a scalar or a vector."""
    return number.dtype if isinstance(number, Vector) else number


def _with_element(number, dtype):
    """Return the type shaped like `number` (scalar or vector) with elements of `dtype`."""
    return Vector(dtype) if isinstance(number, Vector) else dtype


def splat_scalar(builder, scalar):
    """Return the vector that holds `scalar` in every lane."""
    if isinstance(scalar, ir.Constant):
        return ir.Constant(ir.VectorType(scalar.type, LANES), [scalar] * LANES)
    lane_type = ir.IntType(32)
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(lane_type, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(lane_type, LANES), [0] * LANES))


def convert(context, builder, value, source, target):
    """Return `value` of the Numba type `source` as `target`: its element type converted, a scalar splatted."""
    if source == target:
        return value
    if isinstance(source, Vector):
        return _convert_lanes(builder, value, source.dtype, target)
    scalar = context.cast(builder, value, source, element_type(target))
    return splat_scalar(builder, scalar) if isinstance(target, Vector) else scalar


def _convert_lanes(builder, value, source, target):
    """Return the vector `value` with its lanes converted from `source` to those of the type `target`."""
    into, llvm = target.dtype, llvm_type(target)
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
            convert(context, builder, value, source, joint)
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
_binary(operator.truediv, _arithmetic("fdiv", None))
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
        return convert(context, builder, arguments[1], signature.args[1], signature.return_type)

    return like(like, value), generate


def _in_register(context, builder, value, source, number):
    """Return the constant float `value` of the type `source` as `number`, a vector in a way that hides it from LLVM.

    A constant LLVM loads from memory in every round of a loop, as an operand of the instruction that uses it; what it
    does not know it keeps in a register. That takes 12 % off the exponential's loop on AMD's Zen 4. The empty piece of
    assembly is the same for every CPU.
    """
    scalar = context.cast(builder, value, source, element_type(number))
    if not isinstance(number, Vector):
        return scalar
    integer = ir.IntType(number.dtype.bitwidth)
    bits = builder.bitcast(scalar, integer)
    hidden = builder.asm(ir.FunctionType(integer, [integer]), "", "=r,0", [bits], False)
    for attribute in ("readnone", "nounwind"):  # or it would not leave the loop
        hidden.attributes.add(attribute)
    return splat_scalar(builder, builder.bitcast(hidden, scalar.type))


@intrinsic
def in_register(typingctx, like, value):
    """Return the constant float `value` as a number of the type of `like`; a vector stays in a register in loops."""

    def generate(context, builder, signature, arguments):
        return _in_register(context, builder, arguments[1], signature.args[1], like)

    return like(like, value), generate


def _emit_multiply_add(builder, a, b, c, number):
    llvm = llvm_type(number)
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
            convert(context, builder, value, source, number)
            for value, source in zip(arguments, signature.args, strict=True)
        ]
        return _emit_multiply_add(builder, *operands, number)

    return number(a, b, c), generate


@intrinsic
def polynomial(typingctx, x, coefficients):
    """Return c0 + c1 x + c2 x**2 + ... of the tuple `coefficients`, by Horner's scheme.

    Its chain is long, but a loop has several vectors under way, and then the number of operations counts: G. Estrin's
    scheme (1960) needs half the chain and more products, and takes 2 to 11 % more time in the losses.
    """

    def generate(context, builder, signature, arguments):
        terms = [
            _in_register(context, builder, value, source, x)
            for value, source in zip(cgutils.unpack_tuple(builder, arguments[1]), coefficients, strict=True)
        ]
        result = terms.pop()
        while terms:
            result = _emit_multiply_add(builder, result, arguments[0], terms.pop(), x)
        return result

    return x(x, coefficients), generate


def _suffix(number):
    scalar = f"f{element_type(number).bitwidth}"
    return f"v{LANES}{scalar}" if isinstance(number, Vector) else scalar


def _unary(name):
    @intrinsic
    def function(typingctx, x):
        def generate(context, builder, signature, arguments):
            number = signature.return_type
            llvm = llvm_type(number)
            intrinsic_name = f"llvm.{name}.{_suffix(number)}"
            callee = cgutils.get_or_insert_function(builder.module, ir.FunctionType(llvm, [llvm]), intrinsic_name)
            return builder.call(callee, arguments)

        return x(x), generate

    return function


absolute = _unary("fabs")
"""Return |x| of a float scalar or vector; nan stays nan."""


@intrinsic
def select(typingctx, mask, if_true, if_false):
    """Return `if_true` where `mask` holds, else `if_false`, lane by lane.

    Both become the type of the first vector among them, or of `if_true` where neither is one.
    """
    number = if_true if isinstance(if_true, Vector) or not isinstance(if_false, Vector) else if_false

    def generate(context, builder, signature, arguments):
        condition, yes, no = arguments
        yes = convert(context, builder, yes, signature.args[1], number)
        no = convert(context, builder, no, signature.args[2], number)
        if isinstance(number, Vector) and not isinstance(mask, Vector):
            condition = splat_scalar(builder, condition)
        return builder.select(condition, yes, no)

    return number(mask, if_true, if_false), generate


@intrinsic
def as_bits(typingctx, x):
    """Return the bits of a float32 or float64 scalar or vector as integers of the same width."""
    integers = _with_element(x, types.int32 if element_type(x) == types.float32 else types.int64)

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], llvm_type(integers))

    return integers(x), generate


@intrinsic
def from_bits(typingctx, bits):
    """Return the float32 or float64 scalar or vector whose bits are the integers `bits`."""
    floats = _with_element(bits, types.float32 if element_type(bits) == types.int32 else types.float64)

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], llvm_type(floats))

    return floats(bits), generate


def _on_bits(emit):
    """Return the intrinsic that does `emit` on integers in their own width; Numba's operators widen to 64 bits."""

    @intrinsic
    def function(typingctx, bits, other):
        def generate(context, builder, signature, arguments):
            operand = convert(context, builder, arguments[1], signature.args[1], bits)
            return emit(builder, arguments[0], operand)

        return bits(bits, other), generate

    return function


add_bits = _on_bits(lambda builder, bits, other: builder.add(bits, other))
subtract_bits = _on_bits(lambda builder, bits, other: builder.sub(bits, other))
and_bits = _on_bits(lambda builder, bits, other: builder.and_(bits, other))
shift_left = _on_bits(lambda builder, bits, count: builder.shl(bits, count))
shift_right = _on_bits(lambda builder, bits, count: builder.lshr(bits, count))


def looks_up() -> bool:
    """Return whether the CPU compiled for has an instruction that does `looked_up` on registers."""
    return cpu_has("avx2")


@intrinsic
def looked_up(typingctx, table, numbers):
    """Return the elements table[n % 8] of a tuple of eight constants for the int32 scalar or vector `numbers`.

    A vector needs `looks_up`.
    """

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(32)
        width, name = (16, "avx512.permvar.si.512") if cpu_has("avx512f") else (8, "avx2.permd")
        register = ir.VectorType(integer, width)
        row = ir.Constant(register, ir.Undefined)
        elements = cgutils.unpack_tuple(builder, arguments[0])
        for lane in range(width):
            element = context.cast(builder, elements[lane % 8], table[lane % 8], types.int32)
            row = builder.insert_element(row, element, ir.Constant(integer, lane))
        if not isinstance(numbers, Vector):
            return builder.extract_element(row, builder.and_(arguments[1], ir.Constant(integer, 7)))
        function_type = ir.FunctionType(register, [register, register])
        permute = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}")
        parts = []
        for first in range(0, LANES, width):
            lanes = ir.Constant(register, list(range(first, first + width)))
            part = builder.shuffle_vector(arguments[1], arguments[1], lanes)
            parts.append(builder.call(permute, [row, part]))
        every = ir.Constant(ir.VectorType(integer, LANES), list(range(LANES)))
        return builder.shuffle_vector(parts[0], parts[-1], every)

    return numbers(table, numbers), generate


# Across lanes.


@intrinsic
def lane_numbers(typingctx):
    """Return the vector 0, 1, ..., LANES - 1 of int32."""
    vector = Vector(types.int32)

    def generate(context, builder, signature, arguments):
        return ir.Constant(llvm_type(vector), list(range(LANES)))

    return vector(), generate


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


def larger(builder, left, right, is_float):
    """Return the larger one lane by lane, the right one where there is nan."""
    compare = builder.fcmp_ordered if is_float else builder.icmp_signed
    return builder.select(compare(">", left, right), left, right)


added = _arithmetic("fadd", "add")

sum_lanes = _fold(added)
"""Return the sum of a vector's lanes, a scalar of its dtype."""

max_lanes = _fold(larger)
"""Return the largest lane of a vector, a scalar of its dtype; lanes of nan may be passed over."""


@intrinsic
def count_lanes(typingctx, mask):
    """Return in how many lanes the `mask` holds."""

    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.int64(mask), generate


@intrinsic
def widen(typingctx, vector):
    """Return `vector` with its lanes as float64."""
    wide = Vector(types.float64)

    def generate(context, builder, signature, arguments):
        return convert(context, builder, arguments[0], vector, wide)

    return wide(vector), generate


@intrinsic
def narrow(typingctx, vector):
    """Return the lower halves of the lanes of an int64 `vector` as int32."""
    low = Vector(types.int32)

    def generate(context, builder, signature, arguments):
        return convert(context, builder, arguments[0], vector, low)

    return low(vector), generate
