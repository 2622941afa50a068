"""`python -m benchmarks.crossovers`: from how many elements on fastloss.nn is faster than torch's own functions.

For each function and a grid of shapes by powers of four, loss and gradient through autograd, or the forward pass alone,
are timed by the kernels and by torch in turns. A crossover is the least number of elements (of `nll_loss` without a
gradient, which reads one of each row: of rows) from which on no shape of the grid is slower than torch: the source of
`CROSSOVERS` in fastloss/nn/functional.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as own

import fastloss.nn.functional as F

LARGEST = 1 << 24
"""Elements of the largest inputs."""

SHAPES = [
    (n, c) for n, c in itertools.product([4**i for i in range(12)], [2 * 4**i for i in range(9)]) if n * c <= LARGEST
]


def arguments_of(name: str, shape: tuple[int, int]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    if name in ("cross_entropy", "nll_loss"):
        return (torch.randint(shape[1], shape[:1], generator=generator),)
    if name in ("softmax", "log_softmax"):
        return (1,)
    return () if name in ("sigmoid", "logsigmoid") else (torch.rand(shape, generator=generator),)


def call_of(module: Any, name: str, shape: tuple[int, int], with_grad: bool) -> Callable[[], Any]:
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


def ratio_of(name: str, shape: tuple[int, int], with_grad: bool, rounds: int) -> float:
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
        ratios = {shape: ratio_of(name, shape, with_grad, options.rounds) for shape in SHAPES}
        sizes = {(n, c): n if name == "nll_loss" and not with_grad else n * c for n, c in SHAPES}
        slower = [sizes[shape] for shape, ratio in ratios.items() if ratio < 1]
        larger = [size for size in sizes.values() if size > max(slower, default=0)]
        first = min(larger, default=LARGEST)
        worst = min(ratios, key=lambda shape: ratios[shape])
        print(
            f"{name:34}{'loss and gradient' if with_grad else 'forward':19}faster from {first:>8,} elements on;"
            f" least {ratios[worst]:.2f} x torch's speed at {worst}",
            flush=True,
        )
        if options.all:
            for shape, ratio in ratios.items():
                print(f"    {shape[0]:>8,} x {shape[1]:<8,}{ratio:8.2f}")


if __name__ == "__main__":
    main()
