"""How fast is each loss, by whom, at which shape, in which dtype and mode?

A class for each loss. Before anything is timed, what the provider computes is compared with the oracle.
"""

from __future__ import annotations

from typing import Any, ClassVar

from . import providers
from .cases import CASES, DTYPES, DTYPES_AT, SHAPES, Case, shape_text
from .remote import clock


class _Loss:
    """Times one loss; asv repeats a call for as long as it takes to be sure, after a warm-up."""

    loss: ClassVar[str]
    param_names: ClassVar = ["provider", "shape", "dtype", "mode"]
    params: ClassVar[list[list[str]]] = []
    timer = staticmethod(clock)
    warmup_time = 0.1
    timeout = 300

    def __init_subclass__(cls) -> None:
        shapes = [shape_text(shape) for shape in SHAPES[cls.loss]]
        modes = Case(cls.loss, SHAPES[cls.loss][0]).modes()
        dtypes = DTYPES if cls.loss in DTYPES_AT else DTYPES[:1]
        cls.params = [list(providers.PROVIDERS), shapes, list(dtypes), list(modes)]

    def setup(self, provider: str, shape: str, dtype: str, mode: str) -> None:
        case = Case(self.loss, next(known for known in SHAPES[self.loss] if shape_text(known) == shape), dtype)
        if case not in CASES:
            raise providers.Skipped(f"{dtype} is not measured at this shape")
        self.run = providers.ready(provider, case, mode)

    def time_loss(self, *_: Any) -> None:
        self.run()


class CrossEntropy(_Loss):
    """How does cross-entropy fare from 2 to 128,256 classes, for segmentation, and in each dtype?"""

    loss = "cross_entropy"


class BinaryCrossEntropyWithLogits(_Loss):
    """How does binary cross-entropy with logits fare from 10,000 elements to 10,000,000, and in each dtype?"""

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
