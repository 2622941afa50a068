"""`python -m benchmarks`: loss and gradient by fastloss and by torch, and a copy of the logits, side by side.

Every provider runs in this process with the same number of threads, in turns, after a warm-up. fastloss writes its
gradient to memory that is there already, and so does the copy; torch allocates its own, as it does in training. Before
anything is timed, the losses and gradients are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

import fastloss as fl


class Case(NamedTuple):
    """A loss at a shape."""

    title: str
    loss: str
    shape: tuple[int, ...]


CASES = [
    Case("CE 4,000,000 x 2", "cross_entropy", (4_000_000, 2)),
    Case("CE 2,000,000 x 10", "cross_entropy", (2_000_000, 10)),
    Case("CE 625,000 x 32", "cross_entropy", (625_000, 32)),
    Case("CE 200,000 x 100", "cross_entropy", (200_000, 100)),
    Case("CE 20,000 x 1,000", "cross_entropy", (20_000, 1000)),
    Case("CE 1,024 x 32,000", "cross_entropy", (1024, 32_000)),
    Case("CE (8, 19, 512, 512)", "cross_entropy", (8, 19, 512, 512)),
    Case("BCE with logits 10,000,000", "binary_cross_entropy_with_logits", (10_000_000,)),
    Case("BCE 10,000,000", "binary_cross_entropy", (10_000_000,)),
    Case("MSE 10,000,000", "mse_loss", (10_000_000,)),
]


def arguments_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return (input, target) of a case."""
    generator = np.random.default_rng(0)
    if case.loss == "cross_entropy":
        logits = generator.standard_normal(case.shape, np.float32)
        return logits, generator.integers(0, case.shape[1], case.shape[:1] + case.shape[2:])
    uniform = generator.random(case.shape, np.float32)
    if case.loss == "binary_cross_entropy":
        return generator.random(case.shape, np.float32), uniform
    return generator.standard_normal(case.shape, np.float32), uniform


def providers_of(case: Case) -> dict[str, Callable[[], Any]]:
    """Return what computes loss and gradient of `case`, or copies its logits, by the provider's name."""
    input, target = arguments_of(case)
    gradient, copy = np.empty_like(input), np.empty_like(input)
    loss = getattr(fl, case.loss)
    leaf, labels = torch.from_numpy(input).requires_grad_(), torch.from_numpy(target)
    peers_loss = getattr(torch.nn.functional, case.loss)
    source, destination = torch.from_numpy(input), torch.from_numpy(copy)

    def run_torch() -> tuple[float, np.ndarray]:
        leaf.grad = None
        value = peers_loss(leaf, labels)
        value.backward()
        assert leaf.grad is not None
        return value.item(), leaf.grad.numpy()

    return {
        "fastloss": lambda: loss(input, target, return_grad=True, out=gradient),
        "torch": run_torch,
        "copy": lambda: destination.copy_(source),
    }


def times_of(providers: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the times of each provider in milliseconds, the providers taking turns."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(rounds):
        for name, run in providers.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def lines(cases: list[Case], rounds: int) -> Iterator[str]:
    """Yield a line of the table for each case, once it is measured."""
    yield f"{'float32, ms: best (median)':28}{'fastloss':>16}{'torch':>18}{'copy':>8}{'torch/fastloss':>18}"
    for case in cases:
        providers = providers_of(case)
        (loss, gradient), (peers_loss, peers_gradient) = providers["fastloss"](), providers["torch"]()
        np.testing.assert_allclose(loss, peers_loss, rtol=1e-5)
        np.testing.assert_allclose(gradient, peers_gradient, rtol=1e-4, atol=1e-5 * np.abs(peers_gradient).max())
        times = times_of(providers, rounds)
        best = {name: min(of_provider) for name, of_provider in times.items()}
        median = {name: statistics.median(of_provider) for name, of_provider in times.items()}
        yield (
            f"{case.title:28}{best['fastloss']:7.2f} ({median['fastloss']:6.2f}){best['torch']:9.1f}"
            f" ({median['torch']:6.1f}){best['copy']:8.2f}{best['torch'] / best['fastloss']:9.1f}"
            f" ({median['torch'] / median['fastloss']:.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only the cases whose title contains this")
    parser.add_argument("--rounds", type=int, default=11, help="runs of each provider (default: %(default)s)")
    options = parser.parse_args()
    threads = numba.get_num_threads()
    torch.set_num_threads(threads)
    print(f"{threads} threads; torch {torch.__version__}, numba {numba.__version__}, numpy {np.__version__}")
    for line in lines([case for case in CASES if options.only in case.title], options.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
