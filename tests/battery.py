"""A program for test_threads.py and test_soak.py: mixed calls from many threads and processes.

python battery.py threads|forks|methods, the first two with NUMBA_THREADING_LAYER set; python battery.py soak SECONDS.
Every result must be the bits of a call from one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

import fastloss as fl
from fastloss import _threads

PATIENCE = 900
"""Seconds after which a process that does not get on is taken for hung."""

Call = Callable[[], Any]


def calls() -> list[Call]:
    """Return calls of several losses on one thread and on all, of 2,000 to 50,000 elements."""
    rng = np.random.default_rng(0)
    found: list[Call] = []
    for rows in (2, 20, 50):
        x, labels = rng.standard_normal((rows, 1000), np.float32), rng.integers(0, 1000, rows)
        y = rng.random((rows, 1000), np.float32)
        found += [
            lambda x=x, labels=labels: fl.cross_entropy(x, labels, return_grad=True),
            lambda x=x, labels=labels: fl.cross_entropy(x, labels, reduction="sum", return_grad=True),
            lambda x=x, y=y: fl.binary_cross_entropy_with_logits(x, y, return_grad=True),
            lambda x=x, y=y: fl.mse_loss(x, y, return_grad=True),
        ]
    return found


def bits(result: Any) -> bytes:
    return b"".join(np.ascontiguousarray(part).tobytes() for part in result)


ALL = calls()


def digests() -> list[bytes]:
    return [bits(call()) for call in ALL]


def work(expected: list[bytes], count: int, seed: int) -> None:
    """Make `count` calls in an order of this thread's own."""
    order = random.Random(seed)
    for _ in range(count):
        number = order.randrange(len(ALL))
        assert bits(ALL[number]()) == expected[number]


def in_threads(threads: int, task: Callable[[int], Any]) -> None:
    """Run `task(number)` in so many threads that begin at once; raise what they raise."""
    barrier = threading.Barrier(threads)

    def begin(number: int) -> None:
        barrier.wait()
        task(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(begin, range(threads)))


def threads() -> None:
    """The first calls at once, and forks meanwhile; 16 threads of 1,000 calls; asyncio, joblib, backward passes."""
    import joblib
    import numba
    import torch

    import fastloss.nn.functional as F

    torch.set_num_threads(1)
    first = threading.Thread(target=in_threads, args=(8, lambda number: ALL[-1 - number % 4]()))
    first.start()
    for _ in range(3 * hasattr(os, "fork")):  # while those import, compile and start the layer
        time.sleep(0.3)
        in_children(1, digests)
    first.join()
    expected = digests()
    assert torch.get_num_threads() == 1
    in_threads(16, lambda seed: work(expected, 1000, seed))

    async def gather() -> None:
        await asyncio.gather(*(asyncio.to_thread(work, expected, 50, seed) for seed in range(8)))

    asyncio.run(gather())
    joblib.Parallel(8, backend="threading")(joblib.delayed(work)(expected, 50, seed) for seed in range(8))

    torch.set_num_threads(2)
    x, labels = torch.randn(200, 1000), torch.arange(200)

    def gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        F.cross_entropy(leaf, labels).backward()
        assert leaf.grad is not None
        return leaf.grad

    alone, available = gradient(), numba.get_num_threads()

    def backward(number: int) -> None:
        torch.get_num_threads()  # the first one of a thread sets it to that of another
        torch.set_num_threads(1 + number % 2)
        for _ in range(50):
            assert torch.equal(gradient(), alone)
            assert torch.get_num_threads() == 1 + number % 2
            assert numba.get_num_threads() == available

    in_threads(8, backward)


def watched() -> None:
    """Let this process say where it is, and die, should it hang."""
    if hasattr(signal, "alarm"):
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(PATIENCE)


def forked(task: Callable[[], Any]) -> int:
    """Fork a child that runs `task` and exits with 0 if that returns; return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            watched()
            task()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def in_children(count: int, task: Callable[[], Any]) -> None:
    """Run `task` in so many forked children at once; raise unless it returns in all."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in [forked(task) for _ in range(count)]]
    assert codes == [0] * count, codes


def check(expected: list[bytes], serial: bool) -> None:
    in_threads(2, lambda seed: work(expected, 20, seed))
    assert _threads._alone == serial


