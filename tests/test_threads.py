"""Threads of Python on each of Numba's threading layers, and which layer is chosen."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import pathlib
import subprocess
import sys
from types import ModuleType

import battery
import numba
import numpy as np
import pytest

import fastloss as fl
from fastloss import _engine, _threads, functional
from fastloss._kernels import cross_entropy

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
@pytest.mark.parametrize("found", [False, True], ids=["", "tbb on the loader's path"])
def test_beside_torch_the_layer_is_that_of_its_threads(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_THREADING_LAYER", raising=False)
    if found:
        files = (importlib.metadata.files("tbb") or []) if HAS_TBB else []
        folders = {str(pathlib.Path(str(file.locate())).resolve().parent) for file in files if ".so" in file.name}
        monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(sorted(folders)))
    restored = "; from numba import config; assert config.THREADING_LAYER_PRIORITY == ['tbb', 'omp', 'workqueue']"
    assert run_apart("-c", "import torch; " + PARALLEL_CALL.rstrip() + restored) == "omp"


@pytest.mark.parametrize(
    ("layer", "priority", "has_torch", "expected"),
    [
        ("default", "tbb omp workqueue", True, True),
        ("default", "tbb omp workqueue", False, False),
        ("default", "tbb workqueue omp", True, False),
        ("tbb", "tbb omp workqueue", True, False),
    ],
)
def test_a_wish_of_the_users_comes_first(
    layer: str, priority: str, has_torch: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "THREADING_LAYER", layer)
    monkeypatch.setattr(numba.config, "THREADING_LAYER_PRIORITY", priority.split())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(_threads, "_forked", False)
    monkeypatch.setattr(sys, "modules", {**sys.modules, "torch": ModuleType("torch")})
    if not has_torch:
        del sys.modules["torch"]
    assert _threads._beside_torch() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the name is read from /proc")
def test_the_name_of_the_process_need_not_be_text() -> None:
    name = "open('/proc/self/comm', 'wb').write('aaaaaaaaaaaaaa\u00e9'.encode()[:15]); "
    assert run_apart("-c", name + "import fastloss; print('imported')") == "imported"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that it was forked")
@pytest.mark.parametrize("layer", ["omp", "default"])
def test_fastloss_is_imported_in_a_child_of_a_process_that_used_torch(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_THREADING_LAYER", layer)
    in_parent = "import os, sys, torch; torch.randn(1000, 1000).exp().sum(); child = os.fork(); "
    wait = "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) if child else None; "
    assert run_apart("-c", in_parent + wait + PARALLEL_CALL) == ("tbb" if HAS_TBB and layer == "default" else "omp")


FORK_WHILE_HELD = """
import faulthandler, os, threading, time
import numpy as np
import fastloss as fl
from llvmlite.binding.ffi import lib
from numba.core.compiler_lock import global_compiler_lock
fl.sigmoid(np.zeros(3))

def hold(lock):
    with lock:
        held.set()
        time.sleep(0.3)

for lock in (lib._lock, global_compiler_lock):
    held = threading.Event()
    thread = threading.Thread(target=hold, args=(lock,))
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(200, exit=True)  # its thread takes the place of the one that holds the lock
        assert fl.mse_loss(np.ones(3), np.zeros(3)) == 1.0
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_child_needs_nothing_that_threads_of_its_parent_held() -> None:
    assert run_apart("-c", FORK_WHILE_HELD) == "done"


FORKS_AT_ONCE = """
import os, threading, time
os.register_at_fork(before=lambda: time.sleep(0.1))  # runs after that of fastloss
from fastloss import _threads

class Lock:
    def __init__(self):
        self.lock = threading.RLock()

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()
        time.sleep(0.1)  # another thread comes first

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

_threads.loading = Lock()
threads = [threading.Thread(target=fork, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
print(sum(thread.is_alive() for thread in threads), flush=True)
os._exit(0)  # for a thread that hangs holds what Python's exit needs
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_threads_fork_at_once() -> None:
    assert run_apart("-c", FORKS_AT_ONCE) == "0"


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

    def kernel(launcher: int, blocks: int, block: int) -> None:
        ran.append("parallel" if launcher else "serial")
        if len(ran) < 2:
            _threads._launched(kernel, 5, ())

    _threads._launched(kernel, 5, ())
    assert ran == ["parallel", "serial"]
    assert not _threads._launch.locked()


@pytest.mark.parametrize(
    ("units", "elements"), [(20_000, 1_000), (1_024, 32_000), (2_000_000, 10), (300_000, 256), (100_000, 1_003)]
)
def test_blocks_keep_64_threads_busy(units: int, elements: int) -> None:
    length = _threads.block_length(units, elements)
    count = _threads.block_count(units, length)
    assert (count - 1) * length < units <= count * length
    of_thread = [sum(min(length, units - block * length) for block in range(k, count, 64)) for k in range(64)]
    assert sum(of_thread) == units
    assert max(of_thread) <= 1.25 * units / 64


@pytest.mark.parametrize(("share", "done"), [(0, [0, 3, 6]), (1, [1, 4]), (2, [2, 5])])
def test_a_thread_takes_blocks_of_rows_from_all_over(share: int, done: list[int]) -> None:
    """So rows to ignore that lie in one run are shared by all."""
    logits, sums = np.zeros((13, 300), np.float32), np.full(2 * 7 + 2, np.nan)
    cross_entropy.cross_entropy_rows(
        0, 3, share, logits.T[np.newaxis], np.zeros((1, 13), np.int64), None, None, -100, 1.0, None, 0.0, 1.0, False,
        False, 2, None, None, None, sums,
    )  # fmt: skip
    assert np.flatnonzero(~np.isnan(sums)).tolist() == done
    np.testing.assert_allclose(sums[done], [np.log(300) * (1 if block == 6 else 2) for block in done])


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_shares_of_the_rows_do_not_change_the_result(rows: int, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few rows, more shares than blocks, ignored rows at their ends: the bits are those of one share."""
    rng = np.random.default_rng(rows)
    logits, target = rng.normal(size=(rows, 300)).astype(np.float32), rng.integers(0, 300, rows)
    target[::4] = -100
    monkeypatch.setattr(_threads, "BLOCK_ELEMENTS", 600)
    monkeypatch.setattr(_engine, "_plan", _engine._plan.__wrapped__)  # without its cache
    monkeypatch.setattr(functional, "_remembered", {})
    monkeypatch.setattr(_engine, "STREAMED_BYTES", 1)
    out = np.empty_like(logits)
    expected, _ = fl.cross_entropy(logits, target, reduction="sum", return_grad=True, out=out)
    gradient = out.copy()
    monkeypatch.setattr(_threads, "threads_for", lambda elements: shares)
    monkeypatch.setattr(_threads, "run", lambda kernel, _, blocks, *arguments: kernel(0, blocks, -1, *arguments))
    actual, _ = fl.cross_entropy(logits, target, reduction="sum", return_grad=True, out=out)
    assert actual == expected
    np.testing.assert_array_equal(out, gradient)
