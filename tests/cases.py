"""The table of shapes, dtypes, layouts and options that the tests go through."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = [np.dtype(name) for name in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
INTEGERS = [np.dtype(kind + size) for kind, size in itertools.product("iu", "1248")]

CLASSES = [1, 2, 3, 7, 8, 9, 17, 31, 100, 256, 1003, 2051]
ROWS = [0, 1, 3, 7, 8, 9, 33]
BATCHES = list(itertools.product(ROWS, CLASSES))
VECTORS = [(1,), (2,), (9,), (256,), (1003,)]
IMAGES = [(2, 3, 5), (3, 256, 2, 3), (2, 5, 1, 4), (1, 9, 33), (2, 256, 1), (2, 1, 3, 2, 2), (0, 3, 2), (2, 3, 0)]
SHAPES: list[tuple[int, ...]] = [*BATCHES, *VECTORS, *IMAGES]

ELEMENTS: list[tuple[int, ...]] = [
    (), (0,), (1,), (7,), (8,), (9,), (31,), (4096,), (4097,), (3, 0), (33, 9), (1, 100), (2, 3, 5, 7),
]  # fmt: skip


def generator(*seeds: Any) -> np.random.Generator:
    """Return a generator of random numbers that depends on `seeds`, of any printable kind."""
    return np.random.default_rng(list(repr(seeds).encode()))


class ClassOptions(NamedTuple):
    """One line of the table of options of cross_entropy and nll_loss."""

    reduction: str = "mean"
    weighted: bool = False
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    """The class index of some rows, the default of -100 where it is None."""
    of_probabilities: bool = False


CLASS_OPTIONS = [
    ClassOptions(),
    ClassOptions("sum", ignore_index=-100),
    ClassOptions("mean", weighted=True, ignore_index=0),
    ClassOptions("none", weighted=True, label_smoothing=0.1, ignore_index=-1),
    ClassOptions("mean", label_smoothing=1.0, ignore_index=-100),
    ClassOptions("mean", of_probabilities=True),
    ClassOptions("none", weighted=True, label_smoothing=0.25, of_probabilities=True),
]


OPTIONS_OF_ALL_DTYPES = [CLASS_OPTIONS[3], CLASS_OPTIONS[6]]
"""Those that all dtypes are tested with; between them they reach every branch that knows the dtype."""


def name_of(value: Any) -> str:
    """Return the name of a parameter of a test."""
    if isinstance(value, tuple):
        return "-".join(str(field) for field in value)
    return value.name if isinstance(value, np.dtype) else str(value)


def logits_of(shape: tuple[int, ...], dtype: np.dtype[Any], scale: float = 3.0) -> np.ndarray:
    return generator("logits", shape).normal(0, scale, shape).astype(dtype)


def probabilities_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return numbers in [0, 1], both ends among them."""
    numbers = generator("probabilities", shape).uniform(-0.1, 1.1, shape)
    return np.asarray(np.clip(numbers, 0, 1)).astype(dtype)


def class_arguments(
    options: ClassOptions, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ((input, target, weight), keywords) of cross_entropy for a shape (C,) or (N, C, d1, ..., dK)."""
    axis = min(len(shape) - 1, 1)
    classes = shape[axis]
    random = generator("classes", shape)
    weight = random.uniform(0.25, 2, classes).astype(dtype) if options.weighted else None
    keywords: dict[str, Any] = {"label_smoothing": options.label_smoothing, "reduction": options.reduction}
    if options.of_probabilities:
        return (logits_of(shape, dtype), probabilities_of(shape, dtype), weight), keywords
    target = random.integers(0, classes, shape[:axis] + shape[axis + 1 :])
    if options.ignore_index is not None:
        keywords["ignore_index"] = options.ignore_index
        target = np.where(random.random(target.shape) < 0.25, options.ignore_index, target)
    return (logits_of(shape, dtype), target, weight), keywords


Layout = Callable[[np.ndarray, pathlib.Path], np.ndarray]


def by_two(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    """Return a view of every second element along each axis of a larger array."""
    view = np.zeros([2 * length for length in array.shape], array.dtype)[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def backwards(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    return np.flip(np.flip(array).copy())


def read_only(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def byte_swapped(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def memory_mapped(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    path.write_bytes(array.tobytes())
    return np.memmap(path, array.dtype, "r+", shape=array.shape)


def permuted(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    """Return a view whose first axis is the one side by side in memory, the others in order."""
    return np.moveaxis(np.moveaxis(array, 0, -1).copy(), -1, 0)


def broadcast(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    """Return a view with stride 0 along the first axis, of the first entry there."""
    return np.broadcast_to(array[:1], array.shape)


def unaligned(array: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    view = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


WRITABLE_LAYOUTS: dict[str, Layout] = {
    "C": lambda array, folder: array.copy("C"),
    "F": lambda array, folder: array.copy("F"),
    "by two": by_two,
    "backwards": backwards,
    "memory-mapped": memory_mapped,
    "permuted": permuted,
    "unaligned": unaligned,
}
"""Ways to hold the numbers of an array, all of its dtype."""

LAYOUTS: dict[str, Layout] = {
    **WRITABLE_LAYOUTS,
    "read-only": read_only,
    "byte-swapped": byte_swapped,
    "broadcast": broadcast,
}
