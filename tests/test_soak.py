"""Hours of calls take no more memory than minutes do: FASTLOSS_SOAK_SECONDS says how long to look, 20 by default."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import battery
import pytest

SECONDS = os.environ.get("FASTLOSS_SOAK_SECONDS", "20")

MOST_MIB = {"resident": 5.0, "in use": 1.0}
"""By how much the memory may grow that the system has given, and that the C library has given."""

MAPPED_BYTES = 1 << 16
"""Arrays from this size on get pages of their own: heaps that are shared grow for hours as they fall to pieces."""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="the platform does not say what is resident")
def test_memory_does_not_grow() -> None:
    program = pathlib.Path(battery.__file__)
    environment = {
        **os.environ,
        "PYTHONPATH": str(program.parent.parent),
        "MALLOC_MMAP_THRESHOLD_": str(MAPPED_BYTES),
    }
    command = [sys.executable, str(program), "soak", SECONDS]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300 + 2 * float(SECONDS))
    assert run.returncode == 0, run.stderr
    grown = {line.partition(":")[0]: float(line.split()[-1]) for line in run.stdout.splitlines()}
    assert grown.keys() == MOST_MIB.keys()
    assert all(grown[name] < most for name, most in MOST_MIB.items()), run.stdout
