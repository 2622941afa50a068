"""Results as a picture: how many times as long as fastloss each peer takes, and the memory's roof."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from .report import MODES, measured_on
from .run import COPY, Results, Table

STYLES = {
    "fastloss": ("#000000", "o", ""),
    "fastloss, new": ("#FFFFFF", "o", ""),
    "fastloss.nn": ("#56B4E9", "P", ""),
    "numpy": ("#E69F00", "s", "//"),
    "torch": ("#D55E00", "^", ""),
    "torch, pages reused": ("#CC79A7", "v", "\\\\"),
    "torch.compile": ("#0072B2", "D", ".."),
    "jax.jit": ("#009E73", "X", "xx"),
    "sklearn._loss": ("#F0E442", "*", "--"),
}
"""The colour (M. Okabe and K. Ito's, for the colour-blind too), marker and hatch of each provider."""


def draw(results: Results, path: pathlib.Path) -> None:
    """Write the picture of the results that are in float32 and of the first of their modes."""
    mode = results.tables[0].mode
    tables = [table for table in results.tables if table.dtype == "float32" and table.mode == mode]
    with mpl.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        height = 3.2 + 1.0 * len(tables)
        figure, (bars, roof) = plt.subplots(2, 1, figsize=(10, height + 4.6), height_ratios=[height, 4.6])
        _bars(bars, tables)
        _roof(roof, tables)
        figure.suptitle(f"{MODES[mode].capitalize()}, float32", fontweight="bold")
        figure.supxlabel(_wrapped(measured_on(results)), fontsize=9, color="0.35")
        figure.tight_layout()
        figure.savefig(path, dpi=100)
        plt.close(figure)


def _wrapped(text: str) -> str:
    head, _, tail = text.partition("; ")
    return f"{head}\n{tail}"


def _bars(axes: Any, tables: list[Table]) -> None:
    """Draw a group of bars for each case: a peer's time over that of the fastloss with which it is compared."""
    peers = [name for name in STYLES if any(table.row(name) for table in tables)]
    peers = [name for name in peers if not name.startswith("fastloss")]
    thickness = 0.84 / max(len(peers), 1)
    for number, peer in enumerate(peers):
        colour, _, hatch = STYLES[peer]
        for group, table in enumerate(tables):
            row = table.row(peer)
            ratio = None if row is None else table.ratio(row)
            if ratio is None:
                continue
            place = group - 0.42 + (number + 0.5) * thickness
            label = peer if not any(peer == text for text in axes.get_legend_handles_labels()[1]) else None
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5, "label": label}
            axes.barh(place, ratio - 1, thickness, left=1, **look)
            text = f" {ratio:.1f}" if ratio < 10 else f" {ratio:.0f}"
            axes.annotate(text, (max(ratio, 1), place), va="center", fontsize=9)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.set_yticks(range(len(tables)), [table.title for table in tables])
    axes.set_ylim(len(tables) - 0.5, -0.5)
    axes.set_xlabel("times as long as fastloss, both to new memory or both to memory used before")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _roof(axes: Any, tables: list[Table]) -> None:
    """Draw the bytes a second that each provider gets done of those that must be moved, under those of a copy."""
    columns = range(len(tables))
    names = [name for name in STYLES if any(table.row(name) for table in tables)]
    for number, name in enumerate(names):
        colour, marker, _ = STYLES[name]
        aside = 0.72 * ((number + 0.5) / len(names) - 0.5)  # so that no marker hides another
        places, heights = [], []
        for column, table in zip(columns, tables, strict=True):
            row = table.row(name)
            if row is not None:
                places.append(column + aside)
                heights.append(table.bytes_moved / row.best_ms / 1e6)
        size = 10 if name.startswith("fastloss") else 8
        axes.plot(places, heights, marker, color=colour, markeredgecolor="black", markersize=size, label=name)
    for column, table in zip(columns, tables, strict=True):
        copy = table.row(COPY)
        if copy is not None:
            height = table.bytes_moved / copy.best_ms / 1e6
            label = "roof: a copy of as many bytes" if column == 0 else None
            axes.hlines(height, column - 0.4, column + 0.4, color="black", linewidth=2.5, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 3)))
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.set_xticks(columns, [table.title for table in tables], rotation=25, ha="right", fontsize=10)
    axes.set_xlim(-0.6, len(tables) - 0.4)
    axes.set_ylabel("GB/s of the bytes\nthat must be moved")
    axes.grid(axis="y", color="0.9")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=10)
