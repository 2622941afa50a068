"""The benchmarks: what is timed is right, each of asv's classes runs, and so does the command, all at tiny shapes."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import inspect
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"

os.environ["FASTLOSS_BENCHMARKS"] = "tiny"  # read when the suite is imported, here and in the processes that it starts

from benchmarks.suite import accuracy, cold_start, measure, oracle, peak_memory, providers, scaling, time_losses  # noqa: E402
from benchmarks.suite.cases import CASES, MODES, Case  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("no_fallback"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

needs_rich = pytest.mark.skipif(not importlib.util.find_spec("rich"), reason="rich is not installed")
needs_asv = pytest.mark.skipif(not importlib.util.find_spec("asv"), reason="asv is not installed")

SLOW = {"torch.compile", "torch, pages reused"}
"""They compile for some seconds, or start a process: one case of each loss is enough."""


PEAKS = {("fastloss", "gradient"), ("numpy", "forward")}
"""Of whom and in which mode peak memory is measured, for which two processes are started each time."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_every_provider_agrees_with_the_oracle(case: Case) -> None:
    tiny = case.tiny()
    first_of_its_loss = next(other for other in CASES if other.loss == case.loss) == case
    agreed = 0
    for mode, name in itertools.product(case.modes(), providers.PROVIDERS):
        if name in SLOW and not (first_of_its_loss and mode in (case.modes()[-1], "gradient")):
            continue
        try:
            run = providers.prepare(name, tiny, mode)
        except providers.Skipped:
            continue
        result = providers.result_of(run())
        oracle.check(result, tiny, mode, name)
        oracle.check(providers.result_of(run()), tiny, mode, f"{name} called again")
        agreed += 1
    assert agreed >= 3 * len(case.modes())


def test_a_wrong_result_is_found() -> None:
    case = Case("mse_loss", (100,))
    true = oracle.truth(case)
    oracle.check(true, case, "gradient", "the oracle")
    for wrong in (oracle.Result(1.001 * true.loss, true.gradient), oracle.Result(true.loss, 1.001 * true.gradient)):
        with pytest.raises(AssertionError, match="is wrong"):
            oracle.check(wrong, case, "gradient", "a wrong one")
    with pytest.raises(AssertionError, match="is wrong"):
        oracle.check(oracle.Result(true.loss, np.full(100, np.nan)), case, "gradient", "one of nan")


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "nll_loss", "mse_loss", "kl_div"])
def test_the_oracles_gradient_is_its_losss_slope(loss: str) -> None:
    case = Case(loss, (6, 5) if loss in ("cross_entropy", "nll_loss", "kl_div") else (30,), "float64")
    (input, target), true = oracle.inputs_of(case), oracle.truth(case)
    for index in np.ndindex(input.shape):
        losses = []
        for step in (1e-6, -1e-6):
            moved = input.copy()
            moved[index] += step
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(oracle, "inputs_of", lambda _, moved=moved: (moved, target))
                losses.append(oracle.truth.__wrapped__(case).loss)
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(true.gradient[index], rel=1e-5, abs=1e-8)


def test_ulps_are_units_in_the_last_place() -> None:
    true = np.array([1.0, -0.75, 1e-45])
    for dtype, epsilon in (("float32", 2.0**-23), ("bfloat16", 2.0**-7), ("float16", 2.0**-10), ("float64", 2.0**-52)):
        value = true + np.array([3 * epsilon, epsilon / 2, 0])
        assert oracle._ulps(value, true, dtype) == pytest.approx(3)


def test_a_provider_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "installed", lambda module: False)
    for name in ("torch", "jax.jit", "sklearn._loss"):
        with pytest.raises(NotImplementedError, match="not installed"):
            providers.prepare(name, CASES[0].tiny(), "gradient")


def test_peak_memory_is_that_of_the_gradient() -> None:
    case = Case("cross_entropy", (100_000, 100))
    peak = measure.peak_extra_bytes("fastloss", case, "gradient")
    assert 0.9 * 40_000_000 < peak < 1.5 * 40_000_000
    assert measure.peak_extra_bytes("fastloss", case, "forward") < 4_000_000


def _classes() -> Iterator[Any]:
    for module in (time_losses, peak_memory, accuracy, cold_start, scaling):
        for name, member in vars(module).items():
            if inspect.isclass(member) and member.__module__ == module.__name__ and not name.startswith("_"):
                yield pytest.param(member, id=f"{module.__name__.rpartition('.')[2]}.{name}")


