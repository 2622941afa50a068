"""`python -m fastloss`, the README's examples, and what importing the package costs."""

from __future__ import annotations

import pathlib
import re

import pytest

from fastloss import __main__ as report

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_report_names_the_environment_checks_the_losses_and_times_the_main_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ROUNDS", 1)
    assert report.main() == 0
    printed = capsys.readouterr().out
    for name in ("fastloss", "Python", "numba", "numpy", "torch", "CPU", "vector width", "threads", "kernel cache"):
        assert re.search(rf"^{name} +\S", printed, re.MULTILINE), name
    assert printed.count("  ok\n") == 6
    assert "WRONG" not in printed
    for job in ("cross_entropy, 20,000 x 1,000", "binary_cross_entropy_with_logits, 10,000,000"):
        table = printed.partition(job)[2]
        for provider in ("fastloss", "NumPy", "torch"):
            row = re.search(rf"^{provider} +[\d.]+ +[\d.]+ x +(\S+) +(\S+)$", table, re.MULTILINE)
            assert row is not None, provider
            assert float(row[1]) < 1e-6
            assert float(row[2]) < 1e-6


def test_report_fails_where_a_loss_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "checks", lambda: iter([("mse_loss", 0.3, 0.25)]))
    monkeypatch.setattr(report, "_run_job", lambda *_: None)
    assert report.main() == 1
    assert "WRONG: it should be 0.25" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("features", "width"), [({"avx512f": True, "avx2": True}, "512"), ({"avx2": True}, "256"), ({}, "unknown")]
)
def test_vector_width_is_that_of_the_widest_registers(features: dict[str, bool], width: str) -> None:
    assert report._vector_width(features).startswith(width)


def test_readme_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, str(README), "exec"), {})
    accuracy = re.search(r"accuracy ([\d.]+)", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.95
