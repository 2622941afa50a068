"""Threads of Python on each of Numba's threading layers, and which layer is chosen."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

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


def run_battery(scenario: str, layer: str | None = None) -> str:
    """Run the scenario in a process of its own, on `layer`; return the name of the layer that it ran on."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "NUMBA_NUM_THREADS": "2"}
    if layer is not None:
        environment["NUMBA_THREADING_LAYER"] = layer
    command = [sys.executable, str(TESTS / "battery.py"), scenario]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1000)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1]


@pytest.mark.slow
@layers
def test_threads(layer: str) -> None:
    assert run_battery("threads", layer) == layer


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@layers
def test_forks(layer: str) -> None:
    assert run_battery("forks", layer) == layer


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no forkserver")
@needs_tbb
def test_processes_that_are_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wish of the user's, the layer is tbb where it is installed."""
    monkeypatch.delenv("NUMBA_THREADING_LAYER", raising=False)
    assert run_battery("methods") == "tbb"


@pytest.mark.parametrize("layer", ["default", "TBB", "safe", "omp", "workqueue"])
@pytest.mark.parametrize("place", ["the loader's path", "a wheel", "a wheel for another platform", "nowhere"])
def test_where_tbb_is_looked_for(layer: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(_: str) -> list[importlib.metadata.PackagePath]:
        if "wheel" not in place:
            raise importlib.metadata.PackageNotFoundError
        return [importlib.metadata.PackagePath(name) for name in ("../../libtbb.so", "../../libtbb.so.12")]

    def load(path: str) -> None:
        if path != {"the loader's path": "libtbb.so.12", "a wheel": "/lib/libtbb.so.12"}.get(place):
            raise OSError
        loaded.append(path)

    loaded: list[str] = []
    monkeypatch.setattr(numba.config, "THREADING_LAYER", layer)
    monkeypatch.setattr(importlib.metadata, "files", files)
    monkeypatch.setattr(importlib.metadata.PackagePath, "locate", lambda path: pathlib.PurePosixPath("/lib", path.name))
    monkeypatch.setattr(ctypes, "CDLL", load)
    wanted = layer not in ("omp", "workqueue")
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
