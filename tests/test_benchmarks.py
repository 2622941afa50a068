"""`python -m benchmarks`: every case runs, at tiny shapes, and what is timed is right."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from fastloss import functional

TINY = [case._replace(shape=tuple(min(length, 7) for length in case.shape)) for case in benchmarks.CASES]


def test_every_case_makes_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "CASES", TINY)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--rounds", "1"])
    benchmarks.main()
    printed = capsys.readouterr().out.splitlines()
    assert [line.startswith(case.title) for line, case in zip(printed[2:], TINY, strict=True)] == [True] * len(TINY)


def test_a_wrong_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: np.ndarray, **options: object) -> tuple[float, np.ndarray]:
        loss, gradient = functional.mse_loss(*arguments, **options)
        return loss, 1.001 * gradient

    monkeypatch.setattr(benchmarks.fl, "mse_loss", wrong)
    case = next(case for case in TINY if case.loss == "mse_loss")
    with pytest.raises(AssertionError, match="Not equal"):
        list(benchmarks.lines([case], 1))
