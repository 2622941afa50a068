"""A child forked after a parallel call computes what its parent does, whatever the threading layer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
import numpy as np
import fastloss as fl

logits = np.random.default_rng(0).standard_normal((200, 1000), np.float32)
target = np.arange(200)
expected = fl.cross_entropy(logits, target)
child = os.fork()
if child == 0:
    os._exit(0 if fl.cross_entropy(logits, target) == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert fl.cross_entropy(logits, target) == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_forked_child(layer: str) -> None:
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
