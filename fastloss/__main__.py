"""`python -m fastloss`: what a bug report needs, a check of each loss, and the main job against NumPy and torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastloss as fl

ROUNDS = 3
"""Times that each provider runs; the best one counts."""

PARTS = 100
"""Parts in which the results are compared with float64."""


def environment() -> Iterator[tuple[str, str]]:
    """Yield (name, value) of what the results depend on."""
    import llvmlite.binding
    import numba

    yield "fastloss", fl.__version__
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package in ("numba", "llvmlite", "numpy", "torch", "ml_dtypes"):
        if importlib.util.find_spec(package):
            yield package, importlib.metadata.version(package)
        else:
            yield package, "not installed"
    yield "CPU", f"{_cpu_name()} ({llvmlite.binding.get_host_cpu_name()}), {os.cpu_count()} cores"
    yield "vector width", _vector_width(llvmlite.binding.get_host_cpu_features())
    yield "threads", str(numba.get_num_threads())
    yield "threading layer", numba.threading_layer()  # type: ignore[attr-defined]  # public, not in numba's __all__
    yield "kernel cache", _cache_folder()


def _cpu_name() -> str:
    """Return the CPU's marketing name where the platform tells it."""
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _vector_width(features: dict[str, bool]) -> str:
    """Return the width of the widest vector registers among the CPU's `features`."""
    for feature, bits in (("avx512f", 512), ("avx2", 256), ("avx", 256), ("sse2", 128), ("neon", 128)):
        if features.get(feature):
            return f"{bits} bits ({feature})"
    return "unknown"


def _cache_folder() -> str:
    from fastloss._kernels.cross_entropy import cross_entropy_rows

    return str(cross_entropy_rows.stats.cache_path)


def checks() -> Iterator[tuple[str, float, float]]:
    """Yield (name, value here, true value) of each loss on an input that has a closed form."""
    zeros, target = np.zeros((64, 1000), np.float32), np.arange(64)
    halves = np.full(zeros.size, 0.5, np.float32)
    yield "cross_entropy", _loss(fl.cross_entropy, zeros, target), np.log(1000)
    yield "binary_cross_entropy_with_logits", _loss(fl.binary_cross_entropy_with_logits, 0 * halves, halves), np.log(2)
    yield "nll_loss", _loss(fl.nll_loss, zeros[:, :10] - 2, target % 10), 2.0
    yield "binary_cross_entropy", _loss(fl.binary_cross_entropy, halves, halves), np.log(2)
    yield "mse_loss", _loss(fl.mse_loss, 0 * halves, halves), 0.25
    yield "kl_div", _loss(fl.kl_div, 2 * np.log(halves), halves), 0.5 * np.log(2)


def _loss(function: Callable[..., Any], *arguments: np.ndarray) -> float:
    """Return the loss, computed with its gradient: by the kernels that the timings below need too."""
    loss, _ = function(*arguments, return_grad=True)
    return float(loss)


Provider = Callable[[], tuple[float, np.ndarray]]
"""Computes (loss, gradient of the mean)."""


def _numpy_cross_entropy(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    rows = np.arange(len(logits))
    gradient = logits - logits.max(axis=1, keepdims=True)
    of_labels = gradient[rows, target]
    np.exp(gradient, out=gradient)
    sums = gradient.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - of_labels))
    gradient /= sums
    gradient[rows, target] -= 1
    gradient /= len(logits)
    return loss, gradient


