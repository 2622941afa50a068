"""Tests compile into a cache folder of their own, named after a hash of the kernels' sources."""

from __future__ import annotations

import getpass
import hashlib
import os
import pathlib
import tempfile
import threading

import pytest

_KERNELS = pathlib.Path(__file__).parent.parent / "fastloss" / "_kernels"


def pytest_configure(config: pytest.Config) -> None:
    """Set Numba's cache folder before anything imports Numba, for the processes that tests start too."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_KERNELS.glob("*.py"))))
    folder = f"fastloss-tests-{getpass.getuser()}-{digest.hexdigest()[:16]}"
    os.environ["NUMBA_CACHE_DIR"] = str(pathlib.Path(tempfile.gettempdir()) / folder)


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernels answer the small calls of fastloss.nn too."""
    monkeypatch.setenv("FASTLOSS_MIN_SIZE", "0")


def pytest_collection() -> None:
    """Have coverage, which is on by now, trace no other threads: Numba compiles in one, and twice as long if traced."""
    threading.settrace(None)
