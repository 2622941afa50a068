"""Threads of Python on each of Numba's threading layers, and which layer is chosen."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import pathlib
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import battery
import numba
import pytest

from fastloss import _threads

TESTS = pathlib.Path(battery.__file__).parent

try:
    importlib.metadata.version("tbb")
    HAS_TBB = True
except importlib.metadata.PackageNotFoundError:
    HAS_TBB = False

needs_tbb = pytest.mark.skipif(not HAS_TBB, reason="there is no tbb wheel for this platform")
layers = pytest.mark.parametrize("layer", ["omp", "workqueue", pytest.param("tbb", marks=needs_tbb)])


PARALLEL_CALL = """
import numba, numpy as np, fastloss as fl
logits = np.zeros((1000, 100), np.float32)
assert abs(fl.cross_entropy(logits, np.arange(1000) % 100) - np.log(100)) < 1e-5
print(numba.threading_layer())
"""


def run_apart(*arguments: str) -> str:
    """Run Python in a process of its own; return the last word that it prints, which names the threading layer."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "NUMBA_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=1000)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1]


def run_battery(scenario: str) -> str:
    return run_apart(str(TESTS / "battery.py"), scenario)


@pytest.mark.slow
@layers
def test_threads(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_THREADING_LAYER", layer)
    assert run_battery("threads") == layer


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@layers
def test_forks(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_THREADING_LAYER", layer)
    assert run_battery("forks") == layer


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no forkserver")
@needs_tbb
def test_processes_that_are_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wish of the user's, and before torch is imported, the layer is tbb where it is installed."""
    monkeypatch.delenv("NUMBA_THREADING_LAYER", raising=False)
    assert run_battery("methods") == "tbb"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's threads are not those of the omp layer")
def test_beside_torch_the_layer_is_that_of_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_THREADING_LAYER", raising=False)
    assert run_apart("-c", "import torch; " + PARALLEL_CALL) == "omp"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that it was forked")
@pytest.mark.parametrize("layer", ["omp", "default"])
def test_fastloss_is_imported_in_a_child_of_a_process_that_used_torch(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_THREADING_LAYER", layer)
    in_parent = "import os, sys, torch; torch.randn(1000, 1000).exp().sum(); child = os.fork(); "
    wait = "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) if child else None; "
    assert run_apart("-c", in_parent + wait + PARALLEL_CALL) == ("tbb" if HAS_TBB and layer == "default" else "omp")


@pytest.mark.parametrize("layer", ["default", "TBB", "safe", "omp", "workqueue"])
@pytest.mark.parametrize("beside_torch", [False, True])
@pytest.mark.parametrize("place", ["the loader's path", "a wheel", "a wheel for another platform", "nowhere"])
def test_where_tbb_is_looked_for(layer: str, beside_torch: bool, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(_: str) -> list[importlib.metadata.PackagePath]:
        if "wheel" not in place:
            raise importlib.metadata.PackageNotFoundError
        return [importlib.metadata.PackagePath(name) for name in ("../../libtbb.so", "../../libtbb.so.12")]

    def load(path: str) -> None:
        if path != {"the loader's path": "libtbb.so.12", "a wheel": "/lib/libtbb.so.12"}.get(place):
            raise OSError
        loaded.append(path)

    loaded: list[str] = []
    if beside_torch:
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(numba.config, "THREADING_LAYER", layer)
    monkeypatch.setattr(importlib.metadata, "files", files)
    monkeypatch.setattr(importlib.metadata.PackagePath, "locate", lambda path: pathlib.PurePosixPath("/lib", path.name))
    monkeypatch.setattr(ctypes, "CDLL", load)
    wanted = layer not in ("omp", "workqueue") and not (layer == "default" and beside_torch)
    assert _threads._find_tbb() == bool(loaded) == (wanted and place in ("the loader's path", "a wheel"))


def test_workqueue_launches_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_layer", "workqueue")
    ran: list[str] = []

    def parallel() -> None:
        ran.append("parallel")
        if len(ran) < 2:
            _threads._launched(kernel, ())

    kernel = SimpleNamespace(parallel=parallel, serial=lambda: ran.append("serial"))
    _threads._launched(kernel, ())
    assert ran == ["parallel", "serial"]
    assert not _threads._launch.locked()