def _numpy_binary_cross_entropy(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    decay = np.exp(-np.abs(logits))
    loss = float(np.mean(np.maximum(logits, 0) - logits * target + np.log1p(decay)))
    gradient = np.where(logits >= 0, 1, decay) / (1 + decay)
    gradient -= target
    gradient /= logits.size
    return loss, gradient


def _torch_provider(name: str, logits: np.ndarray, target: np.ndarray) -> Provider:
    import numba
    import torch

    torch.set_num_threads(numba.get_num_threads())
    input, labels = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(target)
    function = getattr(torch.nn.functional, name)

    def provider() -> tuple[float, np.ndarray]:
        input.grad = None
        loss = function(input, labels)
        loss.backward()
        assert input.grad is not None
        return loss.item(), input.grad.numpy()

    return provider


def _errors(
    results: dict[str, tuple[float, np.ndarray]],
    in_numpy: Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]],
    logits: np.ndarray,
    target: np.ndarray,
) -> dict[str, tuple[float, float]]:
    """Return the relative errors of each result against float64: of the loss, and the largest of the gradient.

    It goes part by part, as fast as the caches allow: new pages for all of it would take longer than the arithmetic.
    """
    true_loss, largest, worst = 0.0, 0.0, dict.fromkeys(results, 0.0)
    step = -(-len(logits) // PARTS)
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        labels = target[part] if target.dtype.kind == "i" else target[part].astype(np.float64)
        share = len(labels) / len(target)
        loss, gradient = in_numpy(logits[part].astype(np.float64), labels)
        true_loss += share * loss
        gradient *= share
        largest = max(largest, np.abs(gradient).max())
        for provider, (_, computed) in results.items():
            worst[provider] = max(worst[provider], np.abs(computed[part] - gradient).max())
    return {provider: (abs(loss / true_loss - 1), worst[provider] / largest) for provider, (loss, _) in results.items()}


def _best_times(providers: dict[str, Provider]) -> dict[str, float]:
    """Return the best time of each provider in milliseconds, the providers taking turns."""
    times = dict.fromkeys(providers, float("inf"))
    for _ in range(ROUNDS):
        for name, provider in providers.items():
            start = time.perf_counter()
            provider()
            times[name] = min(times[name], 1e3 * (time.perf_counter() - start))
    return times


def _run_job(title: str, name: str, logits: np.ndarray, target: np.ndarray) -> None:
    """Time the loss `name` and its gradient by every provider and print a line each."""
    function = getattr(fl, name)
    in_numpy = _numpy_cross_entropy if name == "cross_entropy" else _numpy_binary_cross_entropy
    gradient = np.empty_like(logits)
    providers: dict[str, Provider] = {
        "fastloss": lambda: function(logits, target, return_grad=True, out=gradient),
        "NumPy": lambda: in_numpy(logits, target),
    }
    if importlib.util.find_spec("torch"):
        providers["torch"] = _torch_provider(name, logits, target)
    print(f"\n{title}, float32, loss and gradient", flush=True)
    print(f"{'':10}{'ms':>8}{'fastloss is':>14}{'error of loss':>16}{'of gradient':>14}")
    results = {provider: compute() for provider, compute in providers.items()}
    errors = _errors(results, in_numpy, logits, target)
    times = _best_times(providers)
    for provider, (of_loss, of_gradient) in errors.items():
        ratio = times[provider] / times["fastloss"]
        print(f"{provider:10}{times[provider]:8.1f}{ratio:12.1f} x{of_loss:16.1e}{of_gradient:14.1e}")


def main() -> int:
    """Print the report; return 1 where a check failed."""
    print("compiling kernels, some seconds at the first run:", end="", flush=True)
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch")  # before the first call, which chooses the threading layer by it
    results = []
    for name, value, truth in checks():
        print(f" {name}", end="", flush=True)
        results.append((name, value, truth))
    print("\n")
    for name, fact in environment():
        print(f"{name:16} {fact}")
    print()
    failed = 0
    for name, value, truth in results:
        right = bool(abs(value - truth) <= 1e-6 * truth)
        failed += not right
        print(f"{name:34} {value:.7f}  {'ok' if right else f'WRONG: it should be {truth:.7f}'}")
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((20_000, 1000), np.float32)
    _run_job("cross_entropy, 20,000 x 1,000", "cross_entropy", logits, generator.integers(0, 1000, len(logits)))
    logits = generator.standard_normal(10_000_000, np.float32)
    title = "binary_cross_entropy_with_logits, 10,000,000"
    _run_job(title, "binary_cross_entropy_with_logits", logits, generator.random(logits.size, np.float32))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
