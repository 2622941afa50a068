"""`python -m benchmarks`: every loss by fastloss and its peers in turns, beside a copy of the same bytes."""

from __future__ import annotations

import argparse
import pathlib
import warnings

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import report, run
from .suite import cases, providers

README = pathlib.Path(__file__).parent.parent / "README.md"

QUICK_MEMORY = ("fastloss",)
"""Whose peak memory is measured with --quick: that of each takes two processes and some ten seconds."""


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cases, few rounds: less than 90 seconds")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="only cases whose title contains this; may be repeated")  # fmt: skip
    parser.add_argument("--mode", choices=[*cases.MODES, "all"], help="default: gradient, where a case has it")
    parser.add_argument(
        "--provider", action="append", choices=[*providers.PROVIDERS], help="only this; may be repeated"
    )
    parser.add_argument("--rounds", type=int, help="turns of each provider (default: 9; with --quick 3)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--load", type=pathlib.Path, metavar="FILE", help="measure nothing, report what --save wrote")
    parser.add_argument("--save", type=pathlib.Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="write a picture of the results")
    parser.add_argument("--update-readme", nargs="?", type=pathlib.Path, const=README, metavar="FILE",
                        help="write the table between the markers of the README")  # fmt: skip
    return parser.parse_args()


def chosen(asked: argparse.Namespace) -> list[tuple[cases.Case, str]]:
    """Return the cases and modes to run; a case that --only names is run even if --quick alone would leave it out."""
    every = cases.QUICK if asked.quick and not asked.only else cases.CASES
    texts = [text.lower() for text in asked.only]
    titled = [case for case in every if not texts or any(text in case.title.lower() for text in texts)]
    exact = [case for case in titled if case.title.lower() in texts]
    pairs = [
        (case, mode)
        for case in (exact if len(exact) == len(texts) > 0 else titled)
        for mode in (case.modes() if asked.mode == "all" else [asked.mode or run.default_mode(case)])
        if mode in case.modes()
    ]
    if not pairs:
        raise SystemExit(f"no case is called {asked.only!r}; --list names them all")
    return pairs


def measure(asked: argparse.Namespace, console: Console) -> run.Results:
    """Return what the chosen cases take, each printed once it is known."""
    names = asked.provider or list(providers.PROVIDERS)
    rounds = asked.rounds or (3 if asked.quick else 9)
    pairs = chosen(asked)
    results = run.Results(run.machine(), run.versions())
    console.print(report.measured_on(results), highlight=False)
    if cases.TINY:
        console.print("FASTLOSS_BENCHMARKS=tiny: the shapes are not those of the titles, and the times mean nothing")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        total = len(pairs) * run.steps(names, rounds)
        task = progress.add_task("", total=total)
        for done, (case, mode) in enumerate(pairs):
            progress.update(task, completed=done * total // len(pairs))

            def tick(what: str, title: str = case.title) -> None:
                progress.update(task, description=f"{title}, {what}", advance=1)

            of = [] if asked.no_memory else [name for name in names if not asked.quick or name in QUICK_MEMORY]
            results.tables.append(run.measured(case, mode, names, rounds, of, tick))
            report.show(results.tables[-1], progress.console)
    return results


def main() -> None:
    """Run the command."""
    asked = options()
    console = Console(width=max(Console().width, 96))
    if asked.list:
        for case in cases.CASES:
            console.print(f"{case.title}: {', '.join(case.modes())}", highlight=False)
        return
    warnings.filterwarnings("ignore", module="torch")
    results = run.Results.load(asked.load) if asked.load else measure(asked, console)
    if asked.load:
        console.print(report.measured_on(results), highlight=False)
        for table in results.tables:
            report.show(table, console)
    if asked.save:
        results.save(asked.save)
    if asked.plot:
        from . import plot

        plot.draw(results, asked.plot)
    if asked.update_readme:
        report.update_readme(asked.update_readme, results)


if __name__ == "__main__":
    main()
