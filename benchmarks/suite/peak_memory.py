"""How much memory does a loss with its gradient take, beyond its inputs?"""

from __future__ import annotations

from typing import Any, ClassVar

from . import providers
from .cases import CASES, MODES, sized
from .measure import peak_extra_bytes

_TITLES = (
    "CE 2,000,000 x 10",
    "CE 20,000 x 1,000",
    "CE (8, 19, 512, 512)",
    "BCE with logits 10,000,000",
    "BCE 10,000,000",
    "NLL 200,000 x 100",
    "MSE 10,000,000",
    "KL 20,000 x 1,000",
    "log_softmax 20,000 x 1,000",
)
_CASES = {case.title: case for case in CASES if case.title in _TITLES}


class PeakMemory:
    """How much memory does a loss with its gradient take at its peak, the gradient included?"""

    param_names: ClassVar = ["provider", "case", "mode"]
    params: ClassVar = [
        list(providers.PROVIDERS),
        list(_CASES),
        list(MODES),
    ]
    unit = "bytes"
    timeout = 300

    def setup(self, provider: str, case: str, mode: str) -> None:
        self.bytes = peak_extra_bytes(provider, sized(_CASES[case]), mode)  # here, where asv knows what is skipped

    def track_peak_extra_bytes(self, *_: Any) -> int:
        return self.bytes
