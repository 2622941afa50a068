"""The one place with Numba options."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import overload

from fastloss._kernels import _cache
from fastloss._kernels._apart import apart

_OPTIONS = {"error_model": "numpy", "nogil": True}
"""Division by zero gives inf or nan without a branch; other Python threads run while a kernel does."""


STACK_ALIGNMENT = 64
"""Bytes, a cache line. By itself LLVM aligns vectors on the stack to 16, as the systems' calling conventions do. So, in
about a process of twenty, a vector that a loop needs lies across two pages; beside streamed stores such a loop takes 3
to 7 times as long."""


def align_stack(function):
    """Have LLVM align what `function`, of llvmlite.ir, keeps on the stack."""
    function.attributes.alignstack = STACK_ALIGNMENT
    function.attributes.add("noredzone")  # such a frame has none; llvmlite writes no attributes while this set is empty


class _HelperLibrary(JITCodeLibrary):
    """The code of a helper for LLVM, to be linked into kernels: these alone are optimised and become machine code.

    Numba would do both for each helper as well, and again for each that calls it. In return helpers can neither print
    nor raise what has run-time values in it, for which they would need Numba's environment, nor call each other in
    circles.
    """

    def add_ir_module(self, ir_module):
        for function in ir_module.functions:
            if not function.is_declaration:
                align_stack(function)
        super().add_ir_module(ir_module)

    def _optimize_final_module(self):
        """Leave that to the kernels."""

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        """Return 0, Numba's address of what is not there, once other code can be linked with the helper."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        """What Numba calls `set_env` of once there is machine code."""
        return self

    def set_env(self, name, environment):
        """Set nothing: without machine code there is no place for the environment."""


class _HelperCompiler(Compiler):
    """Numba's compiler, for helpers."""

    def __init__(self, typing_context, target_context, library, *of_function):
        library = _HelperLibrary(target_context.codegen(), "helper")
        super().__init__(typing_context, target_context, library, *of_function)


_CALLED_BY_KERNELS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _HelperCompiler}
"""Without the entries for Python and for C, which Numba would compile for each helper."""

if numba.config.DISABLE_JIT:
    warnings.warn(
        "NUMBA_DISABLE_JIT is set, but fastloss's kernels are compiled all the same: Python cannot interpret them",
        RuntimeWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def _jit_enabled() -> Iterator[None]:
    """A context in which Numba compiles whether or not NUMBA_DISABLE_JIT is set."""
    with global_compiler_lock:
        disabled, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, 0
        try:
            yield
        finally:
            numba.config.DISABLE_JIT = disabled


def _njit(**options):
    return _jit_enabled()(numba.njit(**options, **_OPTIONS))


inlined = _njit(forceinline=True, **_CALLED_BY_KERNELS)
"""Compile a helper that LLVM inlines where it is called."""

shared = _njit(**_CALLED_BY_KERNELS)
"""Compile a piece that several kernels call, and that LLVM need not inline."""


def inlined_by_type(build):
    """Compile a helper by types, inlined like `inlined`: `build` takes the arguments' types, returns the function."""

    def helper(*arguments):
        raise TypeError(f"{build.__name__} can be called in compiled code alone")

    functools.update_wrapper(helper, build)
    overload(helper, jit_options={"forceinline": True, **_CALLED_BY_KERNELS, **_OPTIONS})(build)
    return helper


def kernel(function: Callable[..., None]) -> Any:
    """Return the dispatcher of `function`, which is compiled at its first call, saved, and loaded after that."""
    return _saved(function)


def parallel(function: Callable[..., None]) -> Any:
    """Return the dispatcher, like `kernel`'s, of a `function` whose loops over numba.prange run on all threads."""
    return _saved(function, parallel=True)


def _saved(function, **options):
    dispatcher = _njit(no_cfunc_wrapper=True, **options)(function)
    compile = dispatcher.compile

    @_jit_enabled()
    def compile_for_any_layout(signature):
        general = tuple(map(_in_any_layout, signature))
        entry_point = compile(general)
        if general != signature:
            dispatcher._insert([argument._code for argument in signature], entry_point, False)
        return entry_point

    dispatcher.compile = lambda signature: apart(lambda: compile_for_any_layout(signature))
    _cache.attach(dispatcher)
    return dispatcher


def _in_any_layout(argument):
    """Return the type of an argument, of any layout for arrays of several axes: kernels walk these by their strides.

    Numba would compile a kernel once more for C order, Fortran order and neither, to the same instructions.
    """
    is_walked = isinstance(argument, numba.types.Array) and argument.ndim > 1
    return argument.copy(layout="A") if is_walked else argument
