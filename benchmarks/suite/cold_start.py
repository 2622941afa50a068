"""How long until the first result: import, compile, or load what was compiled before?"""

from __future__ import annotations

from typing import ClassVar

from . import providers
from .cases import TINY, Case, sized
from .measure import first_calls, import_seconds

_CASE = Case("cross_entropy", (20_000, 1000))

_PROVIDERS = ["fastloss"] if TINY else ["fastloss", "fastloss.nn", "numpy", "torch", "torch.compile", "jax.jit"]


class Import:
    """How long does an interpreter take to import it?"""

    param_names: ClassVar = ["module"]
    params: ClassVar = [["fastloss", "fastloss.nn", "numpy", "numba", "torch", "jax", "sklearn._loss"]]
    unit = "seconds"

    def setup(self, module: str) -> None:
        if not providers.installed(module):
            raise providers.Skipped(f"{module} is not installed")

    def track_import(self, module: str) -> float:
        return min(import_seconds(module) for _ in range(1 if TINY else 3))


class FirstCall:
    """How long is it from a process that has only its inputs to the first loss and gradient, imports included?"""

    param_names: ClassVar = ["provider"]
    params: ClassVar = [_PROVIDERS]
    unit = "seconds"
    timeout = 600

    def setup(self, provider: str) -> None:
        self.compiled, self.from_cache = first_calls(provider, sized(_CASE), "gradient", 2)

    def track_compiled(self, provider: str) -> float:
        """Return the seconds where nothing was compiled before."""
        return self.compiled

    def track_from_cache(self, provider: str) -> float:
        """Return the seconds where another process has compiled it."""
        return self.from_cache
