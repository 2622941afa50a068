"""Hours of calls take no more memory than minutes do: FASTLOSS_SOAK_SECONDS says how long to look, 20 by default."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import battery
import pytest

SECONDS = os.environ.get("FASTLOSS_SOAK_SECONDS", "20")

MOST_MIB = 5.0
"""The C library keeps some memory for each thread, and more of it for a while."""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="the platform does not say what is resident")
def test_memory_does_not_grow() -> None:
    program = pathlib.Path(battery.__file__)
    environment = {**os.environ, "PYTHONPATH": str(program.parent.parent)}
    command = [sys.executable, str(program), "soak", SECONDS]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300 + 2 * float(SECONDS))
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[-2]) < MOST_MIB, run.stdout
