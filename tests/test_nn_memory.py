"""Memory of large results is used again, once nothing views it any more, and never before."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fastloss import nn
from fastloss.nn import _memory

FLOAT = np.dtype(np.float32)
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _empty_pool() -> Iterator[None]:
    gc.collect()
    nn.release_memory()
    yield
    nn.release_memory()


def address_of(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_once_it_is_free() -> None:
    array = _memory.empty((1024, 1024), None, FLOAT)
    address = address_of(array)
    assert nn.held_memory() == 0
    del array
    assert 4 * MEGABYTE <= nn.held_memory() <= 1.05 * 4 * MEGABYTE
    again = _memory.empty((1024, 1000), None, FLOAT)
    assert address_of(again) == address
    assert nn.held_memory() == 0


def test_a_view_keeps_the_memory() -> None:
    view = _memory.empty((1024, 1024), None, FLOAT)[3:5, ::7].T
    assert nn.held_memory() == 0
    tensor = torch.from_numpy(_memory.empty((1024, 1024), None, FLOAT))[5:7].reshape(-1).detach()
    array = tensor.numpy()
    del tensor
    assert nn.held_memory() == 0
    del view, array
    assert nn.held_memory() >= 8 * MEGABYTE


def test_a_request_that_nothing_fits_releases_what_is_held() -> None:
    del [_memory.empty((n, MEGABYTE), None, FLOAT) for n in (1, 2)][:]
    gc.collect()
    assert nn.held_memory() > 0
    kept = _memory.empty((4, MEGABYTE), None, FLOAT)
    assert nn.held_memory() == 0
    del kept


def test_the_pool_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [_memory.empty((MEGABYTE,), None, FLOAT) for _ in range(2 * _memory.MOST_BLOCKS)]
    del arrays[:]
    assert nn.held_memory() <= _memory.MOST_BLOCKS * 1.05 * 4 * MEGABYTE
    nn.release_memory()
    monkeypatch.setattr(_memory, "LARGEST_BYTES", 10 * MEGABYTE)
    arrays = [_memory.empty((MEGABYTE,), None, FLOAT) for _ in range(4)]
    del arrays[:]
    assert 0 < nn.held_memory() <= 10 * MEGABYTE


def test_small_memory_is_not_pooled() -> None:
    array = _memory.empty((1000,), None, FLOAT)
    del array
    assert nn.held_memory() == 0


def test_arrays_begin_on_cache_lines_and_have_their_strides() -> None:
    array = _memory.empty((1000, 1001), (4, 4000), FLOAT)
    assert address_of(array) % _memory.LINE == 0
    assert array.strides == (4, 4000)
    array[...] = 1
    assert array.sum() == array.size


def test_threads_never_share_memory() -> None:
    failures = []

    def work(number: int) -> None:
        for turn in range(300):
            arrays = [_memory.empty((1 << 18,), None, FLOAT) for _ in range(2)]
            for i, array in enumerate(arrays):
                array[::4096] = 1000 * number + i
            failures.extend(
                (number, turn) for i, array in enumerate(arrays) if not (array[::4096] == 1000 * number + i).all()
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of other threads in this process
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    array = _memory.empty((MEGABYTE,), None, FLOAT)
    array[:] = 1
    del array
    child = os.fork()
    if child == 0:
        _memory.empty((MEGABYTE,), None, FLOAT)[:] = 2
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (_memory.empty((MEGABYTE,), None, FLOAT) == 1).all()
