"""The table of cases, and their inputs."""

from __future__ import annotations

import functools
import math
import os
from typing import Any, NamedTuple

import numpy as np

MODES = ("forward", "gradient", "autograd")
"""The loss alone; the loss and the gradient of its mean; a step as in training, `.grad = None` to `.backward()`."""

DTYPES = ("float32", "float64", "bfloat16", "float16")

TINY = os.environ.get("FASTLOSS_BENCHMARKS") == "tiny"
"""Whether every shape is replaced by a tiny one, to see that things run."""


class Case(NamedTuple):
    """A loss at a shape, whose axis 1 holds the classes if it has any."""

    loss: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def title(self) -> str:
        """Return what tables call it, which is unique."""
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"{TITLES[self.loss]} {shape_text(self.shape)}{dtype}"

    @property
    def of_classes(self) -> bool:
        """Return whether the target holds class indices."""
        return self.loss in ("cross_entropy", "nll_loss")

    def modes(self) -> tuple[str, ...]:
        """Return the modes that it has: log_softmax is no loss, and has no gradient of its own."""
        return ("forward", "autograd") if self.loss == "log_softmax" else MODES

    def tiny(self) -> Case:
        """Return a tiny case of the same loss, dtype and number of axes, large enough for all threads."""
        if len(self.shape) == 1:
            return self._replace(shape=(min(self.shape[0], 40_000),))
        classes = min(self.shape[1], 1000)
        rest = tuple(min(length, 6) for length in self.shape[2:])
        return self._replace(shape=(min(self.shape[0], 40_000 // (classes * math.prod(rest)) + 1), classes, *rest))

    def bytes_moved(self, mode: str) -> int:
        """Return the least bytes that must be read and written: each input and each result once.

        Of nll_loss's input, one element a row is read.
        """
        size, itemsize = math.prod(self.shape), dtype_of(self.dtype).itemsize
        rows = size // self.shape[1] if len(self.shape) > 1 else size
        read = rows * itemsize if self.loss == "nll_loss" else size * itemsize
        if self.of_classes:
            read += rows * np.dtype(np.int64).itemsize
        elif self.loss != "log_softmax":
            read += size * itemsize
        if self.loss == "log_softmax":
            # The result; and, in a step, the upstream gradient, the result again, and the gradient.
            return read + size * itemsize * (1 if mode == "forward" else 4)
        return read + (0 if mode == "forward" else size * itemsize)


TITLES = {
    "cross_entropy": "CE",
    "binary_cross_entropy_with_logits": "BCE with logits",
    "binary_cross_entropy": "BCE",
    "nll_loss": "NLL",
    "mse_loss": "MSE",
    "kl_div": "KL",
    "log_softmax": "log_softmax",
}

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "cross_entropy": (
        (4_000_000, 2),
        (2_000_000, 10),
        (200_000, 100),
        (20_000, 1000),
        (1024, 32_000),
        (256, 128_256),
        (8, 19, 512, 512),
    ),
    "binary_cross_entropy_with_logits": ((10_000,), (100_000,), (1_000_000,), (10_000_000,)),
    "binary_cross_entropy": ((10_000_000,),),
    "nll_loss": ((200_000, 100),),
    "mse_loss": ((10_000_000,),),
    "kl_div": ((20_000, 1000),),
    "log_softmax": ((20_000, 1000),),
}
"""The shapes at which each loss is measured in float32."""

DTYPES_AT: dict[str, tuple[tuple[int, ...], ...]] = {
    "cross_entropy": ((2_000_000, 10), (20_000, 1000)),
    "binary_cross_entropy_with_logits": ((1_000_000,),),
}
"""The shapes at which a loss is measured in the other dtypes too: one of few classes, one of many, one of none."""

CASES = [Case(loss, shape) for loss, shapes in SHAPES.items() for shape in shapes] + [
    Case(loss, shape, dtype) for loss, shapes in DTYPES_AT.items() for shape in shapes for dtype in DTYPES[1:]
]

QUICK = [Case("cross_entropy", (20_000, 1000)), Case("binary_cross_entropy_with_logits", (1_000_000,))]
"""Those of `--quick`."""


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it."""
    if len(shape) > 2:
        return f"({', '.join(map(str, shape))})"
    return " x ".join(f"{length:,}" for length in shape)


def sized(case: Case) -> Case:
    """Return the case as it is run: itself, or its tiny twin where FASTLOSS_BENCHMARKS=tiny asks for that."""
    return case.tiny() if TINY else case


def dtype_of(name: str) -> np.dtype[Any]:
    """Return a dtype by its name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@functools.lru_cache(maxsize=1)
def inputs_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return (input, target) of a case, always the same; for log_softmax, (input, upstream gradient).

    Logits and predictions are standard normal; probabilities are uniform, 0.001 away from 0 and 1, where the
    derivatives of `binary_cross_entropy` are not clamped.
    """
    generator = np.random.default_rng(0)
    dtype = dtype_of(case.dtype)

    def normal() -> np.ndarray:
        return generator.standard_normal(case.shape, np.float32).astype(dtype, copy=False)

    def uniform() -> np.ndarray:
        return (0.001 + 0.998 * generator.random(case.shape, np.float32)).astype(dtype, copy=False)

    if case.of_classes:
        target = generator.integers(0, case.shape[1], case.shape[:1] + case.shape[2:])
        return (-uniform() if case.loss == "nll_loss" else normal()), target
    if case.loss == "binary_cross_entropy":
        return uniform(), uniform()
    if case.loss == "kl_div":
        return -uniform(), uniform()
    return normal(), (normal() if case.loss == "log_softmax" else uniform())