@pytest.mark.slow
@pytest.mark.parametrize("benchmark_class", list(_classes()))
def test_each_asv_class_runs_once(benchmark_class: Any) -> None:
    """As asv does it: setup, which alone may skip, every method, teardown. Slow providers are left to other tests."""
    ran = 0
    for parameters in itertools.product(*benchmark_class.params):
        if SLOW.intersection(map(str, parameters)) or (
            benchmark_class is peak_memory.PeakMemory and parameters[0::2] not in PEAKS
        ):
            continue
        benchmark = benchmark_class()
        try:
            benchmark.setup(*parameters)
        except providers.Skipped:
            continue
        for name in dir(benchmark):
            if re.match("(time|track)_", name):
                measured = getattr(benchmark, name)(*parameters)
                assert measured is None if name.startswith("time_") else measured >= 0
                ran += 1
        getattr(benchmark, "teardown", lambda *_: None)(*parameters)
    assert ran
    assert len(benchmark_class.param_names) == len(benchmark_class.params)


@needs_rich
@pytest.mark.slow
def test_the_command_measures_saves_plots_and_writes_the_readme(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    readme, saved, plot = tmp_path / "README.md", tmp_path / "results.json", tmp_path / "plot.png"
    readme.write_text(f"before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\n{(ROOT / 'README.md').read_text()[:9]}")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", "CE 20,000 x 1,000"]
    arguments = ["--save", str(saved), "--plot", str(plot), "--update-readme", str(readme)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CE 20,000 x 1,000" in done.stdout
    table = json.loads(saved.read_text())["tables"][0]
    assert {"fastloss", "fastloss.nn", "numpy", "torch", "copy"} <= {row["provider"] for row in table["rows"]}
    assert all(row["extra_bytes"] is not None for row in table["rows"] if row["provider"] == "fastloss")
    assert plot.read_bytes()[1:4] == b"PNG"
    written = readme.read_text()
    assert "old" not in written
    assert written.startswith("before\n<!-- benchmarks -->\n")
    assert written.endswith("<!-- /benchmarks -->\n# fastlos")
    assert re.search(r"^\| CE 20,000 x 1,000 \| [\d.,]+ \|", written, re.MULTILINE)
    again = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--load", str(saved)], cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "CE 20,000 x 1,000" in again.stdout


def test_the_readme_has_the_markers() -> None:
    assert re.search("<!-- benchmarks -->.*<!-- /benchmarks -->", (ROOT / "README.md").read_text(), re.DOTALL)


def _asv(*arguments: str, folder: pathlib.Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ASV_PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "asv", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the site that asv publishes of two commits of a repository made for it."""
    folder = tmp_path_factory.mktemp("asv")
    repository = folder / "repository"
    repository.mkdir()

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.strip()

    shutil.copytree(BENCHMARKS / "suite", folder / "suite", ignore=shutil.ignore_patterns("__pycache__"))
    text = re.sub("//.*", "", (BENCHMARKS / "asv.conf.json").read_text().replace("https://", ""))
    settings = {**json.loads(text), "repo": str(repository), "project_url": "https://example.org"}
    (folder / "asv.conf.json").write_text(json.dumps(settings))
    git("init", "-b", "main")
    _asv("machine", "--yes", folder=folder)
    for subject in ("first", "second"):
        git("commit", "--allow-empty", "-m", subject)
        commit = git("rev-parse", "HEAD")
        chosen = ["--bench", "accuracy.Accuracy.track_loss.*fastloss', 'MSE 1,000,000', 'float32"]
        _asv("run", "--python=same", "--quick", "--set-commit-hash", commit, *chosen, folder=folder)
    _asv("publish", folder=folder)
    return folder / ".asv" / "html"


@needs_asv
@pytest.mark.slow
def test_asv_finds_no_fault_and_publishes_two_commits(site: pathlib.Path) -> None:
    assert "No problems found" in _asv("check", "--python=same", folder=site.parent.parent)
    graphs = list(site.glob("graphs/**/accuracy.Accuracy.track_loss.json"))
    assert any(len(json.loads(path.read_text())) == 2 for path in graphs)
    assert "accuracy.Accuracy.track_loss" in json.loads((site / "index.json").read_text())["benchmarks"]


PACKAGES = {
    "jquery": "jquery@3.3.1/dist/jquery.min.js",
    "flot-orderbars": "flot-orderbars@1.0.0/js/jquery.flot.orderBars.js",
    "jquery.flot.min": "flot@0.8.3/jquery.flot.js",
    "jquery.flot.time": "flot@0.8.3/jquery.flot.time.js",
    "jquery.flot.selection": "flot@0.8.3/jquery.flot.selection.js",
    "jquery.flot.categories": "flot@0.8.3/jquery.flot.categories.js",
    "stupidtable": "stupid-table-plugin@1.1.3/stupidtable.min.js",
    "md5": "blueimp-md5@2.19.0/js/md5.min.js",
    "bootstrap": "bootstrap@3.1.1/dist/js/bootstrap.min.js",
}
"""Where npm has the scripts that asv's page loads from the network, by a part of their address."""


def _localize(site: pathlib.Path) -> None:
    """Let the page load its scripts from npm's packages, so that it needs no host but the package registry."""
    vendor = site / "vendor"
    vendor.mkdir()
    for package in sorted({path.partition("/")[0] for path in PACKAGES.values()}):
        packed = subprocess.run(["npm", "pack", "--silent", package], cwd=vendor, capture_output=True, text=True)
        if packed.returncode:
            pytest.skip(f"npm cannot fetch {package}, which asv's page loads from the network")
        (vendor / package).mkdir()
        subprocess.run(
            ["tar", "xzf", packed.stdout.strip(), "-C", package, "--strip-components=1"], cwd=vendor, check=True
        )
    page = site / "index.html"

    def local(match: re.Match[str]) -> str:
        name = match[1].rpartition("/")[2]
        part = max((part for part in PACKAGES if part in match[1] or part in name), key=len)
        return f'<script src="vendor/{PACKAGES[part]}"></script>'

    text = re.sub(r'<script src="(https://[^"]+)"[^>]*></script>', local, page.read_text())
    page.write_text(re.sub(r'<link rel="stylesheet" href="https://[^>]*>', "", text))


@needs_asv
@pytest.mark.slow
def test_chromium_draws_a_benchmarks_graph(site: pathlib.Path, tmp_path: pathlib.Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, from whose packages come the scripts that asv's page loads from the network")
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    _localize(copy)
    handler = functools.partial(_Quiet, directory=str(copy))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/#accuracy.Accuracy.track_loss"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
        done = subprocess.run(
            [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", address], capture_output=True, text=True
        )
        server.shutdown()
    assert re.search('<canvas[^>]*class="flot-base"', done.stdout), done.stderr[-2000:]
    assert "track_loss" in done.stdout
    assert re.search('class="flot-text".*tickLabel', done.stdout, re.DOTALL)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Keep the requests out of the test's output."""


def test_modes_are_known() -> None:
    assert all(set(case.modes()) <= set(MODES) for case in CASES)
    assert len({case.title for case in CASES}) == len(CASES)


def test_training_compares_the_steps_with_the_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = pytest.importorskip("benchmarks.training", reason="needs torch")
    monkeypatch.setattr(training, "SHAPES", [(300, 7)])
    monkeypatch.setattr(sys, "argv", ["benchmarks.training", "--steps", "2"])
    training.main()
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == "300 x 7"
    assert [row.split()[0] for row in rows] == ["kernel", "fastloss.nn", "torch.nn"]
    assert all(float(row.split()[1]) > 0 for row in rows)


def test_limits_compares_each_kind_of_work_with_a_copy_and_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = pytest.importorskip("benchmarks.limits", reason="needs torch")
    work = {
        "classes": limits.Work("cross_entropy", limits.rows(300, 7, "float16", label_smoothing=0.1)),
        "elements": limits.Work("binary_cross_entropy", limits.elements((900,), make="unit")),
        "forward": limits.Work("kl_div", limits.elements((900,), make="logs"), with_grad=False),
        "output": limits.Work("softmax", limits.without_target(300, 7)),
    }
    monkeypatch.setattr(limits, "WORK", work)
    monkeypatch.setattr(sys, "argv", ["benchmarks.limits", "--rounds", "2"])
    limits.main()
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == [f"| {title}" for title in work]
    for row in rows:
        numbers = [float(number) for number in row.strip("| ").split(" | ")[1:]]
        assert len(numbers) == heading.count(" | ")
        assert all(number >= 0 for number in numbers)


def test_the_work_of_limits_is_done_by_torch_too() -> None:
    limits = pytest.importorskip("benchmarks.limits", reason="needs torch")
    logits, target = np.zeros((5, 3), np.float32), np.array([0, 1, 2, 0, 1])
    for with_grad in (False, True):
        runs, scale = limits.runs_of(limits.Work("cross_entropy", lambda _: (logits, target, {}), with_grad))
        assert scale == (1.0 + 5 * 8 / (2 * logits.nbytes) if with_grad else 1.0)
        ours, theirs = runs["fastloss"](), runs["torch"]()
        result, expected = (ours[1], theirs[0]) if with_grad else (ours, theirs)
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5)
