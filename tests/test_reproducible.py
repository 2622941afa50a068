"""A result is the same bits on any number of threads, run after run, and its sums are right for very many losses."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import reproducible

import fastloss as fl
from fastloss import _threads


@functools.cache
def reference() -> dict[str, str]:
    """Return the digests of the results with this process's own number of threads."""
    return reproducible.digests()


def test_every_call_is_one_for_all_threads() -> None:
    shapes = (*reproducible.ROUTES.values(), reproducible.CLASS_STRIDED, reproducible.ELEMENTS)
    assert all(np.prod(shape) >= _threads.SERIAL_ELEMENTS for shape in shapes)


def test_two_runs_agree() -> None:
    assert reproducible.digests() == reference()


@pytest.mark.parametrize("threads", [1, 2])
def test_number_of_threads(threads: int) -> None:
    expected = reference()
    if threads > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"Numba may use only {numba.config.NUMBA_NUM_THREADS} threads here")
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        assert reproducible.digests() == expected
    finally:
        numba.set_num_threads(before)


def test_more_threads_than_this_machine_may_have() -> None:
    program = pathlib.Path(reproducible.__file__)
    environment = {**os.environ, "PYTHONPATH": str(program.parent.parent), "NUMBA_NUM_THREADS": "4"}
    run = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=environment, timeout=600, check=True
    )
    assert json.loads(run.stdout) == reference()


@pytest.mark.parametrize("serial_elements", [0, 2**62], ids=["parallel", "serial"])
def test_one_thread_and_all_threads(serial_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = reference()
    monkeypatch.setattr(_threads, "SERIAL_ELEMENTS", serial_elements)
    assert reproducible.digests() == expected


def test_threads_of_python_at_once() -> None:
    """Two Python threads in the kernels at the same time get what each would get alone."""
    expected = reference()
    with ThreadPoolExecutor(2) as pool:
        assert all(found == expected for found in pool.map(lambda _: reproducible.digests(), range(2)))


@pytest.mark.slow
def test_mean_of_a_hundred_million_losses() -> None:
    """0.4 GB, the target being one number for all; a float32 sum of them would stop growing at 2**24."""
    count, step = 10**8, 10**6
    x = np.empty(count, np.float32)
    for start in range(0, count, step):
        x[start : start + step] = np.random.default_rng(start).random(step, np.float32)
    exact = sum(float(np.square(x[start : start + step], dtype=np.float64).sum()) for start in range(0, count, step))
    loss = fl.mse_loss(x, np.broadcast_to(np.float32(0.0), x.shape))
    assert loss == pytest.approx(exact / count, rel=2**-24)


def test_mean_of_many_rows() -> None:
    """Three million rows, whose losses a float32 sum could not hold to seven digits."""
    rows = 3 * 10**6
    x = np.random.default_rng(0).standard_normal((rows, 2), np.float32)
    labels = np.zeros(rows, np.int8)
    exact = np.logaddexp(0.0, np.float64(x[:, 1]) - x[:, 0]).mean()
    assert fl.cross_entropy(x, labels) == pytest.approx(exact, rel=2**-23)
