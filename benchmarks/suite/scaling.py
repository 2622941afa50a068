"""How does the time fall with threads, and grow with the number of rows?"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from . import providers
from .cases import Case
from .remote import clock

_COUNTS = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= (os.cpu_count() or 1)]


class Threads:
    """How does the time of loss and gradient fall with threads? It cannot fall below that of the memory."""

    param_names: ClassVar = ["provider", "case", "threads"]
    params: ClassVar = [
        [name for name, provider in providers.PROVIDERS.items() if provider.thread_counts],
        ["20,000 x 1,000", "2,000,000 x 10"],
        _COUNTS,
    ]
    timer = staticmethod(clock)
    timeout = 300

    def setup(self, provider: str, case: str, threads: int) -> None:
        import numba

        if threads > numba.config.NUMBA_NUM_THREADS:
            raise providers.Skipped(f"Numba has {numba.config.NUMBA_NUM_THREADS} threads")
        numba.set_num_threads(threads)
        shape = {"20,000 x 1,000": (20_000, 1000), "2,000,000 x 10": (2_000_000, 10)}[case]
        self.run = providers.ready(provider, Case("cross_entropy", shape), "gradient")

    def teardown(self, *_: Any) -> None:
        import numba

        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
        providers.ready.cache_clear()

    def time_loss_and_gradient(self, *_: Any) -> None:
        self.run()


class Rows:
    """How does the time of loss and gradient grow with the number of rows, from where calls are overhead alone?"""

    param_names: ClassVar = ["provider", "rows"]
    params: ClassVar = [list(providers.PROVIDERS), [1, 10, 100, 1000, 10_000, 100_000]]
    timer = staticmethod(clock)
    timeout = 300

    def setup(self, provider: str, rows: int) -> None:
        self.run = providers.ready(provider, Case("cross_entropy", (rows, 100)), "gradient")

    def time_loss_and_gradient(self, *_: Any) -> None:
        self.run()
