"""A program for test_machine_code.py: compiles kernels for the CPU that NUMBA_CPU_NAME names, and runs them.

    python machine_code.py

It prints the assembly of each kernel as JSON, after a comparison of its results with NumPy. NUMBA_CACHE_DIR must be a
new folder, since Numba has no assembly of what it found in its cache.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import fastloss as fl
from fastloss import _threads
from fastloss._kernels import (
    bce,
    cross_entropy,
    cross_entropy_batches,
    cross_entropy_few,
    cross_entropy_pairs,
    cross_entropy_planes,
    cross_entropy_tiles,
)


def check(actual: tuple[np.generic, np.ndarray], loss: np.floating, gradient: np.ndarray) -> None:
    assert actual[0].dtype == actual[1].dtype == np.float32
    np.testing.assert_allclose(actual[0], loss, rtol=1e-6)
    np.testing.assert_allclose(actual[1], gradient, rtol=1e-5, atol=1e-9)


def check_classes(x: np.ndarray, labels: np.ndarray) -> None:
    e = np.exp(np.float64(x) - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    one_hot = labels[:, None] == np.arange(x.shape[1])
    actual = fl.cross_entropy(x, labels, return_grad=True)
    check(actual, -np.log(p[one_hot]).mean(), (p - one_hot) / len(x))


def main() -> None:
    _threads.SERIAL_ELEMENTS = 0
    rng = np.random.default_rng(0)
    x = rng.normal(0.0, 4.0, (9, 300)).astype(np.float32)
    check_classes(x, rng.integers(0, 300, 9))
    check_classes(x.T, rng.integers(0, 9, 300))
    check_classes(np.ascontiguousarray(x.T), rng.integers(0, 9, 300))
    check_classes(rng.normal(0.0, 4.0, (300, 20)).astype(np.float32), rng.integers(0, 20, 300))
    check_classes(rng.normal(0.0, 4.0, (300, 200)).astype(np.float32), rng.integers(0, 200, 300))
    check_classes(rng.normal(0.0, 4.0, (300, 2)).astype(np.float32), rng.integers(0, 2, 300))
    p = 1.0 / (1.0 + np.exp(-np.float64(x)))
    t = rng.random(x.shape).astype(np.float32)
    loss = -(t * np.log(p) + (1.0 - np.float64(t)) * np.log1p(-p)).mean()
    check(fl.binary_cross_entropy_with_logits(x, t, return_grad=True), loss, (p - t) / x.size)
    kernels = {
        "rows": cross_entropy.cross_entropy_rows,
        "pairs": cross_entropy_pairs.cross_entropy_pairs,
        "few": cross_entropy_few.cross_entropy_few,
        "batches": cross_entropy_batches.cross_entropy_batches,
        "planes": cross_entropy_planes.cross_entropy_planes,
        "tiles": cross_entropy_tiles.cross_entropy_tiles,
        "bce": bce.bce_with_logits,
    }
    json.dump({name: "\n".join(kernel.inspect_asm().values()) for name, kernel in kernels.items()}, sys.stdout)


if __name__ == "__main__":
    main()
