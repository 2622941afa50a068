"""A program for test_guard_pages.py: calls one function of fastloss on arrays that lie against unreadable pages.

    python guarded.py cross_entropy small

With "racing" in the place of "small", another thread writes valid and huge class indices to the target meanwhile.

Reading or writing one byte outside an array kills this process. Each case is printed before it runs, so that the last
line of the output names the one that did. The results are compared with plain NumPy in float64.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

import fastloss as fl
from fastloss import _checks, _engine, _threads

CLASSES = (1, 2, 3, 7, 8, 9, 17, 31, 100, 130, 256, 258, 1003, 2080)
ROWS = (1, 2, 7, 8, 9, 33)
LARGE_BYTES = (8 << 20) + 4096
PAGE = mmap.PAGESIZE
CLASS_LOSSES, CLASS_FUNCTIONS = ("cross_entropy", "nll_loss"), ("softmax", "log_softmax", "logsumexp")
LOG_TARGET = "kl_div with log_target"
ELEMENT_LOSSES = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "kl_div", LOG_TARGET)
ELEMENT_FUNCTIONS = ("sigmoid", "log_sigmoid")
FUNCTIONS = CLASS_LOSSES + CLASS_FUNCTIONS + ELEMENT_LOSSES + ELEMENT_FUNCTIONS

FULL = np.dtype(np.float32)
"""The dtype of every case; with the others those are left out that compile one more kernel, which takes seconds."""

DTYPES = (FULL, *map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float64)))
VARIANTS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("weighted", "probabilities", "strided target"),
    "nll_loss": ("weighted", "strided target"),
    **dict.fromkeys(ELEMENT_LOSSES[:3], ("weighted", "by row", "by class")),
}

Shape = tuple[int, ...]


def _forbid(address: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0) != 0:  # PROT_NONE
        raise OSError(ctypes.get_errno(), "mprotect")


def guarded_empty(shape: Shape, dtype: Any, side: str, skipped: int = 0) -> np.ndarray:
    """Return a new C-contiguous array, all of its bytes 0xff, between two unreadable pages.

    It ends where the second begins or, if `side` is "begin", begins `skipped` elements after the first.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    usable = -(-max((count + skipped) * dtype.itemsize, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, usable + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _forbid(address)
    _forbid(address + PAGE + usable)
    offset = skipped * dtype.itemsize if side == "begin" else usable - count * dtype.itemsize
    data = np.frombuffer(memory, np.uint8, count * dtype.itemsize, PAGE + offset)
    data[...] = 0xFF
    return data.view(dtype).reshape(shape)


class Place:
    """Where the arrays of a case lie: against which page, and in which layout (the last two axes being row, class)."""

    def __init__(self, side: str, layout: str = "contiguous", skipped: int = 0) -> None:
        self.side, self.layout, self.skipped = side, layout, skipped

    def empty(self, shape: Shape, dtype: Any) -> np.ndarray:
        if self.layout == "class-strided" and len(shape) > 1:
            return guarded_empty(shape[::-1], dtype, self.side, self.skipped).T
        if self.layout == "padded rows" and len(shape) > 1:
            array = guarded_empty((*shape[:-1], shape[-1] + 3), dtype, self.side, self.skipped)
            return array[..., 3:] if self.side == "end" else array[..., :-3]
        return guarded_empty(shape, dtype, self.side, self.skipped)

    def copy(self, values: np.ndarray) -> np.ndarray:
        array = self.empty(values.shape, values.dtype)
        array[...] = values
        return array

    def class_indices(self, labels: np.ndarray, strided: bool) -> np.ndarray:
        """Return a copy that is not padded, or else one of every second element."""
        array = guarded_empty((*labels.shape, 1 + strided), labels.dtype, self.side, self.skipped)
        array = array[..., -1 if self.side == "end" else 0]
        array[...] = labels
        return array

    def __str__(self) -> str:
        return f"{self.layout}, {self.side} + {self.skipped}"


def guard_engine(side: str) -> None:
    """Make the arrays that the engine allocates itself lie against an unreadable page too."""
    guarded = types.SimpleNamespace(**vars(np))
    guarded.empty = lambda shape, dtype=float: guarded_empty(
        shape if isinstance(shape, tuple) else (shape,), dtype, side
    )

    def empty_like(like: np.ndarray, dtype: Any = None, subok: bool = False) -> np.ndarray:
        axes = sorted(range(like.ndim), key=lambda axis: -abs(like.strides[axis]))
        array = guarded_empty(tuple(like.shape[axis] for axis in axes), dtype or like.dtype, side)
        return array.transpose(np.argsort(axes))

    guarded.empty_like = empty_like
    _engine.np = guarded  # type: ignore[assignment]  # a stand-in that allocates behind guard pages


def check(actual: Any, expected: np.ndarray, dtype: np.dtype) -> None:
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.float64(actual), expected, rtol=8 * epsilon, atol=8 * epsilon)


def check_sum(actual: Any, terms: np.ndarray, dtype: np.dtype) -> None:
    """Check a sum whose terms may cancel; float16 holds it only up to 65,504."""
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    assert actual.dtype == dtype
    with np.errstate(over="ignore"):
        expected = np.float64(terms.sum().astype(dtype))
    assert actual == expected or abs(np.float64(actual) - expected) <= 8 * epsilon * (1 + abs(terms).sum())


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def class_case(name: str, dtype: np.dtype, shape: Shape, place: Place, variant: str) -> None:
    """Call a loss of classes with index targets, a third of them ignored, or with probabilities."""
    rng = np.random.default_rng(sum(shape))
    x = place.copy(rng.normal(size=shape).astype(dtype))
    classes = shape[1]
    exact = x.astype(np.float64)
    log_p = log_softmax(exact) if name == "cross_entropy" else exact
    options: dict[str, Any] = {}
    weight = np.ones(classes)
    if variant == "probabilities":
        target = place.copy(rng.random(shape).astype(dtype))
        q = target.astype(np.float64)
    else:
        labels = rng.integers(0, classes, (shape[0], *shape[2:]))
        labels[rng.random(labels.shape) < 0.3] = -100
        if dtype.itemsize == 2:
            labels = labels.astype(np.min_scalar_type(-classes - 128))
        target = place.class_indices(labels, variant == "strided target")
        if variant == "weighted":
            options["weight"] = place.copy(
                rng.random(classes).astype(np.float64 if dtype == np.float64 else np.float32)
            )
            weight = options["weight"].astype(np.float64)
        one_hot = np.moveaxis(labels[..., None] == np.arange(classes), -1, 1)
        q = one_hot.astype(np.float64)
        if variant == "weighted" and name == "cross_entropy" and classes % 2 == 0:
            options["label_smoothing"] = 0.25
            q = np.where(one_hot.any(axis=1, keepdims=True), 0.75 * q + 0.25 / classes, 0.0)
    q = q * weight.reshape(-1, *[1] * (len(shape) - 2))
    out = place.empty(shape, dtype)
    losses, gradient = getattr(fl, name)(x, target, **options, reduction="none", return_grad=True, out=out)
    assert gradient is out
    check(losses, -(q * log_p).sum(axis=1), dtype)
    expected = q.sum(axis=1, keepdims=True) * np.exp(log_p) - q if name == "cross_entropy" else -q
    check(gradient, expected, dtype)
    if variant != "plain" or dtype != FULL:
        return
    check_sum(getattr(fl, name)(x, target, reduction="sum"), -(q * log_p), dtype)
    for position, value in ((0, -1), (-1, classes), (labels.size // 2, 2**62)):
        bad = place.class_indices(labels, strided=False)
        bad[np.unravel_index(position % labels.size, labels.shape)] = value
        out[...] = 7.0
        try:
            getattr(fl, name)(x, bad, reduction="none", return_grad=True, out=out)
        except IndexError:
            assert (out == 7.0).all()
        else:
            raise AssertionError(f"the class index {value} raised nothing")


def class_function_case(name: str, dtype: np.dtype, shape: Shape, place: Place, variant: str) -> None:
    x = place.copy(np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype))
    exact = x.astype(np.float64)
    log_p = log_softmax(exact)
    expected = {"softmax": np.exp(log_p), "log_softmax": log_p, "logsumexp": (exact - log_p)[:, 0]}[name]
    out = place.empty(expected.shape, dtype)
    assert getattr(fl, name)(x, 1, out=out) is out
    check(out, expected, dtype)


def element_case(name: str, dtype: np.dtype, shape: Shape, place: Place, variant: str) -> None:
    rng = np.random.default_rng(sum(shape))
    x = place.copy((rng.random(shape) * 0.75 + 0.125).astype(dtype))
    target = place.copy((rng.random(shape) * 0.75 + 0.125).astype(dtype))
    e, t = x.astype(np.float64), target.astype(np.float64)
    options: dict[str, Any] = {"log_target": True} if name == LOG_TARGET else {}
    w, p = np.ones(1), np.ones(1)
    if variant != "plain":
        weight_shape = {"by row": (shape[0], 1), "by class": shape[1:]}.get(variant, shape)
        options["weight"] = place.copy(rng.random(weight_shape).astype(dtype))
        w = options["weight"].astype(np.float64)
        if name == "binary_cross_entropy_with_logits":
            options["pos_weight"] = place.copy(rng.random(shape[1:]).astype(dtype))
            p = options["pos_weight"].astype(np.float64)
    s = 1 + (p - 1) * t
    losses, gradient = {
        "binary_cross_entropy": lambda: (-t * np.log(e) - (1 - t) * np.log(1 - e), (e - t) / (e * (1 - e))),
        "binary_cross_entropy_with_logits": lambda: (
            (1 - t) * e + s * np.log1p(np.exp(-e)),
            1 - t - s / (1 + np.exp(e)),
        ),
        "mse_loss": lambda: ((e - t) ** 2, 2 * (e - t)),
        "kl_div": lambda: (t * (np.log(t) - e), -t),
        LOG_TARGET: lambda: (np.exp(t) * (t - e), -np.exp(t)),
    }[name]()
    losses, gradient = w * losses, w * gradient
    function = getattr(fl, name.split()[0])
    out = place.empty(shape, dtype)
    actual = function(x, target, **options, reduction="none", return_grad=True, out=out)
    assert actual[1] is out
    check(actual[0], losses, dtype)
    check(out, gradient, dtype)
    if variant == "plain" and dtype == FULL:
        check_sum(function(x, target, **options, reduction="sum"), losses, dtype)


def element_function_case(name: str, dtype: np.dtype, shape: Shape, place: Place, variant: str) -> None:
    x = place.copy(np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype))
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    out = place.empty(shape, dtype)
    assert getattr(fl, name)(x, out=out) is out
    check(out, p if name == "sigmoid" else np.log(p), dtype)


def unchecked(kernel: Any, elements: int, blocks: int, *arguments: Any) -> None:
    """Have `kernel` do its blocks like `_threads.run`, but none of what it does before them."""
    arguments[-1][-2] = 1.0  # the weight
    for block in range(blocks):
        kernel(0, blocks, block, *arguments)


def racing(name: str) -> None:
    """Call a loss of classes while its target changes: wherever it is looked at, it may be out of range.

    Half of the calls do without the check that a kernel begins with, so that those of its blocks have to hold.
    """
    checked = _threads.run
    for classes, rows in ((2, 20_000), (7, 10_000), (40, 2_000), (200, 1_000), (258, 1_000), (65_536 + 9, 3)):
        place = Place("end")
        rng = np.random.default_rng(classes)
        x = place.copy(rng.normal(size=(rows, classes)).astype(np.float32))
        weight = place.copy(rng.random(classes).astype(np.float32))
        valid = rng.integers(0, classes, rows)
        huge = rng.choice(np.array([classes, -1, 2**31, 2**40, 2**62, -(2**62)]), rows)
        target, out = place.copy(valid), place.empty(x.shape, np.float32)
        stop = threading.Event()

        def flip(target: np.ndarray, stop: threading.Event, *values: np.ndarray) -> None:
            while not stop.is_set():
                for some in values:
                    target[...] = some

        thread = threading.Thread(target=flip, args=(target, stop, huge, valid), daemon=True)
        thread.start()
        for call in range(200):
            _threads.run = checked if call % 2 else unchecked
            out[...] = 7
            few = classes < 10  # whose kernels look at blocks of indices where there are no weights, or no gradient
            with_grad = not few or call % 8 < 6
            try:
                getattr(fl, name)(
                    x,
                    target,
                    None if few and call % 4 < 2 else weight,
                    return_grad=with_grad,
                    out=out if with_grad else None,
                )
            except IndexError:
                assert (out == 7).all()
        stop.set()
        thread.join()


Work = tuple[np.dtype, Shape, Place, str]


def small_cases(name: str) -> Iterator[Work]:
    """All layouts and sizes with each dtype.

    The variants of a loss of classes are other kernels, so that dtypes but `FULL` have one of them for few classes and
    another for many, which are different kernels too: all of dtypes, variants and kernels meet in pairs.
    """
    of_classes = name in CLASS_LOSSES + CLASS_FUNCTIONS
    layouts = ("contiguous", "class-strided", "padded rows") if of_classes else ("contiguous", "padded rows")
    variants = VARIANTS.get(name, ())
    for (number, dtype), side in itertools.product(enumerate(DTYPES), ("end", "begin")):
        for layout, rows, classes in itertools.product(layouts, ROWS, CLASSES):
            yield dtype, (rows, classes), Place(side, layout), "plain"
        for classes, shape in itertools.product(CLASSES if name in CLASS_LOSSES else (), ((3, 7), (2, 33))):
            yield dtype, (shape[0], classes, shape[1]), Place(side), "plain"
        for (position, variant), rows, classes in itertools.product(enumerate(variants), (2, 8, 9), CLASSES):
            many = classes * _checks.accumulator(dtype).itemsize >= _engine.ROW_BYTES_FROM
            turn = (number + many) % len(variants)
            if dtype == FULL or not of_classes or position == turn:
                yield dtype, (rows, classes), Place(side), variant


def large_cases(name: str) -> Iterator[Work]:
    """Outputs that bypass the caches, their first element at any place in a cache line; and rows cut into chunks."""
    of_classes = name in CLASS_LOSSES + CLASS_FUNCTIONS
    for number, dtype in enumerate(DTYPES):
        elements = LARGE_BYTES // dtype.itemsize
        cases = [((elements // 1003 + 1, 1003), "contiguous"), ((elements // 1003 + 1, 1003), "padded rows")]
        if of_classes:
            cases = [((3, 65_536 + 9), "contiguous"), ((2, elements // 2 + 1), "contiguous")]
        if of_classes and name != "logsumexp":  # whose output is small
            cases += [((elements // classes + 1, classes), "contiguous") for classes in (2, 24, 100, 1003)]
            cases += [((elements // classes + 1, classes), "class-strided") for classes in (7, 20)]
        for position, (shape, layout) in enumerate(cases):
            places = Place("end", layout), Place("begin", layout, skipped=1)
            for place in places if dtype == FULL else [places[(number + position) % 2]]:
                yield dtype, shape, place, "plain"


def main(name: str, size: str) -> None:
    if size == "racing":
        racing(name)
        return
    run = next(
        case
        for names, case in (
            (CLASS_LOSSES, class_case),
            (CLASS_FUNCTIONS, class_function_case),
            (ELEMENT_LOSSES, element_case),
            (ELEMENT_FUNCTIONS, element_function_case),
        )
        if name in names
    )
    for dtype, shape, place, variant in {"small": small_cases, "large": large_cases}[size](name):
        print(dtype, shape, place, variant, flush=True)
        guard_engine(place.side)
        run(name, dtype, shape, place, variant)


if __name__ == "__main__":
    main(*sys.argv[1:])
