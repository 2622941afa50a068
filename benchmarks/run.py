"""Runs the cases, the providers of each taking turns in this process, and keeps what was measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from .suite import cases, measure, oracle, providers
from .suite.cases import Case

COPY = "copy"
"""The name under which the copy of the same bytes appears beside the providers."""


@dataclass
class Row:
    """What one provider did in one case and mode; None is what was not measured."""

    provider: str
    best_ms: float
    median_ms: float
    extra_bytes: int | None = None
    loss_ulps: float | None = None
    gradient_ulps: float | None = None


@dataclass
class Table:
    """The rows of one case and mode."""

    title: str
    loss: str
    dtype: str
    mode: str
    bytes_moved: int
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def row(self, provider: str) -> Row | None:
        """Return the row of a provider, None if it has none."""
        return next((row for row in self.rows if row.provider == provider), None)

    def ratio(self, row: Row) -> float | None:
        """Return how many times as long as fastloss a provider takes, results going to the same kind of memory."""
        reference = None if row.provider == COPY else self.row(providers.counterpart(row.provider, self.mode))
        return row.best_ms / reference.best_ms if reference else None

    def copies(self, row: Row) -> float | None:
        """Return how many copies of the same bytes a provider takes."""
        copy = self.row(COPY)
        return row.best_ms / copy.best_ms if copy else None


@dataclass
class Results:
    """What was measured, and on what."""

    machine: str
    versions: dict[str, str]
    tables: list[Table] = field(default_factory=list)

    def save(self, path: pathlib.Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> Results:
        """Return what `save` wrote."""
        stored = json.loads(path.read_text())
        tables = [Table(**{**table, "rows": [Row(**row) for row in table["rows"]]}) for table in stored["tables"]]
        return cls(stored["machine"], stored["versions"], tables)


def machine() -> str:
    """Return the threads, the processor and the system that times are of."""
    import llvmlite.binding

    name = platform.processor() or platform.machine()
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    count = providers.threads()
    core = llvmlite.binding.get_host_cpu_name()
    cores = os.cpu_count()
    return f"{count} thread{'s' * (count > 1)} of {name} ({core}, {cores} cores), {platform.system()}"


def versions() -> dict[str, str]:
    """Return the versions of what is compared."""
    import fastloss

    found = {"fastloss": fastloss.__version__, "python": platform.python_version()}
    for module, package in (
        ("numba", "numba"), ("numpy", "numpy"), ("torch", "torch"), ("jax", "jax"), ("sklearn", "scikit-learn")
    ):  # fmt: skip
        if providers.installed(module):
            found[package] = importlib.metadata.version(package)
    return found


def measured(
    case: Case,
    mode: str,
    names: list[str],
    rounds: int,
    memory: list[str],
    tick: Callable[[str], None] = lambda _: None,
) -> Table:
    """Return the table of a case and mode without the peers whose result is wrong; ours raises an AssertionError.

    The peak memory is that of the providers in `memory`. `tick` is told what is done next, `steps` times at most.
    """
    actual = cases.sized(case)
    table = Table(case.title, case.loss, case.dtype, mode, actual.bytes_moved(mode))
    runs: dict[str, providers.Run] = {}
    errors: dict[str, oracle.Errors] = {}
    for name in names:
        tick(f"{name}: check")
        try:
            run = providers.prepare(name, actual, mode)
            result = providers.result_of(run())
            providers.checked(result, actual, mode, name)
        except providers.Skipped as reason:
            table.skipped[name] = str(reason)
            continue
        errors[name], runs[name] = oracle.errors_of(result, actual), run
        del result
    oracle.truth.cache_clear()
    scale = 1.0
    try:
        runs[COPY], moved = measure.copy_of(actual)
        scale = table.bytes_moved / moved
    except providers.Skipped as reason:
        table.skipped[COPY] = str(reason)
    times = measure.alternate(runs, rounds, lambda: tick("by turns"))
    runs.clear()
    for name, (best, median) in times.items():
        if name == COPY:
            table.rows.append(Row(COPY, scale * best, scale * median))
            continue
        table.rows.append(Row(name, best, median, None, *errors[name]))
        if name in memory:
            tick(f"{name}: memory")
            table.rows[-1].extra_bytes = measure.peak_extra_bytes(name, actual, mode)
    return table


def steps(names: list[str], rounds: int) -> int:
    """Return how often `measured` ticks at most."""
    return 2 * len(names) + rounds


def default_mode(case: Case) -> str:
    """Return the mode in which a case is measured unless one is asked for: with the gradient, where it has one."""
    return "gradient" if "gradient" in case.modes() else "forward"
