"""Compiling kernels ahead of the first call, for images of containers and the like."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastloss import _checks, _engine, _threads, functional

_CLASSES = (2, 10, 24, 100, 200, 256)
"""Numbers of classes that different kernels serve, in float32 and in float64."""

_FUNCTIONS = sorted(
    name
    for name, value in vars(functional).items()
    if inspect.isfunction(value) and value.__module__ == functional.__name__ and not name.startswith("_")
)


def warmup(
    functions: str | Iterable[str] | None = None,
    dtypes: DTypeLike | Iterable[DTypeLike] = np.float32,
    classes: int | Iterable[int] = _CLASSES,
) -> dict[str, float]:
    """Return the seconds that the common calls of each function take to compile, or to load from the cache.

    What is compiled stays in the process and in Numba's cache folder. Otherwise a kernel is compiled by the first call
    that needs it.

    Parameters
    ----------
    functions : str or iterable of str, optional
        Names of functions of fastloss; by default all of them.
    dtypes : dtype or iterable of dtype, default float32
        Of the inputs: float16, bfloat16 (of ml_dtypes; it serves torch's too), float32, float64.
    classes : int or iterable of int, default (2, 10, 24, 100, 200, 256)
        Numbers of classes, for functions of rows. Each from 2 to 16 (8 in float64) has a kernel of its own for
        `cross_entropy` and the softmax functions; those from there to 63 (31) share one, those from 64 to 255 (127),
        losses alone from 160 (80) on, another, larger ones a third, and all of images a fourth.

    Returns
    -------
    seconds : dict of str to float
        By the function's name.

    Raises
    ------
    ValueError
        If a name in `functions` is not that of a function of fastloss, or a number in `classes` not positive.
    TypeError
        If a dtype is not one of the four, or a number in `classes` no integer.

    Notes
    -----
    Common are calls with the default options, class indices of int64, with and without the gradient, of few elements
    and of many, in C order, of (N, C) and of images, (N, C, pixels). A process of one thread does not compile the loop
    that needs several. The cache folder is that of NUMBA_CACHE_DIR, else beside the package or the user's; what lies in
    it serves CPUs of the same kind alone.

    References
    ----------
    `Numba: notes on caching <https://numba.readthedocs.io/en/stable/developer/caching.html>`_.

    Examples
    --------
    >>> import fastloss as fl
    >>> seconds = fl.warmup(["sigmoid"])
    >>> list(seconds)
    ['sigmoid']
    """
    names = _FUNCTIONS if functions is None else _several(functions)
    types = [_dtype_of(dtype) for dtype in _several(dtypes)]
    for name in names:
        if name not in _FUNCTIONS:
            raise ValueError(f"functions has {name!r}; it must be one of {', '.join(_FUNCTIONS)}")
    numbers = [_checks.index_option("classes", number) for number in _several(classes)]
    for number in numbers:
        if number < 1:
            raise ValueError(f"classes has {number}; it must be positive")
    seconds = {}
    for name in names:
        start = time.perf_counter()
        for dtype in types:
            for call in _common_calls(name, dtype, numbers):
                call()
        seconds[name] = time.perf_counter() - start
    return seconds


def _several(one_or_more: Any) -> list[Any]:
    is_one = isinstance(one_or_more, str) or not isinstance(one_or_more, Iterable)
    return [one_or_more] if is_one else list(one_or_more)


def _dtype_of(name: DTypeLike) -> np.dtype[Any]:
    if isinstance(name, str) and name == "bfloat16":
        importlib.import_module("ml_dtypes")  # before that, NumPy does not know the name
    try:
        dtype = np.dtype("O" if name is None else name)  # NumPy makes float64 of None
    except TypeError:
        raise TypeError(f"dtypes has {name!r}; it must be {_checks.FLOATS}") from None
    if not _checks.is_float(dtype):
        raise TypeError(f"dtypes has {dtype}; it must be {_checks.FLOATS}")
    return dtype


def _common_calls(name: str, dtype: np.dtype[Any], numbers: Sequence[int]) -> Iterator[Callable[[], Any]]:
    function = getattr(functional, name)
    parameters = inspect.signature(function).parameters
    of_indices, has_axis = "ignore_index" in parameters, "axis" in parameters
    of_rows = of_indices or has_axis
    for classes in numbers if of_rows else (1,):
        for rows in (1, max(-(-_threads.SERIAL_ELEMENTS // classes), _engine.FEW_ROWS)):
            for shape in ((rows, classes), (1, classes, rows)) if of_rows else ((rows, classes),):
                input = np.full(shape, 0.5, np.float32).astype(dtype)
                target = np.zeros(shape[:1] + shape[2:], np.int64) if of_indices else input
                arguments = (input, target) if "target" in parameters else (input,)
                call = partial(function, *arguments, axis=1) if has_axis else partial(function, *arguments)
                yield call
                if "return_grad" in parameters:
                    yield partial(call, return_grad=True)
