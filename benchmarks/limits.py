"""`python -m benchmarks.limits`: how near the kernels come to the limit of memory, and what torch takes.

A loss must at least read its inputs once and write its gradient once. `copies` is the time over that of a copy of the
input between arrays made before, by torch on as many threads, its time scaled to the bytes that the loss must move.
For losses without a gradient, `copies` is over a sum of each of its inputs by torch. The gradient goes to an array made
before; torch is called as it is installed, with `autograd.grad` where there is a gradient.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional

import fastloss as fl

from .suite import measure
from .suite.cases import dtype_of
from .suite.providers import tensor_of, threads

Arrays = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray | None, dict[str, Any]]]
"""Makes the input, the target and the other arguments of a call."""


class Work(NamedTuple):
    """A function on arrays, with its gradient or without."""

    function: str
    arrays: Arrays
    with_grad: bool = True


def _logits(generator: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return generator.standard_normal(shape, np.float32).astype(dtype_of(dtype), copy=False)


def rows(count: int, classes: int, dtype: str = "float32", **options: Any) -> Arrays:
    """Return what makes logits of so many rows, and class indices."""
    return lambda generator: (
        _logits(generator, (count, classes), dtype), generator.integers(0, classes, count), options
    )  # fmt: skip


def _strided(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    return _logits(generator, (20_000, 1024))[:, :1000], generator.integers(0, 1000, 20_000), {}


def _image(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    return _logits(generator, (8, 19, 512, 512)), generator.integers(0, 19, (8, 512, 512)), {}


def _transposed(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    return _logits(generator, (32, 512, 1000)).transpose(0, 2, 1), generator.integers(0, 1000, (32, 512)), {}


def _probabilities(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    target = generator.random((20_000, 1000), np.float32)
    return _logits(generator, (20_000, 1000)), target / target.sum(1, keepdims=True), {}


def _smoothed(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    weight = 0.5 + generator.random(1000, np.float32)
    return rows(20_000, 1000, weight=weight, label_smoothing=0.1)(generator)  # type: ignore[return-value]


def elements(shape: tuple[int, ...], dtype: str = "float32", *, make: str = "logits") -> Arrays:
    """Return what makes targets in [0, 1], and as predictions logits, probabilities ("unit") or "logs" of these."""

    def arrays(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        target = (0.001 + 0.998 * generator.random(shape, np.float32)).astype(dtype_of(dtype), copy=False)
        if make == "logits":
            return _logits(generator, shape, dtype), target, {}
        unit = (0.001 + 0.998 * generator.random(shape, np.float32)).astype(dtype_of(dtype), copy=False)
        return (unit if make == "unit" else np.log(unit)), target, {}

    return arrays


def _weighted(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    input, target, _ = elements((100_000, 100))(generator)
    weights = {name: 0.5 + generator.random(100, np.float32) for name in ("weight", "pos_weight")}
    return input, target, weights  # type: ignore[return-value]


def without_target(count: int, classes: int) -> Arrays:
    return lambda generator: (_logits(generator, (count, classes)), None, {})


CE, BCE_WITH_LOGITS = "cross_entropy", "binary_cross_entropy_with_logits"

WORK = {
    "CE 4,000,000 x 2": Work(CE, rows(4_000_000, 2)),
    "CE 3,000,000 x 3": Work(CE, rows(3_000_000, 3)),
    "CE 2,000,000 x 10": Work(CE, rows(2_000_000, 10)),
    "CE 625,000 x 32": Work(CE, rows(625_000, 32)),
    "CE 200,000 x 100": Work(CE, rows(200_000, 100)),
    "CE 20,000 x 1,000": Work(CE, rows(20_000, 1000)),
    "CE 20,000 x 1,003": Work(CE, rows(20_000, 1003)),
    "CE 20,000 x 1,000 of rows of 1,024": Work(CE, _strided),
    "CE 1,024 x 32,000": Work(CE, rows(1024, 32_000)),
    "CE 256 x 128,256": Work(CE, rows(256, 128_256)),
    "CE 390 x 50,257": Work(CE, rows(390, 50_257)),
    "CE (8, 19, 512, 512)": Work(CE, _image),
    "CE (32, 512, 1,000) transposed": Work(CE, _transposed),
    "CE 20,000 x 1,000, probabilities": Work(CE, _probabilities),
    "CE 20,000 x 1,000, smoothing, weights": Work(CE, _smoothed),
    "CE 1 x 50,000,000": Work(CE, rows(1, 50_000_000)),
    "CE 20,000 x 1,000, float64": Work(CE, rows(20_000, 1000, "float64")),
    "CE 20,000 x 1,000, bfloat16": Work(CE, rows(20_000, 1000, "bfloat16")),
    "CE 20,000 x 1,000, float16": Work(CE, rows(20_000, 1000, "float16")),
    "BCE with logits 10,000,000": Work(BCE_WITH_LOGITS, elements((10_000_000,))),
    "BCE with logits 10,000,000, float64": Work(BCE_WITH_LOGITS, elements((10_000_000,), "float64")),
    "BCE with logits 100,000 x 100, weights": Work(BCE_WITH_LOGITS, _weighted),
    "BCE 10,000,000": Work("binary_cross_entropy", elements((10_000_000,), make="unit")),
    "MSE 10,000,000": Work("mse_loss", elements((10_000_000,))),
    "KL 10,000,000": Work("kl_div", elements((10_000_000,), make="logs")),
    "log_softmax 20,000 x 1,000": Work("log_softmax", without_target(20_000, 1000)),
    "log_softmax 2,000,000 x 10": Work("log_softmax", without_target(2_000_000, 10)),
    "softmax 20,000 x 1,000": Work("softmax", without_target(20_000, 1000)),
    "softmax 2,000,000 x 10": Work("softmax", without_target(2_000_000, 10)),
    "forward CE 4,000,000 x 2": Work(CE, rows(4_000_000, 2), with_grad=False),
    "forward CE 2,000,000 x 10": Work(CE, rows(2_000_000, 10), with_grad=False),
    "forward CE 20,000 x 1,000": Work(CE, rows(20_000, 1000), with_grad=False),
    "forward CE 1,024 x 32,000": Work(CE, rows(1024, 32_000), with_grad=False),
    "forward BCE with logits 10,000,000": Work(BCE_WITH_LOGITS, elements((10_000_000,)), with_grad=False),
}
"""The losses and softmax functions at the shapes, dtypes and layouts for which their kernels differ."""


def runs_of(work: Work) -> tuple[dict[str, Callable[[], Any]], float]:
    """Return fastloss, its limit and torch as calls, and the factor that scales the time of the limit to its bytes."""
    input, target, options = work.arrays(np.random.default_rng(0))
    arrays = [input] if target is None else [input, target]
    tensors = [tensor_of(array) for array in arrays]
    function, own = getattr(fl, work.function), getattr(torch.nn.functional, work.function)
    of_tensors = {name: tensor_of(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    if target is None:
        run = functools.partial(function, input, 1, out=np.empty_like(input))
        of_torch: Callable[[], Any] = functools.partial(own, tensors[0], 1)
    elif work.with_grad:
        run = functools.partial(function, *arrays, **options, return_grad=True, out=np.empty_like(input))
        leaf = tensors[0].detach().requires_grad_()

        def of_torch() -> Any:
            return torch.autograd.grad(own(leaf, *tensors[1:], **of_tensors), leaf)
    else:
        run = functools.partial(function, *arrays, **options)
        of_torch = functools.partial(own, *tensors, **of_tensors)
        return {"fastloss": run, "limit": lambda: [tensor.sum() for tensor in tensors], "torch": of_torch}, 1.0
    dense = tensors[0].contiguous()
    bytes_moved = sum(array.nbytes for array in arrays) + input.nbytes
    copy = functools.partial(tensor_of(np.empty(input.shape, input.dtype)).copy_, dense)  # memory like the gradient's
    return {"fastloss": run, "limit": copy, "torch": of_torch}, bytes_moved / (2 * input.nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="only cases with this in their title; repeatable")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each side (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(threads())
    warnings.filterwarnings("ignore", message="reduction: 'mean' divides", category=UserWarning)  # torch's, of kl_div
    print(
        "| case | ms, best | median | copies, best | median | times torch |", "| --- " + "| ---: " * 5 + "|", sep="\n"
    )
    for title, work in WORK.items():
        if options.only and not any(text in title for text in options.only):
            continue
        runs, scale = runs_of(work)
        times = measure.alternate(runs, options.rounds)
        best, median = times["fastloss"]
        copies = [time / (scale * limit) for time, limit in zip(times["fastloss"], times["limit"], strict=True)]
        print(
            f"| {title} | {best:.2f} | {median:.2f} | {copies[0]:.2f} | {copies[1]:.2f} | "
            f"{times['torch'].best / best:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
