"""`python -m benchmarks.training`: what a training step spends in the loss, beside the bare kernel.

The logits come from a linear layer and the gradient goes back through it, step after step. The time in the loss is that
from its call until its gradient is there. The kernel's is that of the NumPy function with `out=`, in turns with them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import fastloss as fl
from fastloss import nn

FEATURES = 8
"""Columns of the linear layer's input: few, so that most of a step is the loss."""

SHAPES = ((20_000, 1_000), (1_024, 32_000), (2_000_000, 10))


def milliseconds_of_step(
    layer: torch.nn.Module, features: Tensor, target: Tensor, loss: Callable[..., Tensor]
) -> float:
    """Do a step without the optimiser's; return the milliseconds spent in the loss."""
    layer.zero_grad()
    logits = layer(features)
    arrived = []
    logits.register_hook(lambda _: arrived.append(time.perf_counter()))
    start = time.perf_counter()
    loss(logits, target).backward()
    return 1e3 * (arrived[0] - start)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="steps for each shape and loss (default: %(default)s)")
    options = parser.parse_args()
    losses = {"fastloss.nn": nn.CrossEntropyLoss(), "torch.nn": torch.nn.CrossEntropyLoss()}
    for rows, classes in SHAPES:
        torch.manual_seed(0)
        layer, features = torch.nn.Linear(FEATURES, classes), torch.randn(rows, FEATURES)
        target = torch.randint(classes, (rows,))
        logits = layer(features).detach().numpy()
        out, labels = np.empty_like(logits), target.numpy()
        times: dict[str, list[float]] = {name: [] for name in ("kernel", *losses)}
        for _ in range(1 + options.steps):  # the first one is not counted
            for name, loss in losses.items():
                times[name].append(milliseconds_of_step(layer, features, target, loss))
            start = time.perf_counter()
            fl.cross_entropy(logits, labels, return_grad=True, out=out)
            times["kernel"].append(1e3 * (time.perf_counter() - start))
        print(f"{rows:,} x {classes:,}")
        for name, some in times.items():
            best, median = min(some[1:]), statistics.median(some[1:])
            ratios = f"{best / min(times['kernel'][1:]):6.2f} {median / statistics.median(times['kernel'][1:]):6.2f}"
            print(f"    {name:12}{best:9.2f} ms, median {median:9.2f}; by the kernel's {ratios}", flush=True)


if __name__ == "__main__":
    main()
