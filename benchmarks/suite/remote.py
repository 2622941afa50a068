"""A process that runs a provider for this one: with another allocator, or with nothing in it but what is measured.

`python -m suite.remote` answers questions, pickles on its standard input, with pickles on its standard output.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import pickle
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

_away = 0.0


def clock() -> float:
    """Return seconds of a clock that stands still while a question is on its way to or from another process."""
    return time.perf_counter() - _away


def allocator_that_keeps_pages() -> dict[str, str]:
    """Return the environment in which glibc gives no memory back, so that a large result finds its pages there."""
    keep = str(1 << 32)
    return {"MALLOC_MMAP_MAX_": "0", "MALLOC_MMAP_THRESHOLD_": keep, "MALLOC_TRIM_THRESHOLD_": keep}


class RemoteError(RuntimeError):
    """A question failed in the other process; the message ends with its traceback."""


class Worker:
    """A process of this package, asked for one thing at a time, which ends with this object."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        assert __package__ is not None
        root = pathlib.Path(__file__).parents[len(__package__.split("."))]
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.remote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        )
        self.close = weakref.finalize(self, _end, self._process)

    def ask(self, question: str, *arguments: Any) -> Any:
        """Return the answer to a question, one of the functions below; raise what it raises if that is `Skipped`."""
        from .providers import Skipped

        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((question, arguments), self._process.stdin)
        self._process.stdin.flush()
        try:
            kind, answer = pickle.load(self._process.stdout)
        except EOFError:
            raise RemoteError(f"the process of {question} {arguments} ended") from None
        if kind == "skipped":
            raise Skipped(answer)
        if kind == "error":
            raise RemoteError(answer)
        return answer


class RemoteRun:
    """Runs a provider in a worker; what a call returns has its result only when `fetch` is called."""

    def __init__(self, environment: dict[str, str], *prepared: Any) -> None:
        self._worker = Worker(environment)
        self._worker.ask("prepare", *prepared)

    def __call__(self) -> RemoteRun:
        """Run once; the clock advances by what the other process took."""
        global _away
        start = time.perf_counter()
        seconds = self._worker.ask("run")
        _away += time.perf_counter() - start - seconds
        return self

    def fetch(self) -> Any:
        """Return the result of another run, as arrays."""
        return self._worker.ask("result")


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.wait()


_prepared: list[Callable[[], Any]] = []


def _prepare(*arguments: Any) -> None:
    from . import providers

    _prepared[:] = [providers.prepare(*arguments)]


def _run() -> float:
    run = _prepared[0]
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _result() -> Any:
    from . import providers

    return providers.result_of(_prepared[0]())


def _peak(name: str, case: Any, mode: str, work: bool) -> int:
    """Return the most bytes that this process had, having prepared a case and, if it is to `work`, run it.

    Compilers take memory too; so the case is run once before, and the peak is that from there on, where the system lets
    it be reset. It is prepared anew in between, so that buffers made for it are not yet in memory.
    """
    from . import providers

    providers.prepare(name, case, mode)()
    _give_memory_back()
    run = providers.prepare(name, case, mode)
    _give_memory_back()
    if sys.platform == "linux":
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    if work:
        run()
    return _peak_resident()


def _give_memory_back() -> None:
    """Return free memory to the operating system, so that whoever needs it next is seen to take it."""
    gc.collect()
    if "fastloss.nn" in sys.modules:
        sys.modules["fastloss.nn"].release_memory()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _peak_resident() -> int:
    """Return the most bytes that this process had in memory.

    On Linux, `ru_maxrss` of a new process begins with that of its parent; VmHWM does not.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _first_call(name: str, case: Any, mode: str) -> float:
    """Return the seconds from a process that has its inputs to its first result, imports included."""
    from . import cases, providers

    cases.inputs_of(case)
    start = time.perf_counter()
    providers.prepare(name, case, mode)()
    return time.perf_counter() - start


_QUESTIONS: dict[str, Callable[..., Any]] = {
    "prepare": _prepare,
    "run": _run,
    "result": _result,
    "peak": _peak,
    "first_call": _first_call,
}


def serve() -> None:
    """Answer questions until there are no more."""
    import traceback

    from .providers import Skipped

    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get between the answers
    while True:
        try:
            question, arguments = pickle.load(questions)
        except EOFError:
            return
        try:
            answer = ("answer", _QUESTIONS[question](*arguments))
        except Skipped as reason:
            answer = ("skipped", str(reason))
        except Exception:
            answer = ("error", traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    from importlib import import_module

    import_module(f"{__package__}.remote").serve()  # the module, of which what is pickled is a part, not its copy here
