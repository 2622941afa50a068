"""torch.compile takes the losses as operators, without a break of the graph; torch.export takes torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as own
from torch.autograd import forward_ad

import fastloss.nn
import fastloss.nn.functional as F

pytestmark = [
    pytest.mark.usefixtures("no_fallback"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:.torch.jit"),
    pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning"),  # torch's, on Python 3.13.0
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
INDICES = torch.randint(12, (64,), generator=torch.Generator().manual_seed(1))
UNIT = torch.rand(64, 12, generator=torch.Generator().manual_seed(2))

CASES: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": lambda f, x: f.cross_entropy(x, INDICES, UNIT[0], label_smoothing=0.1),
    "cross_entropy of probabilities": lambda f, x: f.cross_entropy(x, UNIT, reduction="none"),
    "cross_entropy of a transpose": lambda f, x: f.cross_entropy(
        x.view(8, 8, 12).transpose(1, 2), INDICES.view(8, 8), reduction="none"
    ),
    "nll_loss": lambda f, x: f.nll_loss(f.log_softmax(x, 1), INDICES, reduction="none"),
    "binary_cross_entropy": lambda f, x: f.binary_cross_entropy(f.sigmoid(x), UNIT),
    "binary_cross_entropy_with_logits": lambda f, x: f.binary_cross_entropy_with_logits(
        x.t(), UNIT.t(), pos_weight=UNIT[:, :1].t(), reduction="none"
    ),
    "mse_loss": lambda f, x: f.mse_loss(x, UNIT, reduction="sum"),
    "kl_div": lambda f, x: f.kl_div(f.logsigmoid(x), UNIT, reduction="batchmean"),
}


def step(f: Any, case: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (loss, gradient) as of a layer before the loss."""
    leaf = x.clone().requires_grad_()
    loss = CASES[case](f, leaf * 1.5)
    loss.square().sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize(
    ("case", "dynamic"), [*((case, False) for case in CASES), ("cross_entropy", True), ("mse_loss", True)]
)
def test_compiled_losses_are_whole_graphs_and_right(case: str, dynamic: bool) -> None:
    compiled = torch.compile(lambda x: CASES[case](F, x * 1.5), fullgraph=True, dynamic=dynamic)
    leaf = X.clone().requires_grad_()
    loss = compiled(leaf)
    loss.square().sum().backward()
    expected, gradient = step(own, case, X)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), expected)


def test_the_graph_holds_the_operator() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph.print_readable(print_output=False))
        return graph

    module = fastloss.nn.CrossEntropyLoss()
    torch.testing.assert_close(
        torch.compile(module, backend=backend, fullgraph=True)(X, INDICES), own.cross_entropy(X, INDICES)
    )
    assert "fastloss.class_loss" in seen[0]


def test_a_compiled_call_with_a_wrong_target_raises() -> None:
    compiled = torch.compile(F.cross_entropy, fullgraph=True)
    with pytest.raises(IndexError, match="99"):
        compiled(X, torch.full((64,), 99))


def test_ignored_rows_have_no_gradient_whatever_comes_from_above() -> None:
    leaf = X.clone().requires_grad_()
    loss = torch.compile(F.cross_entropy, fullgraph=True)(leaf, torch.where(INDICES == 3, -100, INDICES))
    (loss * float("inf")).backward()
    assert leaf.grad is not None
    assert (leaf.grad[INDICES == 3] == 0).all()


def test_float16_is_left_to_torch() -> None:
    leaf = torch.tensor([[12.0, 0.0, 0.0]]).half().repeat(16384, 1).requires_grad_()
    loss = torch.compile(F.cross_entropy, fullgraph=True)(leaf, torch.zeros(16384, dtype=torch.int64))
    loss.backward(torch.tensor(60000.0).half())
    assert leaf.grad is not None
    assert (leaf.grad[:, 1:] > 0).all()


def test_second_derivatives_raise() -> None:
    leaf = X.clone().requires_grad_()
    loss = torch.compile(F.cross_entropy, backend="eager")(leaf, INDICES)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_patched_torch_compiles() -> None:
    with fastloss.nn.patch_torch():
        compiled = torch.compile(torch.nn.CrossEntropyLoss(), fullgraph=True)
        torch.testing.assert_close(compiled(X, INDICES), own.cross_entropy(X, INDICES))


def test_exported_programs_need_no_fastloss() -> None:
    exported = torch.export.export(fastloss.nn.CrossEntropyLoss(), (X, INDICES))
    assert "fastloss" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(X, INDICES), own.cross_entropy(X, INDICES))


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss"])
def test_compiled_function_transforms_and_forward_mode_are_torchs(name: str) -> None:
    target = INDICES if name == "cross_entropy" else UNIT

    def derivatives(module: Any) -> list[torch.Tensor]:
        def loss(x: torch.Tensor) -> torch.Tensor:
            return getattr(module, name)(x, target)

        def tangent(x: torch.Tensor) -> torch.Tensor:
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(loss(forward_ad.make_dual(x, UNIT))).tangent

        functions = [torch.func.grad(loss), lambda x: torch.func.jvp(loss, (x,), (UNIT,))[1], tangent]
        return [torch.compile(function, backend="aot_eager")(X) for function in functions]

    torch.testing.assert_close(derivatives(F), derivatives(own))
