"""`python -m benchmarks.crossovers`: from how many elements on fastloss.nn is faster than torch's own functions.

For each function, rows by powers of two and some numbers of classes, loss and gradient through autograd, or the forward
pass alone, are timed by the kernels and by torch in turns. A crossover is the least number of elements (of `nll_loss`
without a gradient, which reads one of each row: of rows) from which on no shape of the grid is slower than torch: the
source of `CROSSOVERS` in fastloss/nn/functional.py, which has one for each range of numbers of classes.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as own

import fastloss.nn.functional as F

LARGEST = 1 << 24
"""Elements of the largest inputs."""

CLASSES = (2, 3, 5, 7, 8, 10, 16, 17, 32, 128, 512, 2048, 8192, 32768, 131072)

ROWS = [1 << i for i in range(24)]


def shapes_of(name: str) -> list[tuple[int, ...]]:
    """Return the grid for the function `name`: rows, and for those of classes one image whose pixels are the rows."""
    grid: list[tuple[int, ...]] = [(n, c) for n, c in itertools.product(ROWS, CLASSES) if n * c <= LARGEST]
    return grid + [(1, c, n) for n, c in grid if n > 1 and c <= 512] if len(F.CROSSOVERS[name]) > 1 else grid


def tier_of(name: str, shape: tuple[int, ...]) -> int:
    """Return which of its `CROSSOVERS` holds for the function `name` at `shape`."""
    tiers = len(F.CROSSOVERS[name])
    return bisect.bisect_left(F.CLASSES_OF_CROSSOVERS, shape[1]) if tiers > 1 and len(shape) == 2 else tiers - 1


def arguments_of(name: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    if name in ("cross_entropy", "nll_loss"):
        return (torch.randint(shape[1], shape[:1] + shape[2:], generator=generator),)
    if name in ("softmax", "log_softmax"):
        return (1,)
    return () if name in ("sigmoid", "logsigmoid") else (torch.rand(shape, generator=generator),)


def call_of(module: Any, name: str, shape: tuple[int, ...], with_grad: bool) -> Callable[[], Any]:
    """Return what computes `name` at `shape`, and its gradient by autograd if `with_grad`."""
    leaf = torch.rand(shape, generator=torch.Generator().manual_seed(1)).requires_grad_(with_grad)
    function, arguments = getattr(module, name), arguments_of(name, shape)
    options = {"reduction": "sum"} if name.endswith(("loss", "entropy", "logits", "div")) else {}
    upstream = None if options else torch.ones(shape)

    def run() -> None:
        result = function(leaf, *arguments, **options)
        if with_grad:
            leaf.grad = None
            result.backward(upstream)

    return run


def seconds_of(run: Callable[[], Any], repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        run()
    return (time.perf_counter() - start) / repetitions


def ratio_of(name: str, shape: tuple[int, ...], with_grad: bool, rounds: int) -> float:
    """Return torch's time over that of the kernels, each the best of some rounds in turns."""
    providers = [call_of(module, name, shape, with_grad) for module in (own, F)]
    best = [seconds_of(run, 3) for run in providers]
    repetitions = max(int(2e-3 / max(best)), 1)
    for _ in range(rounds):
        best = [min(least, seconds_of(run, repetitions)) for least, run in zip(best, providers, strict=True)]
    return best[0] / best[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crossovers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only the functions whose name contains this")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each provider (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="print every shape")
    parser.add_argument("--as-is", action="store_true", help="leave FASTLOSS_MIN_SIZE alone: what users get")
    options = parser.parse_args()
    if not options.as_is:
        os.environ["FASTLOSS_MIN_SIZE"] = "0"
    for name, with_grad in itertools.product(F.CROSSOVERS, (True, False)):
        if options.only not in name:
            continue
        ratios = {shape: ratio_of(name, shape, with_grad, options.rounds) for shape in shapes_of(name)}
        sizes = {shape: math.prod(shape) for shape in ratios}
        if name == "nll_loss" and not with_grad:
            sizes = {shape: size // shape[1] for shape, size in sizes.items()}
        for tier in range(len(F.CROSSOVERS[name])):
            of_tier = [shape for shape in ratios if tier_of(name, shape) == tier]
            last_slower = max((sizes[shape] for shape in of_tier if ratios[shape] < 1), default=0)
            first = min((sizes[shape] for shape in of_tier if sizes[shape] > last_slower), default=LARGEST)
            worst = min(of_tier, key=ratios.__getitem__)
            most = dict(enumerate(F.CLASSES_OF_CROSSOVERS)).get(tier, "other") if len(F.CROSSOVERS[name]) > 1 else "any"
            print(
                f"{name:33}{'loss and gradient' if with_grad else 'forward':18}{most:>5} classes: faster from "
                f"{first:>10,} on; least {ratios[worst]:.2f} x torch's speed at {worst}",
                flush=True,
            )
        if options.all:
            for shape, ratio in ratios.items():
                print(f"    {' x '.join(f'{length:,}' for length in shape):24}{ratio:8.2f}")


if __name__ == "__main__":
    main()