@contextlib.contextmanager
def calls_in_the_background() -> Iterator[None]:
    """A context during which another thread is in a parallel call nearly all the time."""
    x, stopped = np.zeros((2000, 1000), np.float32), threading.Event()

    def loop() -> None:
        while not stopped.is_set():
            fl.cross_entropy(x, np.arange(2000) % 1000, return_grad=True)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


class Samples:
    """A data set whose samples are computed by fastloss."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> float:
        return loss(index)


def loss(_: int) -> float:
    return float(ALL[-4]()[0])


def in_workers(method: str, expected: float) -> None:
    """Compute in the worker processes of multiprocessing and of torch."""
    import torch

    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        assert list(pool.map(loss, range(4))) == [expected] * 4
    loader = torch.utils.data.DataLoader(Samples(), batch_size=4, num_workers=2, multiprocessing_context=method)
    assert torch.cat(list(loader)).tolist() == [expected] * 8


def forks() -> None:
    """Children before, during and after parallel calls, of the main thread and of others; worker processes."""
    import torch

    tbb, workqueue = (os.environ["NUMBA_THREADING_LAYER"] == layer for layer in ("tbb", "workqueue"))
    torch.randn(1000, 1000).exp().sum()  # OpenMP's threads run, without which its parallel calls in a child hang
    in_children(1, digests)
    in_children(1, lambda: check(digests(), not (tbb or workqueue)))
    expected = digests()
    in_children(4, lambda: check(expected, not tbb))
    in_children(1, lambda: in_children(1, lambda: check(expected, not tbb)))
    in_threads(1, lambda _: in_children(1, lambda: check(expected, True)))
    with calls_in_the_background():
        for _ in range(3):
            in_children(1, lambda: in_threads(2, lambda seed: work(expected, 20, seed)))
            in_threads(1, lambda _: in_children(1, lambda: check(expected, True)))
            check(expected, False)
    in_workers("fork", loss(0))
    in_threads(8, lambda seed: work(expected, 50, seed))


def methods() -> None:
    """Worker processes that are not forked from this one, after parallel calls in it."""
    expected = loss(0)
    in_workers("forkserver", expected)
    in_workers("spawn", expected)


def resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Heap(ctypes.Structure):
    """What glibc says about its heaps: `struct mallinfo2` of malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def allocated_bytes() -> int:
    """Return how many bytes of malloc's are in use, 0 where the C library does not say."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = _Heap
    heap = mallinfo()
    return int(heap.uordblks + heap.hblkhd)


def soak(seconds: float) -> None:
    """Mixed calls from 4 threads, wrong ones too; print by how many MiB the memory grew after the first quarter.

    What is in use of malloc's must not grow at all, and is all that can leak but for Python's small objects. What is
    resident has these too, and the holes in malloc's heaps, which differ from run to run by some MiB. With
    MALLOC_MMAP_THRESHOLD_=65536 arrays have pages of their own, so that there are no holes to show.
    """
    import torch

    import fastloss.nn.functional as F

    expected, x, labels = digests(), torch.randn(200, 1000), torch.arange(200)
    start = time.monotonic()
    samples: dict[str, list[int]] = {"resident": [], "in use": []}
    period = seconds / 200  # few samples, which take memory themselves

    def loop(seed: int) -> None:
        while time.monotonic() < start + seconds:
            work(expected, 20, seed)
            F.cross_entropy(x.clone().requires_grad_(), labels).backward()
            for target in (np.full(200, 1000), np.zeros(3, int)):
                with contextlib.suppress(IndexError, ValueError):
                    fl.cross_entropy(x.numpy(), target)
                    raise AssertionError("the target is wrong")
            if seed == 0 and time.monotonic() >= start + period * len(samples["resident"]):
                samples["resident"].append(resident_bytes())
                samples["in use"].append(allocated_bytes())

    in_threads(4, loop)
    for name, sizes in samples.items():
        quarter = len(sizes) // 4
        middles = [sorted(sizes[i * quarter : (i + 1) * quarter])[quarter // 2] / 2**20 for i in range(4)]
        quarters = " ".join(f"{middle:.2f}" for middle in middles)
        print(f"{name}: medians of the quarters {quarters} MiB, grown by {middles[3] - middles[1]:.2f}")


def main() -> None:
    if sys.argv[1] == "soak":
        soak(float(sys.argv[2]))
        return
    watched()
    {"threads": threads, "forks": forks, "methods": methods}[sys.argv[1]]()
    import numba

    print(numba.threading_layer())


if __name__ == "__main__":
    main()
