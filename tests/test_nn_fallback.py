"""What the kernels do not serve, or would not make faster, torch's own functions answer."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as own
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastloss
import fastloss.nn.functional as F
from fastloss import _engine

ROOT = pathlib.Path(fastloss.__file__).parent.parent


class Subclass(torch.Tensor):
    pass


pytestmark = pytest.mark.usefixtures("no_fallback")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which each call of the engine adds its name."""
    calls: list[str] = []
    for name in ("class_loss", "element_loss", "log_softmax", "softmax", "element_function"):
        evaluate = getattr(_engine, name)

        def counted(*arguments: Any, name: str = name, evaluate: Callable[..., Any] = evaluate, **options: Any) -> Any:
            calls.append(name)
            return evaluate(*arguments, **options)

        monkeypatch.setattr(_engine, name, counted)
    return calls


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator).to(dtype), torch.randint(5, (6,), generator=generator)


def test_plain_tensors_go_to_the_kernels(kernels: list[str]) -> None:
    input, target = problem()
    F.cross_entropy(input, target)
    F.cross_entropy(torch.nn.Parameter(input), target)
    F.mse_loss(input, input)
    F.softmax(input, 1)
    F.sigmoid(input)
    assert kernels == ["class_loss", "class_loss", "element_loss", "softmax", "element_function"]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.as_subclass(Subclass),
        lambda x: x.to("meta"),
        lambda x: torch._neg_view(x),
        lambda x: x.to(torch.complex64),
        lambda x: x.to(torch.int64),
        lambda x: x.to_sparse(),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: torch.nested.nested_tensor([x[:2], x[2:]]),
        lambda x: x[:0],
        lambda x: x.tolist(),
    ],
    ids=["subclass", "meta", "negative", "complex", "integer", "sparse", "quantized", "nested", "empty", "list"],
)
@pytest.mark.filterwarnings("ignore:.*quantize.*deprecated", "ignore:The PyTorch API of nested tensors")
def test_other_inputs_go_to_torch(change: Callable[[torch.Tensor], Any], kernels: list[str]) -> None:
    input, target = problem()
    changed = change(input)
    target = target[:0] if isinstance(changed, torch.Tensor) and changed.numel() == 0 else target
    outcomes = []
    for module in (own, F):
        try:
            loss = module.cross_entropy(changed, target.to("meta") if getattr(changed, "is_meta", False) else target)
            outcomes.append((type(loss), loss.device, loss.dtype, str(loss)))
        except Exception as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
    assert kernels == []


