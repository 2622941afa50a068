"""How things are measured: times by turns, memory and first calls in new processes."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from .cases import Case, inputs_of
from .providers import Run, Skipped, tensor_of, threads
from .remote import Worker, allocator_that_keeps_pages, clock

SHORTEST = 0.005
"""Seconds that a turn takes at least: short calls are repeated and their mean counts."""


class Times(NamedTuple):
    """Of one call, in milliseconds."""

    best: float
    median: float


def _timed(run: Run) -> float:
    """Return the mean seconds of as many calls as a turn takes, to free their results included."""
    calls, start = 0, clock()
    while True:
        run()
        calls += 1
        seconds = clock() - start
        if seconds >= SHORTEST:
            return seconds / calls


def alternate(runs: dict[str, Run], rounds: int, tick: Callable[[], None] = lambda: None) -> dict[str, Times]:
    """Return the times of each provider, which take turns.

    Each turn begins with a call that is not timed, so that a provider finds caches, threads and allocator as it left
    them itself, not as the one before it did.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            seconds[name].append(_timed(run))
        tick()
    return {name: Times(1e3 * min(of), 1e3 * statistics.median(of)) for name, of in seconds.items()}


def copy_of(case: Case) -> tuple[Run, int]:
    """Return what copies the input of a case between two arrays, by all threads, and the bytes that it moves."""
    try:
        import torch
    except ImportError as error:
        raise Skipped("the copy is torch's, which is not installed") from error
    torch.set_num_threads(threads())
    source = tensor_of(inputs_of(case)[0])
    destination = torch.zeros_like(source)
    return functools.partial(destination.copy_, source), 2 * source.nbytes


def peak_extra_bytes(name: str, case: Case, mode: str) -> int:
    """Return the most memory that a run takes beyond its inputs: gradient, temporaries and all.

    That is the peak of a new process, less that of one which prepares the same and then does nothing.
    """
    environment: dict[str, str] = {}
    if name == "torch, pages reused":
        name, environment = "torch", allocator_that_keeps_pages()

    def peak(work: bool) -> int:
        worker = Worker(environment)
        try:
            return int(worker.ask("peak", name, case, mode, work))
        finally:
            worker.close()

    with ThreadPoolExecutor(2) as pool:
        idle, working = pool.map(peak, (False, True))
    return max(working - idle, 0)


def import_seconds(module: str) -> float:
    """Return how long a new interpreter takes to import a module."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def first_calls(name: str, case: Case, mode: str, calls: int) -> Iterator[float]:
    """Yield the seconds to the first result in `calls` new processes, the first of which finds nothing compiled."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "NUMBA_CACHE_DIR": folder,
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for _ in range(calls):
            worker = Worker(environment)
            try:
                yield float(worker.ask("first_call", name, case, mode))
            finally:
                worker.close()
