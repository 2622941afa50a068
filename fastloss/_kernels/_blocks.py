"""How a kernel comes to do its blocks: one after the other, or on all threads through the one parallel loop here.

A kernel does one block of its work: one of those that it sums by, or a share, a chunk, a row. Numba would compile a
kernel that is a parallel loop itself five times over, each time as a part of the next, and once more for calls that are
not worth another thread. So the loop over blocks is a function by itself, `launch`, compiled once for all kernels. It
knows a kernel and its arguments by their addresses.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastloss._kernels._jit import align_stack, parallel

_RESULT, _EXCEPTION, _BLOCK = 0, 1, 4
"""Positions among the arguments of a compiled kernel: Numba puts two pointers before its own."""

_OF_LAUNCH = (types.int64, types.int64, types.int64)

_INTEGER = ir.IntType(64)

_BLOCK_FUNCTION = ir.FunctionType(ir.VoidType(), [_INTEGER, _INTEGER])
"""Of the function that does a block: its arguments are the address of the kernel's, and the block."""


@intrinsic
def _do_block(typingctx, function, arguments, block):
    """Do the block number `block` of the kernel that `function` and `arguments` are the addresses for."""

    def generate(context, builder, signature, values):
        builder.call(builder.inttoptr(values[0], _BLOCK_FUNCTION.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.none(function, arguments, block), generate


@parallel
def launch(function, arguments, blocks):
    """Do all blocks of a kernel, on as many threads as Numba has been told to use."""
    for block in prange(blocks):
        _do_block(function, arguments, np.int64(block))


def launcher() -> int:
    """Return the address of the compiled `launch`, with which kernels run on all threads."""
    launch.compile(_OF_LAUNCH)
    compiled = launch.overloads[_OF_LAUNCH]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


@intrinsic
def distributed(typingctx, launcher, blocks, block):
    """Return False in a call for one block; in a user's call, where `block` is -1, do all `blocks` and return True.

    A kernel, or a `shared` function with a loop over blocks of its own, takes these three as its first arguments. What
    stands before this runs in the user's call alone, what stands behind it once for each block: from the threads of
    `launcher` or, where that is 0, one after the other. Since all kernels pass here, this also aligns their stack.

    The blocks' arrays have no owner, which the user's call keeps alive. Else the threads would count their references
    to it, and wait for each other: a tenth of the time where a block takes some microseconds.
    """

    def generate(context, builder, signature, arguments):
        launcher, blocks, block = arguments
        kernel = builder.function
        align_stack(kernel)
        code, exception = kernel.function_type.return_type, kernel.args[_EXCEPTION].type.pointee
        packed_type = ir.LiteralStructType([*kernel.function_type.args, code, exception])
        packed = cgutils.alloca_once(builder, packed_type)
        code_place, exception_place = len(kernel.args), len(kernel.args) + 1
        function = _block_function(builder.module, kernel, packed_type)
        of_user = builder.icmp_signed("<", block, ir.Constant(_INTEGER, 0))
        with builder.if_then(of_user, likely=False):
            for place, argument in enumerate([*kernel.args, ir.Constant(code, 0)]):
                value = ir.Constant(argument.type, None) if _owns_memory(argument) else argument
                builder.store(value, cgutils.gep_inbounds(builder, packed, 0, place))
            address = builder.ptrtoint(packed, _INTEGER)
            alone = builder.icmp_signed("==", launcher, ir.Constant(_INTEGER, 0))
            with builder.if_else(alone) as (one_by_one, on_all_threads):
                with one_by_one, cgutils.for_range(builder, blocks) as loop:
                    builder.call(function, [address, loop.index])
                with on_all_threads:
                    launch_type = context.call_conv.get_function_type(types.none, _OF_LAUNCH)
                    context.call_conv.call_function(
                        builder, builder.inttoptr(launcher, launch_type.as_pointer()), types.none, _OF_LAUNCH,
                        [builder.ptrtoint(function, _INTEGER), address, blocks],
                    )  # fmt: skip
            raised = builder.load(cgutils.gep_inbounds(builder, packed, 0, code_place))
            with builder.if_then(cgutils.is_not_null(builder, raised), likely=False):
                exception = builder.load(cgutils.gep_inbounds(builder, packed, 0, exception_place))
                builder.store(exception, kernel.args[_EXCEPTION])
                builder.ret(raised)
        return of_user

    return types.boolean(launcher, blocks, block), generate


def _owns_memory(argument):
    """Return whether an argument of a compiled kernel is the owner of an array's memory, the first of an array's parts.

    Numba names an argument's parts by their positions; no other argument of a kernel begins with such a pointer.
    """
    parts = argument.name.split(".") if isinstance(argument, ir.Argument) else []
    return len(parts) == 3 and parts[0] == "arg" and parts[2] == "0" and argument.type == cgutils.voidptr_t


def _block_function(module, kernel, packed_type):
    """Return a new function that calls `kernel` with the packed arguments but for the block.

    Numba's threads do not hand on the exceptions of a parallel loop, which only bounds checks raise here: what it
    raised, if anything, is put behind the arguments. Where several blocks raise, all raise the same.
    """
    function = ir.Function(module, _BLOCK_FUNCTION, f"{kernel.name}.block")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    packed = builder.inttoptr(function.args[0], packed_type.as_pointer())
    values = [builder.load(cgutils.gep_inbounds(builder, packed, 0, place)) for place in range(len(kernel.args))]
    values[_RESULT] = builder.alloca(kernel.args[_RESULT].type.pointee)
    values[_EXCEPTION] = builder.alloca(kernel.args[_EXCEPTION].type.pointee)
    values[_BLOCK] = function.args[1]
    raised = builder.call(kernel, values)
    with builder.if_then(cgutils.is_not_null(builder, raised), likely=False):
        for place, value in enumerate([raised, builder.load(values[_EXCEPTION])], len(kernel.args)):
            builder.store(value, cgutils.gep_inbounds(builder, packed, 0, place))
    builder.ret_void()
    return function