def test_other_targets_and_weights_go_to_torch(kernels: list[str]) -> None:
    input, target = problem()
    F.cross_entropy(input, torch.rand(6, 5, requires_grad=True))
    F.cross_entropy(input, torch.rand(6, 5), torch.rand(5, requires_grad=True))
    both = torch.rand(6, 5, requires_grad=True)
    F.binary_cross_entropy_with_logits(both, both)
    F.binary_cross_entropy_with_logits(input, torch.rand(6, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        F.cross_entropy(input, target, torch.rand(5, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        F.cross_entropy(input, target.int())
    assert kernels == []


class Spy(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def test_dispatch_modes_see_torchs_operators(kernels: list[str]) -> None:
    input, target = problem()
    with Spy() as spy:
        F.cross_entropy(input, target)
    assert any("log_softmax" in name for name in spy.names)
    with FlopCounterMode(display=False):
        F.cross_entropy(input, target)
    with FakeTensorMode() as mode:
        assert F.cross_entropy(mode.from_tensor(input), mode.from_tensor(target)).shape == ()
    with torch.device("cpu"):
        F.cross_entropy(input, target)
    assert kernels == []


def test_traces_hold_torchs_operators(kernels: list[str]) -> None:
    input, target = problem()
    traced = make_fx(lambda x, t: F.cross_entropy(x, t))(input, target)
    assert "log_softmax" in traced.code
    symbolic = torch.fx.symbolic_trace(lambda x, t: F.cross_entropy(x, t))
    torch.testing.assert_close(symbolic(input, target), own.cross_entropy(input, target))
    assert kernels == []


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace. is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace_method. is:DeprecationWarning")
def test_jit_traces_hold_torchs_operators(kernels: list[str]) -> None:
    input, target = problem()
    traced = torch.jit.trace(lambda x, t: F.cross_entropy(x, t), (input, target), check_trace=False)
    torch.testing.assert_close(traced(input + 1, target), own.cross_entropy(input + 1, target))
    assert "cross_entropy_loss" in str(traced.graph)
    assert kernels == []


def test_small_inputs_go_to_torch(kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTLOSS_MIN_SIZE")
    input, target = problem()
    F.cross_entropy(input, target)
    assert kernels == []
    monkeypatch.setenv("FASTLOSS_MIN_SIZE", "31")
    F.cross_entropy(input, target)
    assert kernels == []
    monkeypatch.setenv("FASTLOSS_MIN_SIZE", "30")
    F.cross_entropy(input, target)
    assert kernels == ["class_loss"]
    monkeypatch.setenv("FASTLOSS_MIN_SIZE", "few")
    with pytest.raises(ValueError, match="FASTLOSS_MIN_SIZE is 'few'"):
        F.cross_entropy(input, target)


@pytest.mark.parametrize(("classes", "tier"), [(2, 0), (7, 0), (8, 1), (16, 1), (17, 2), (300, 2)])
@pytest.mark.parametrize("with_grad", [True, False])
def test_crossovers_by_classes(
    classes: int, tier: int, with_grad: bool, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTLOSS_MIN_SIZE")
    assert set(F.CROSSOVERS) == set(F.__all__)
    rows = -(-F.CROSSOVERS["cross_entropy"][tier][not with_grad] // classes)
    logits, labels = torch.zeros(rows, classes, requires_grad=with_grad), torch.zeros(rows, dtype=torch.int64)
    F.cross_entropy(logits[1:], labels[1:])
    assert kernels == []
    F.cross_entropy(logits, labels)
    assert kernels == ["class_loss"]
    # Classes that do not lie side by side have the last crossover.
    F.cross_entropy(torch.zeros(classes, rows, requires_grad=with_grad).T, labels)
    F.cross_entropy(torch.zeros(1, classes, rows, requires_grad=with_grad), labels[None])
    is_large = logits.numel() >= F.CROSSOVERS["cross_entropy"][-1][not with_grad]
    assert len(kernels) == (3 if is_large else 1)
    for name in ("softmax", "log_softmax"):
        rows = -(-F.CROSSOVERS[name][tier][not with_grad] // classes)
        logits = torch.zeros(rows, classes, requires_grad=with_grad)
        kernels.clear()
        for dim in (1, -1):
            getattr(F, name)(logits[1:], dim)
            getattr(F, name)(logits, dim)
        if tier < 2:
            getattr(F, name)(logits, 0)
        assert kernels == [name] * 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support is in beta")
def test_large_tensors_without_strides_go_to_torch(kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTLOSS_MIN_SIZE")
    logits = torch.zeros(1 << 15, 5)
    nested = torch.nested.nested_tensor([logits[:9], logits[9:]])
    assert F.softmax(nested, -1).is_nested
    with pytest.raises(NotImplementedError, match="Could not run"):
        F.softmax(logits.to_sparse_csr(), -1)
    assert kernels == []


def test_nll_loss_reads_no_more_than_a_class_of_a_row(kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTLOSS_MIN_SIZE")
    labels = torch.zeros(8, dtype=torch.int64)
    F.nll_loss(torch.zeros(8, 1 << 18), labels)
    assert kernels == []
    rows = F.CROSSOVERS["nll_loss"][0][1]
    F.nll_loss(torch.zeros(rows, 2), labels[:1].expand(rows))
    assert kernels == ["class_loss"]
    rows = F.CROSSOVERS["nll_loss"][0][0] // 2
    F.nll_loss(torch.zeros(rows, 2, requires_grad=True), labels[:1].expand(rows))
    assert kernels == ["class_loss"] * 2


@pytest.mark.parametrize("name", sorted(F.CROSSOVERS))
def test_small_inputs_of_each_function_go_to_torch(
    name: str, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTLOSS_MIN_SIZE")
    _, labels = problem()
    probabilities = torch.softmax(problem()[0], 1)
    others: dict[str, tuple[Any, ...]] = {
        "cross_entropy": (labels,), "nll_loss": (labels,), "softmax": (1,), "log_softmax": (1,), "sigmoid": (),
        "logsigmoid": (), "kl_div": (probabilities, None, None, "batchmean"),
    }  # fmt: skip
    arguments = (probabilities, *others.get(name, (probabilities,)))
    assert torch.equal(getattr(F, name)(*arguments), getattr(own, name)(*arguments))
    assert kernels == []


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
def test_deprecated_arguments_are_reductions(kernels: list[str]) -> None:
    input, target = problem()
    assert F.cross_entropy(input, target, size_average=False) == F.cross_entropy(input, target, reduction="sum")
    assert kernels == ["class_loss", "class_loss"]
    probabilities = torch.softmax(input, 1)
    assert F.kl_div(input, probabilities, size_average=False) == own.kl_div(input, probabilities, reduction="sum")
    assert len(kernels) == 2, "torch answered the last one"


def test_softmax_in_another_dtype(kernels: list[str]) -> None:
    input, _ = problem()
    torch.testing.assert_close(F.softmax(input, 1, dtype=torch.float64), own.softmax(input.double(), 1))
    assert kernels == ["softmax"]


THREADS = """
import sys, torch
layer, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
import numba
numba.config.THREADING_LAYER = layer
import fastloss.nn.functional as F
from fastloss import _threads
used = []
launched = _threads._launched
def spy(kernel, *arguments):
    used.append(numba.get_num_threads())
    launched(kernel, *arguments)
_threads._launched = spy
x, t = torch.randn(4096, 100, requires_grad=True), torch.randint(100, (4096,))
F.cross_entropy(x, t).backward()
print(torch.get_num_threads(), used, numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS)
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_threads_than_torchs_and_torchs_stay(layer: str, threads: int) -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3"}
    command = [sys.executable, "-c", THREADS, layer, str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    expected = [] if threads == 1 else [threads]
    parallel = f"{threads} {expected} True"
    assert run.stdout.strip().replace(f"{threads}, {threads}", str(threads)) == parallel


def test_importing_leaves_torch_and_numba_as_they_are() -> None:
    code = (
        "import sys, torch; before = torch.get_num_threads(), dict(vars(torch.nn.functional)); import fastloss.nn;"
        "assert before == (torch.get_num_threads(), dict(vars(torch.nn.functional))); assert 'numba' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr


X, INDICES = problem()

ODD_CALLS: dict[str, Callable[[Any], Any]] = {
    "a weight of mse_loss that would broadcast": lambda f: f.mse_loss(X, X + 1, weight=torch.ones(X.shape[1])),
    "a bool as ignore_index": lambda f: f.cross_entropy(X, INDICES, ignore_index=True),
    "an ignore_index beyond 64 bits": lambda f: f.cross_entropy(X, INDICES, ignore_index=2**63),
    "a list as reduction": lambda f: f.mse_loss(X, X, reduction=["mean"]),
    "a tensor as log_target": lambda f: f.kl_div(X, X, log_target=torch.tensor(False)),
    "a bool as dim": lambda f: f.softmax(X, dim=True),
    "a float as dim": lambda f: f.log_softmax(X, dim=1.0),
    "a string as dtype": lambda f: f.softmax(X, dim=1, dtype="float32"),
    "a tensor as dim": lambda f: f.softmax(X, dim=torch.tensor(1)),
    "a tensor of zeros without memory": lambda f: f.mse_loss(torch._efficientzerotensor((3, 4)), torch.ones(3, 4)),
}


@pytest.mark.parametrize("name", ODD_CALLS)
def test_odd_arguments_have_torchs_outcome(name: str) -> None:
    outcomes = []
    for module in (F, own):
        try:
            outcomes.append(ODD_CALLS[name](module))
        except Exception as error:
            outcomes.append((type(error), str(error)))
    if isinstance(outcomes[1], torch.Tensor):
        torch.testing.assert_close(*outcomes)
    else:
        assert outcomes[0] == outcomes[1]


def test_autocast_leaves_double_targets_and_weighted_squares_alone() -> None:
    half = X.to(torch.bfloat16)
    for reduction in ("none", "mean"):
        with torch.autocast("cpu", torch.bfloat16):
            results = [
                [
                    module.binary_cross_entropy_with_logits(half, half.double(), reduction=reduction),
                    module.mse_loss(half, half.double() + 1, reduction=reduction),
                    module.mse_loss(half, half + 1, reduction=reduction, weight=half),
                ]
                for module in (F, own)
            ]
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)
