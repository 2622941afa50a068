"""No kernel reads or writes outside its arrays: one byte too far is an unreadable page. See guarded.py."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import guarded
import pytest

import fastloss as fl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect"),
]


def assert_survives(function: str, size: str, threads: int) -> None:
    """Run it in a process of its own, so that a crash is this test's failure and not the end of the test run."""
    program = pathlib.Path(guarded.__file__)
    environment = {**os.environ, "PYTHONPATH": str(program.parent.parent), "NUMBA_NUM_THREADS": str(threads)}
    command = [sys.executable, str(program), function, size]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    last_case = run.stdout.strip().splitlines()[-1] if run.stdout else "no case"
    assert run.returncode == 0, f"exit code {run.returncode} in the case {last_case}\n{run.stderr[-2000:]}"


def test_every_function_is_among_them() -> None:
    assert set(fl.__all__) - {"warmup"} == {name.split()[0] for name in guarded.FUNCTIONS}


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("function", guarded.FUNCTIONS)
def test_memory_outside_the_arrays_is_not_touched(function: str, size: str) -> None:
    assert_survives(function, size, threads=1)


@pytest.mark.parametrize("function", guarded.CLASS_LOSSES)
def test_targets_that_change_during_the_call_lead_to_no_other_memory(function: str) -> None:
    assert_survives(function, "racing", threads=2)
