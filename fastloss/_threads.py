"""When a kernel runs on the calling thread, when on all, and how work is cut into blocks: the one place that knows."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import operator
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from fastloss._kernels._apart import apart

SERIAL_ELEMENTS = 1 << 15
"""Below so many elements the calling thread is faster alone: starting the others costs 3 to 10 microseconds."""

BLOCK_ELEMENTS = 1 << 13
"""A block has at least so many elements, which take some microseconds."""

BLOCKS = 512
"""There are at most so many blocks, enough to keep 64 threads evenly busy."""

_ALONE, _ALL_BLOCKS = 0, -1
"""A kernel's launcher and block where the calling thread is to do all blocks."""

_launcher = _ALONE
"""That of all threads, once a call has needed it."""

_limit = threading.local()
"""Its `threads` is the most that calls of this Python thread may use; without it, as many as Numba has."""

_layer: str | None = None
"""The name of Numba's threading layer, once a call has needed it."""

_launch = threading.Lock()
"""Held during a parallel call on the workqueue layer, which aborts the process when two threads make one at once."""

_launching: set[int] = set()
"""The threads that are in a parallel call."""

_alone = False
"""Whether calls run serially, because this process was forked from one whose threading layer does not survive that."""


def _is_forked() -> bool:
    """Return whether this process goes on with what its parent began, as far as the platform tells."""
    try:
        with open("/proc/self/stat", "rb") as file:
            status = file.read()
    except OSError:
        return False
    flags = int(status.rpartition(b")")[2].split()[6])
    served = any("multiprocessing.forkserver" in argument for argument in sys.orig_argv)  # by one that began nothing
    return bool(flags & 0x40) and not served  # PF_FORKNOEXEC of Linux, include/linux/sched.h


_forked = _is_forked()
"""Whether this process was forked, before fastloss was imported or after."""

_starter: int | None = None
"""The thread that started the layer. tbb survives a fork by that one alone."""

_forked_by_starter = False

loading = threading.RLock()
"""Held while the kernels are imported."""

_LOCKS = (("numba.core.compiler_lock", "global_compiler_lock"), ("llvmlite.binding.ffi", "lib._lock"))
"""The locks of Numba and of LLVM, which other threads hold while they compile, or free what they compiled."""

_held = contextlib.ExitStack()
"""The locks that a fork holds."""


def _before_fork() -> None:
    """Wait for what other threads import and compile: the child could never finish it, nor begin it anew."""
    global _forked_by_starter
    _held.enter_context(loading)
    for module, name in _LOCKS:
        with contextlib.suppress(AttributeError):  # where it is not imported, or named otherwise
            _held.enter_context(operator.attrgetter(name)(sys.modules.get(module)))
    _forked_by_starter = threading.get_ident() == _starter


def _after_fork() -> None:
    _held.pop_all().close()  # once `loading` is free, another thread's fork fills the stack


