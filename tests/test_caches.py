"""Compiled kernels on disk: whatever happens to the folder, a call is right, with at most one warning."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.registry import cpu_target

import fastloss
from fastloss import _engine
from fastloss._kernels import _cache, _jit

ROOT = pathlib.Path(fastloss.__file__).parent.parent

ADVICE = "Set NUMBA_CACHE_DIR to a folder that can be written to"


def fill(out: Any) -> None:
    for i in range(len(out)):
        out[i] = 7


def filled() -> bool:
    """Compile the function above, as a process does that never did; return whether it came from the cache."""
    kernel: Any = _jit.kernel(fill)
    out = np.zeros(3)
    kernel(out)
    assert out.tolist() == [7, 7, 7]
    return bool(sum(kernel.stats.cache_hits.values()))


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """An empty folder, in which files are made in a folder of the kernel's own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_cache, "_warned", False)
    yield tmp_path
    assert not list(tmp_path.rglob("*.nbc.*")), "a file was left behind half written"


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.rglob("*.nbc"))


def test_saved_and_loaded(folder: pathlib.Path) -> None:
    assert not filled()
    assert filled()
    assert len(files(folder)) == 1


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda c: c[:-1], lambda c: c[:9] + b"!" + c[10:], lambda _: b"x" * 99]
)
def test_damaged_files_are_replaced(damage: Any, folder: pathlib.Path) -> None:
    filled()
    (file,) = files(folder)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert not filled()
    assert filled()
    assert files(folder) == [file]


def test_code_of_other_sources_is_replaced(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled()
    with monkeypatch.context() as other:
        other.setattr(_cache, "_hash_of_sources", lambda: b"other")
        assert not filled()
        assert filled()
    assert not filled()
    assert len(files(folder)) == 1


def test_code_with_bounds_checks_is_apart(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled()
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", not numba.config.BOUNDSCHECK)
    assert not filled()
    assert len(files(folder)) == 2


def test_folder_deleted_while_running(folder: pathlib.Path) -> None:
    kernel: Any = _jit.kernel(fill)
    shutil.rmtree(folder)
    kernel(np.zeros(3))
    assert filled()


def test_folder_that_can_no_longer_be_written_to(folder: pathlib.Path) -> None:
    kernels: list[Any] = [_jit.kernel(fill) for _ in range(2)]
    shutil.rmtree(folder)
    folder.write_bytes(b"a file in the place of the folder")
    with pytest.warns(RuntimeWarning, match=ADVICE):
        kernels[0](np.zeros(3))
    out = np.zeros(3)
    kernels[1](out)
    assert out.tolist() == [7, 7, 7]


def test_disk_full(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pathlib.Path.write_bytes

    def fail(path: pathlib.Path, data: bytes) -> int:
        write(path, data[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail)
    with pytest.warns(RuntimeWarning, match=f"No space left on device.*{ADVICE}"):
        assert not filled()
    assert not filled()


def test_another_process_saves_at_the_same_time(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to replace a file that is open."""
    kernel: Any = _jit.kernel(fill)
    filled()

    def fail(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    monkeypatch.setattr(kernel._cache, "load_overload", lambda *_: None)
    kernel(np.zeros(3))


def test_no_folder_at_all(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    with pytest.warns(RuntimeWarning, match=f"no folder can be written to.*{ADVICE}"):
        assert not filled()
    assert not filled()


def test_jit_disabled_later(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert not filled()
    assert numba.config.DISABLE_JIT == 1


PROGRAM = """
import threading
import numpy as np
import fastloss as fl

x, results = np.arange(100, dtype=np.float32), []
barrier = threading.Barrier(8)
def call():
    barrier.wait()
    results.append(fl.mse_loss(x, 0 * x))
threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert results == [np.float32(3283.5)] * 8, results

import numba
from fastloss._kernels.pointwise import mse
assert (numba.njit(call) is call) == bool(numba.config.DISABLE_JIT)
print(sum(mse.stats.cache_hits.values()), "hits")
"""


def start(folder: pathlib.Path, package: pathlib.Path = ROOT, prefix: Sequence[str] = (), **settings: str) -> Any:
    """Start the program above, which makes the first calls of a process in 8 threads at once, with the cache folder."""
    environment = {**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(folder), **settings}
    return subprocess.Popen(
        [*prefix, sys.executable, "-W", "always", "-c", PROGRAM],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=package,
    )  # fmt: skip


def finish(process: Any) -> tuple[str, str]:
    """Return (what the program said of cache hits, its warnings)."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


def test_processes_that_fill_one_cache_or_are_killed_or_run_on_other_cpus(tmp_path: pathlib.Path) -> None:
    killed = start(tmp_path)
    while killed.poll() is None and not list(tmp_path.rglob("*")):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    for first in [start(tmp_path), start(tmp_path)]:
        assert finish(first)[1] == ""
    assert finish(start(tmp_path)) == ("1 hits", "")
    other, warned = finish(start(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_DISABLE_JIT="1"))
    assert other == "0 hits"
    assert warned.count("Warning") == 1
    assert "NUMBA_DISABLE_JIT" in warned


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are POSIX's")
def test_nothing_can_be_written_to() -> None:
    """The package and the home are read-only, to a user who is not root: root may write everywhere."""
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    if as_nobody and not shutil.which("setpriv"):
        pytest.skip("there is no setpriv, with which root runs as another user")
    if subprocess.run([*as_nobody, sys.executable, "-c", "import numba"], capture_output=True, cwd="/").returncode:
        pytest.skip("the environment that the tests run in is closed to other users")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copytree(ROOT / "fastloss", folder / "fastloss", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        settings = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "LOCALAPPDATA": str(folder)}
        try:
            hits, warned = finish(start(folder / "cache", folder, as_nobody, **settings))
        finally:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
    assert hits == "0 hits"
    assert warned.count("Warning") == 1
    assert ADVICE in warned


INTERRUPTED = """
import os, signal, threading
import numpy as np
import fastloss as fl

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it

def interrupted(seconds, call):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        call()
        timer.join()
        threading.Event().wait(2)
    except KeyboardInterrupt:
        return True
    return False  # it came in a callback, whose exceptions Python ignores

x = np.arange(100, dtype=np.float32)
# In imports and in the compiler.
assert any([interrupted(seconds, lambda: fl.mse_loss(x, 0 * x)) for seconds in (0.1, 0.4, 0.8, 1.2, 0.3, 0.3)])
assert fl.mse_loss(x, 0 * x) == np.float32(3283.5)
y = np.ones(10_000_000, np.float32)
assert fl.mse_loss(y, -y) == 4
for seconds in (0.001, 0.01, 0.02):
    interrupted(seconds, lambda: [fl.mse_loss(y, -y) for _ in range(3)])
    assert fl.mse_loss(y, -y) == 4
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signal to a process")
def test_interrupted_calls(tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERRUPTED]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr


def test_kernels_that_one_function_makes_have_files_of_their_own() -> None:
    codegen = cpu_target.target_context.codegen()
    kernels = _engine._lazy().of_elements.values()
    assert len({repr((k._cache._impl.filename_base, k._cache._index_key((), codegen))) for k in kernels}) == 7
