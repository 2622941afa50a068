"""Results as tables: in the terminal, and in the README between two markers."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table as Grid

from .run import COPY, Results, Table
from .suite import providers

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"

README_CASES = (
    "CE 4,000,000 x 2",
    "CE 2,000,000 x 10",
    "CE 20,000 x 1,000",
    "CE 1,024 x 32,000",
    "CE (8, 19, 512, 512)",
    "BCE with logits 10,000,000",
)

MODES = {
    "forward": "loss alone",
    "gradient": "loss and gradient of the mean",
    "autograd": "step of autograd",
}

COLUMNS = {
    "fastloss": "fastloss",
    "fastloss, new": "fastloss (new)",
    "fastloss.nn": "fastloss.nn",
    "numpy": "NumPy",
    "torch": "torch",
    "torch, pages reused": "torch (pages reused)",
    "torch.compile": "torch.compile",
    "jax.jit": "JAX",
    "sklearn._loss": "scikit-learn",
    COPY: "a copy",
}
"""The README's columns, by provider."""


def measured_on(results: Results) -> str:
    """Return the machine and the versions in a sentence's part."""
    return f"{results.machine}; {', '.join(' '.join(pair) for pair in results.versions.items())}"


def _number(value: float | None, unit: str = "") -> str:
    """Return three significant digits, or a dash."""
    if value is None:
        return "-"
    if value >= 1e5:
        return f"{value:.0e}{unit}"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}{unit}"


def show(table: Table, console: Console) -> None:
    """Print the rows of one case and mode."""
    dtype = "" if table.dtype != "float32" else ", float32"
    grid = Grid(title=f"{table.title}{dtype}: {MODES[table.mode]}", title_justify="left", title_style="bold")
    grid.add_column("provider", no_wrap=True)
    for heading in (
        "best\nms",
        "med.\nms",
        "by fast-\nloss's",
        "by the\ncopy's",
        "extra\nMB",
        "loss\nulp",
        "grad.\nulp",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(table.rows, key=lambda row: row.best_ms):
        extra = None if row.extra_bytes is None else row.extra_bytes / 1e6
        grid.add_row(
            row.provider,
            _number(row.best_ms),
            _number(row.median_ms),
            _number(table.ratio(row), " x"),
            _number(table.copies(row), " x"),
            _number(extra),
            _number(row.loss_ulps),
            _number(row.gradient_ulps),
            style="green" if row.provider.startswith("fastloss") else "dim" if row.provider == COPY else None,
        )
    console.print(grid)
    for provider, reason in table.skipped.items():
        console.print(f"  without {provider}: {reason}", style="dim", highlight=False)
    console.print()


def _markdown(results: Results) -> Iterator[str]:
    """Yield the lines of the README's table: the best milliseconds in float32 and the default mode."""
    tables = [
        table
        for table in results.tables
        if table.title in README_CASES and table.dtype == "float32" and table.mode == "gradient"
    ]
    present = {row.provider for table in tables for row in table.rows}
    columns = {name: heading for name, heading in COLUMNS.items() if name in present}
    yield "Loss and gradient of the mean, float32, best milliseconds; a copy reads and writes as many bytes."
    new = [heading for name, heading in columns.items() if name != COPY and providers.PROVIDERS[name].memory == "new"]
    yield f"The gradient goes to new memory at each call of {', '.join(new)}; to memory used before by the others."
    yield f"Measured by `python -m benchmarks` with {measured_on(results)}."
    yield ""
    yield f"| | {' | '.join(columns.values())} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for table in tables:
        rows = (table.row(name) for name in columns)
        yield f"| {table.title} | {' | '.join(_number(row.best_ms) if row else '' for row in rows)} |"


def update_readme(path: pathlib.Path, results: Results) -> None:
    """Replace what is between the markers of a README by the table."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has not the markers {BEGIN} and {END}")
    lines = "\n".join(_markdown(results))
    path.write_text(f"{before}{begin}\n{lines}\n{end}{after}")
