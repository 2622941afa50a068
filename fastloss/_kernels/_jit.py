"""The one place with Numba options, and with what the on-disk cache depends on."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
from numba.extending import overload

_OPTIONS = {"error_model": "numpy", "nogil": True}
"""Division by zero gives inf or nan without a branch; other Python threads run while a kernel does."""

_CALLED_BY_KERNELS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}
"""Without the entries for Python and for C, which Numba would compile for each helper."""

inlined = numba.njit(forceinline=True, **_CALLED_BY_KERNELS)
"""Compile a helper that LLVM inlines where it is called."""

shared = numba.njit(**_CALLED_BY_KERNELS)
"""Compile a piece that several kernels call, and that LLVM need not inline."""


def inlined_by_type(build):
    """Compile a helper by types, inlined like `inlined`: `build` takes the arguments' types, returns the function."""

    def helper(*arguments):
        raise TypeError(f"{build.__name__} can be called in compiled code alone")

    functools.update_wrapper(helper, build)
    overload(helper, jit_options={"forceinline": True, **_CALLED_BY_KERNELS})(build)
    return helper


class Kernel(NamedTuple):
    """One loop over blocks, compiled for the calling thread alone and for all threads."""

    serial: Callable[..., None]
    parallel: Callable[..., None]


def kernel(function: Callable[..., None]) -> Kernel:
    """Return `function`, a loop over numba.prange, as a `Kernel` that is compiled at its first call and cached."""
    return Kernel(_cached(function, "serial"), _cached(function, "parallel", parallel=True))


def _cached(function, variant, **options):
    # The cache tells functions apart by their qualified name, so the variants need names of their own.
    renamed = types.FunctionType(function.__code__, function.__globals__, f"{function.__name__}_{variant}")
    renamed.__qualname__ = renamed.__name__
    renamed.__doc__ = function.__doc__
    try:
        dispatcher = numba.njit(cache=True, **options, **_OPTIONS)(renamed)
    except RuntimeError:  # no folder to cache in can be written to
        return numba.njit(**options, **_OPTIONS)(renamed)
    _stamp(dispatcher)
    return dispatcher


def _stamp(dispatcher: Any) -> None:
    """Make the cached machine code depend on all kernel sources: Numba looks at the file of `dispatcher` alone."""
    dispatcher._cache._cache_file._source_stamp = _hash_of_sources()


@functools.cache
def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
