"""How much memory does a loss with its gradient take, beyond its inputs?"""

from __future__ import annotations

from typing import ClassVar

from . import providers
from .cases import CASES, sized
from .measure import peak_extra_bytes

_CASES = {case.title: case for case in CASES if case.dtype == "float32" and case.loss != "log_softmax"}


class PeakMemory:
    """How much memory does a loss with its gradient take at its peak, the gradient included?"""

    param_names: ClassVar = ["provider", "case", "mode"]
    params: ClassVar = [
        list(providers.PROVIDERS),
        [title for title in _CASES if title in ("CE 20,000 x 1,000", "CE (8, 19, 512, 512)", "MSE 10,000,000")],
        ["forward", "gradient", "autograd"],
    ]
    unit = "bytes"
    timeout = 300

    def track_peak_extra_bytes(self, provider: str, case: str, mode: str) -> int:
        return peak_extra_bytes(provider, sized(_CASES[case]), mode)
