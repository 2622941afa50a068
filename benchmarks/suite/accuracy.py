"""How far is a result from the truth, in ulps of its dtype?"""

from __future__ import annotations

from typing import ClassVar

from . import providers
from .cases import DTYPES, Case, sized
from .oracle import errors_of

_CASES = {
    "CE 2,000 x 1,000": ("cross_entropy", (2000, 1000)),
    "CE 20,000 x 10": ("cross_entropy", (20_000, 10)),
    "BCE with logits 1,000,000": ("binary_cross_entropy_with_logits", (1_000_000,)),
    "MSE 1,000,000": ("mse_loss", (1_000_000,)),
}


class Accuracy:
    """How many ulps are loss and gradient from those of float64, at the worst element?"""

    param_names: ClassVar = ["provider", "case", "dtype"]
    params: ClassVar = [list(providers.PROVIDERS), list(_CASES), list(DTYPES)]
    unit = "ulp"
    timeout = 300

    def setup(self, provider: str, case: str, dtype: str) -> None:
        self.case = sized(Case(*_CASES[case], dtype))
        self.result = providers.result_of(providers.prepare(provider, self.case, "gradient")())

    def track_loss(self, provider: str, case: str, dtype: str) -> float:
        return errors_of(self.result, self.case).loss

    def track_gradient(self, provider: str, case: str, dtype: str) -> float:
        error = errors_of(self.result, self.case).gradient
        assert error is not None
        return error