def _after_fork_in_child() -> None:
    """Run serially from now on where the parent's threading layer would kill this process or hang.

    Of all layers tbb alone survives a fork, by the thread that started it and while nothing runs.
    """
    global _alone, _forked
    _after_fork()
    _forked = True
    launched = getattr(sys.modules.get("numba.np.ufunc.parallel"), "_threading_layer", None)
    if launched is not None and (launched != "tbb" or _launching or not _forked_by_starter):
        _alone = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def block_length(units: int, elements_per_unit: int) -> int:
    """Return how many of `units` pieces of work make a block, which depends on the shape alone."""
    return max(-(-units // BLOCKS), -(-BLOCK_ELEMENTS // max(elements_per_unit, 1)), 1)


def block_count(units: int, length: int) -> int:
    """Return how many blocks of `length` units there are, at least one."""
    return max(-(-units // length), 1)


class at_most:
    """A context in which kernels that this Python thread runs use at most so many threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        self._outer = getattr(_limit, "threads", None)
        _limit.threads = self._threads

    def __exit__(self, *exception: object) -> None:
        _limit.threads = self._outer


def threads_for(elements: int) -> int:
    """Return how many threads `run` calls a kernel on that has so many `elements` to do: one where more do not pay."""
    if elements < SERIAL_ELEMENTS or not _started():
        return 1
    import numba

    available = numba.get_num_threads()
    return min(getattr(_limit, "threads", None) or available, available)


def run(kernel: Any, elements: int, blocks: int, *arguments: Any) -> None:
    """Have `kernel` do its `blocks` on all threads where its `elements` are worth it, else on the calling thread."""
    if elements < SERIAL_ELEMENTS or (threads := threads_for(elements)) == 1:
        kernel(_ALONE, blocks, _ALL_BLOCKS, *arguments)
        return
    import numba

    available = numba.get_num_threads()
    if threads == available:
        _launched(kernel, blocks, arguments)
        return
    try:
        numba.set_num_threads(threads)
        _launched(kernel, blocks, arguments)
    finally:
        numba.set_num_threads(available)


def _launched(kernel: Any, blocks: int, arguments: tuple[Any, ...]) -> None:
    global _launcher
    if _launcher == _ALONE:
        from fastloss._kernels._blocks import launcher

        _launcher = launcher()
    if _layer == "workqueue":
        if not _launch.acquire(blocking=False):
            kernel(_ALONE, blocks, _ALL_BLOCKS, *arguments)  # in 0.4 to 0.9 of the time of waiting, of 2 threads or 16
            return
        try:
            kernel(_launcher, blocks, _ALL_BLOCKS, *arguments)
        finally:
            _launch.release()
        return
    thread = threading.get_ident()
    _launching.add(thread)
    try:
        kernel(_launcher, blocks, _ALL_BLOCKS, *arguments)
    finally:
        _launching.discard(thread)


def _started() -> bool:
    """Return whether this process can run in parallel; start Numba's threading layer if nothing has."""
    if _layer is None and not _alone:
        if not _beside_torch() and _find_tbb():
            _start()
        else:
            apart(_start)  # OpenMP sets the number of torch's threads in the thread that starts it
    return not _alone


def _start() -> None:
    global _alone, _layer, _starter
    import numba
    from numba.core.compiler_lock import global_compiler_lock

    with global_compiler_lock:  # which a fork waits for
        if _layer is None:
            _starter = threading.get_ident()
            with _omp_first() if _beside_torch() else contextlib.nullcontext():
                numba.get_num_threads()
            name: str = numba.threading_layer()  # type: ignore[attr-defined]  # public, but not in numba's __all__
            # Whatever the parent ran with OpenMP, as torch does, makes the child's first parallel call hang.
            _alone = _forked and name == "omp"
            _layer = name


def _config() -> Any:
    """Return Numba's settings, attributes that it makes when it is imported."""
    from numba import config

    return config


def _beside_torch() -> bool:
    """Return whether torch's threads are those of the omp layer, and the user leaves the choice to us.

    They are OpenMP's, which spin for some milliseconds after each of torch's calls: kernels on omp run on them, kernels
    on tbb share the cores with them and take 1.3 to 1.9 times as long.
    """
    layer, priority = _config().THREADING_LAYER, _config().THREADING_LAYER_PRIORITY
    by_default = str(layer).lower() == "default" and priority == ["tbb", "omp", "workqueue"]
    return by_default and sys.platform == "linux" and "torch" in sys.modules and not _forked


@contextlib.contextmanager
def _omp_first() -> Iterator[None]:
    """A context in which Numba prefers OpenMP to tbb."""
    config = _config()
    priority = config.THREADING_LAYER_PRIORITY
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    try:
        yield
    finally:
        config.THREADING_LAYER_PRIORITY = priority


def _find_tbb() -> bool:
    """Return whether Numba can have tbb; load that of the wheel, which lies off the loader's path, so that it can."""
    if str(_config().THREADING_LAYER).lower() in ("omp", "workqueue"):
        return False
    libraries = ["libtbb.so.12", "libtbb.12.dylib", "tbb12.dll"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        libraries += [str(file.locate()) for file in importlib.metadata.files("tbb") or () if file.name in libraries]
    for library in libraries:
        with contextlib.suppress(OSError):
            ctypes.CDLL(library)
            return True
    return False
