"""How fast is each loss, by whom, at which shape, in which dtype and mode?

A class for each loss. Before anything is timed, what the provider computes is compared with the oracle.
"""

from __future__ import annotations

from typing import Any, ClassVar

from . import providers
from .cases import DTYPES, SHAPES, Case, shape_text
from .remote import clock


class _Loss:
    """Times one loss; asv repeats a call for as long as it takes to be sure, after a warm-up."""

    loss: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    param_names: ClassVar = ["provider", "shape", "dtype", "mode"]
    params: ClassVar[list[list[str]]] = []
    timer = staticmethod(clock)
    warmup_time = 0.1
    timeout = 300

    def __init_subclass__(cls) -> None:
        shapes = [shape_text(shape) for shape in SHAPES[cls.loss]]
        modes = Case(cls.loss, SHAPES[cls.loss][0]).modes()
        cls.params = [list(providers.PROVIDERS), shapes, list(cls.dtypes), list(modes)]

    def setup(self, provider: str, shape: str, dtype: str, mode: str) -> None:
        case = Case(self.loss, next(known for known in SHAPES[self.loss] if shape_text(known) == shape), dtype)
        if dtype != "float32" and case.shape != DTYPES_AT:
            raise providers.Skipped(f"dtypes are compared at {shape_text(DTYPES_AT)}")
        self.run = providers.ready(provider, case, mode)

    def time_loss(self, *_: Any) -> None:
        self.run()


DTYPES_AT = (20_000, 1000)
"""The shape at which the other dtypes are measured too."""


class CrossEntropy(_Loss):
    """How does cross-entropy fare from 2 to 128,256 classes, for segmentation, and in each dtype?"""

    loss = "cross_entropy"
    dtypes = DTYPES


class BinaryCrossEntropyWithLogits(_Loss):
    """How does the time of binary cross-entropy with logits grow, from 10,000 elements to 10,000,000?"""

    loss = "binary_cross_entropy_with_logits"


class BinaryCrossEntropy(_Loss):
    """How fast is binary cross-entropy of probabilities?"""

    loss = "binary_cross_entropy"


class NLL(_Loss):
    """How fast is the likelihood of log-probabilities, which reads one element a row?"""

    loss = "nll_loss"


class MSE(_Loss):
    """How fast is the squared error, where there is nothing to compute and memory is all?"""

    loss = "mse_loss"


class KL(_Loss):
    """How fast is the Kullback-Leibler divergence?"""

    loss = "kl_div"


class LogSoftmax(_Loss):
    """How fast is log_softmax, which is no loss, and its step of autograd?"""

    loss = "log_softmax"
