"""A program for test_reproducible.py, and its calls: prints a digest of each result of every kernel route.

python reproducible.py
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import fastloss as fl

ROUTES = {
    "rows": (700, 300),
    "long rows": (40, 3_001),
    "chunks": (3, 70_001),
    "pairs": (40_011, 2),
    "few": (20_011, 5),
    "tiles": (700, 60),
    "batches": (700, 200),
}
STREAMED_BATCHES = (33_001, 70)
CLASS_STRIDED = (3, 19, 1_003)
STREAMED_IMAGES = (2, 19, 60_001)
ELEMENTS = (7, 30_011)


def calls() -> Iterator[tuple[str, Any]]:
    """Yield (name, result) of each loss by each route, all large enough for all threads."""
    streamed = ("streamed batches", STREAMED_BATCHES), ("streamed images", STREAMED_IMAGES)
    for route, shape in (*ROUTES.items(), ("class-strided", CLASS_STRIDED), *streamed):
        rng = np.random.default_rng(0)
        x = rng.normal(0.0, 3.0, shape).astype(np.float32)
        labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
        labels[labels == 1] = -100
        probabilities = rng.random(shape, np.float32)
        for reduction in ("mean", "sum", "none"):
            options: dict[str, Any] = {"reduction": reduction, "return_grad": True}
            yield f"cross_entropy {route} {reduction}", fl.cross_entropy(x, labels, **options)
            yield f"nll_loss {route} {reduction}", fl.nll_loss(x, labels, **options)
        yield f"cross_entropy {route} forward", (fl.cross_entropy(x, labels),)
        yield f"cross_entropy {route} soft", fl.cross_entropy(x, probabilities, label_smoothing=0.1, return_grad=True)
        yield f"softmax {route}", (fl.softmax(x, 1), fl.log_softmax(x, 1), fl.logsumexp(x, 1))
    rng = np.random.default_rng(0)
    x, target = rng.random(ELEMENTS, np.float32), rng.random(ELEMENTS, np.float32)
    for loss in (fl.binary_cross_entropy, fl.binary_cross_entropy_with_logits, fl.mse_loss, fl.kl_div):
        for reduction in ("mean", "sum", "none"):
            yield f"{loss.__name__} {reduction}", loss(x, target, reduction=reduction, return_grad=True)
        yield f"{loss.__name__} forward", (loss(x, target),)
    yield "element functions", (fl.sigmoid(x), fl.log_sigmoid(x))


def digests() -> dict[str, str]:
    """Return a digest of the bits of every result."""
    found = {}
    for name, results in calls():
        bits = hashlib.sha256()
        for result in results:
            bits.update(np.ascontiguousarray(result).tobytes())
        found[name] = bits.hexdigest()
    return found


if __name__ == "__main__":
    json.dump(digests(), sys.stdout)
