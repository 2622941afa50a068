"""The gradient through autograd: computed once, handed over without a copy, right in every pass."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as own
import torch.utils.checkpoint

import fastloss.nn
import fastloss.nn.functional as F
from fastloss import _engine

ROWS, CLASSES = 512, 1024
BYTES = 4 * ROWS * CLASSES


pytestmark = pytest.mark.usefixtures("no_fallback")


def logits(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def indices(*shape: int, classes: int) -> torch.Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


def unit(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def probabilities(*shape: int) -> torch.Tensor:
    return (0.8 * unit(*shape, seed=3) + 0.1).requires_grad_()


LOSSES: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "cross_entropy": lambda: (logits(6, 5), indices(6, classes=5)),
    "nll_loss": lambda: (logits(6, 5), indices(6, classes=5)),
    "binary_cross_entropy": lambda: (probabilities(6, 5), unit(6, 5)),
    "binary_cross_entropy_with_logits": lambda: (logits(6, 5), unit(6, 5)),
    "mse_loss": lambda: (logits(6, 5), unit(6, 5)),
    "kl_div": lambda: (logits(6, 5), unit(6, 5)),
}
losses = pytest.mark.parametrize("name", LOSSES)


def loss_of(module: Any, name: str, input: torch.Tensor, target: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
    loss: torch.Tensor = getattr(module, name)(input, target, reduction=reduction)
    return loss


def large_problem() -> tuple[torch.Tensor, torch.Tensor]:
    return logits(ROWS, CLASSES), indices(ROWS, classes=CLASSES)


@losses
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_second_backward_pass_gives_the_gradient_again(name: str, reduction: str) -> None:
    input, target = LOSSES[name]()
    expected = torch.autograd.grad(loss_of(own, name, input, target, reduction).sum(), input)[0]
    loss = loss_of(F, name, input, target, reduction).sum()
    first = torch.autograd.grad(loss, input, retain_graph=True)[0]
    torch.testing.assert_close(first, expected)
    first.zero_()
    second = torch.autograd.grad(loss, input, retain_graph=True)[0]
    torch.testing.assert_close(second, expected)
    second.zero_()
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(input.grad, 2 * expected)


@losses
def test_a_graph_that_is_not_retained_is_gone_after_the_backward_pass(name: str) -> None:
    input, target = LOSSES[name]()
    loss = loss_of(F, name, input, target)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@losses
@pytest.mark.parametrize("upstream", [1.0, -0.5, 0.0, 1e30, float("inf"), float("nan")])
def test_upstream_gradients_of_any_value(name: str, upstream: float) -> None:
    input, target = LOSSES[name]()
    theirs, ours = (torch.autograd.grad(loss_of(m, name, input, target) * upstream, input)[0] for m in (own, F))
    finite = theirs.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    unit = max(upstream, 1.0) if math.isfinite(upstream) else 1.0
    torch.testing.assert_close(ours[finite] / unit, theirs[finite] / unit)


@losses
def test_upstream_gradients_of_each_loss(name: str) -> None:
    input, target = LOSSES[name]()
    upstream = torch.randn(loss_of(own, name, input, target, "none").shape)
    gradients = [torch.autograd.grad(loss_of(m, name, input, target, "none"), input, upstream)[0] for m in (own, F)]
    torch.testing.assert_close(*gradients)


def test_scaled_losses_in_float16_do_not_underflow() -> None:
    input, target = logits(1000, 64, dtype=torch.float16), indices(1000, classes=64)
    truth = torch.autograd.grad(own.cross_entropy(input.double(), target) * 1024.0, input)[0]
    ours = torch.autograd.grad(F.cross_entropy(input, target) * 1024.0, input)[0]
    torch.testing.assert_close(ours, truth, rtol=2e-3, atol=0)


@losses
def test_changing_the_input_in_place_is_torchs_error_or_leaves_the_gradient_right(name: str) -> None:
    results: list[Any] = []
    for module in (own, F):
        leaf, target = LOSSES[name]()
        input = leaf * 1
        loss = loss_of(module, name, input, target)
        with torch.no_grad():
            input.mul_(0.5)
        try:
            loss.backward()
            results.append(leaf.grad)
        except RuntimeError as error:
            results.append(error)
    if isinstance(results[0], RuntimeError):
        for error in results:
            assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(*results)


def test_changing_a_tensor_in_place_is_an_error_where_it_is_needed_again() -> None:
    leaf, target = LOSSES["cross_entropy"]()
    input = leaf * 1
    loss = F.cross_entropy(input, target)
    loss.backward(retain_graph=True)
    with torch.no_grad():
        input.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@losses
def test_second_derivatives(name: str) -> None:
    target = LOSSES[name]()[1]
    target = target.double() if target.is_floating_point() else target
    leaf = LOSSES[name]()[0].detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(F, name, x, target, "none"), leaf)
    assert torch.autograd.gradgradcheck(lambda x: loss_of(F, name, x, target, "none"), leaf)
    gradients = []
    for module in (own, F):
        (first,) = torch.autograd.grad(loss_of(module, name, leaf, target) ** 2, leaf, create_graph=True)
        gradients.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sigmoid", "logsigmoid"])
def test_second_derivatives_of_functions(name: str) -> None:
    leaf = logits(3, 4).detach().double().requires_grad_()
    arguments = (1,) if "softmax" in name else ()
    assert torch.autograd.gradcheck(lambda x: getattr(F, name)(x, *arguments), leaf)
    assert torch.autograd.gradgradcheck(lambda x: getattr(F, name)(x, *arguments), leaf)


def test_probabilities_and_weights_that_require_a_gradient_get_it() -> None:
    for differentiated in ("target", "weight"):
        gradients = []
        for module in (own, F):
            tensors = {"input": logits(6, 5), "target": unit(6, 5), "weight": unit(5)}
            tensors[differentiated].requires_grad_()
            module.cross_entropy(**tensors).backward()
            gradients.append((tensors["input"].grad, tensors[differentiated].grad))
        torch.testing.assert_close(*gradients)


class Calls:
    """Counts what the engine is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.with_grad: list[bool] = []
        evaluate = _engine.class_loss

        def counted(*arguments: Any) -> Any:
            self.with_grad.append(arguments[6])
            return evaluate(*arguments)

        monkeypatch.setattr(_engine, "class_loss", counted)


def test_a_gradient_is_computed_once_and_only_if_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    input, target = LOSSES["cross_entropy"]()
    F.cross_entropy(input.detach(), target)
    with torch.no_grad():
        F.cross_entropy(input, target)
    with torch.inference_mode():
        F.cross_entropy(input, target)
    assert calls.with_grad == [False, False, False]
    F.cross_entropy(input, target).backward()
    assert calls.with_grad == [False, False, False, True]


def peak_of(work: Callable[[], Any]) -> int:
    """Return the most bytes that `work` took at once, as its second call does."""
    work()
    gc.collect()
    fastloss.nn.release_memory()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_training_step_takes_the_gradient_and_nothing_else_of_its_size() -> None:
    weight = logits(64, CLASSES)
    hidden = logits(ROWS, 64).detach()
    target = indices(ROWS, classes=CLASSES)

    def step() -> None:
        weight.grad = None
        F.cross_entropy(hidden @ weight, target).backward()

    assert BYTES <= peak_of(step) <= 1.05 * BYTES


def test_without_a_gradient_nothing_of_its_size_is_taken() -> None:
    input, target = large_problem()
    assert peak_of(lambda: F.cross_entropy(input.detach(), target)) <= 0.05 * BYTES


def test_a_leaf_gets_the_gradient_itself() -> None:
    """AccumulateGrad copies a gradient that something else holds on to; then its memory would be taken twice."""
    input, target = large_problem()
    loss = F.cross_entropy(input, target)
    address = loss.grad_fn.gradient.data_ptr()
    loss.backward()
    assert input.grad is not None
    assert input.grad.data_ptr() == address


def test_a_loss_that_is_kept_after_its_backward_pass_holds_no_large_memory() -> None:
    weight, hidden, target = logits(64, CLASSES), logits(ROWS, 64).detach(), indices(ROWS, classes=CLASSES)
    kept = []

    def steps() -> None:
        for _ in range(4):
            loss = F.cross_entropy(hidden @ weight, target)
            loss.backward()
            kept.append(loss)

    assert peak_of(steps) <= 1.1 * BYTES


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch calls it here
def test_functional_transforms() -> None:
    input, target = logits(6, 5).detach(), indices(6, classes=5)
    upstream = torch.randn(6, 5)
    for transform in (
        lambda f: torch.func.grad(lambda x: f.cross_entropy(x, target))(input),
        lambda f: torch.func.vmap(f.cross_entropy)(input, target),
        lambda f: torch.func.vmap(torch.func.grad(f.cross_entropy))(input, target),
        lambda f: torch.func.jvp(lambda x: f.cross_entropy(x, target), (input,), (upstream,)),
        lambda f: torch.func.jacrev(lambda x: f.cross_entropy(x, target, reduction="none"))(input),
        lambda f: torch.func.jacfwd(lambda x: f.cross_entropy(x, target, reduction="none"))(input),
        lambda f: torch.func.hessian(lambda x: f.cross_entropy(x, target))(input),
    ):
        torch.testing.assert_close(transform(F), transform(own))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch calls it here
def test_forward_mode_differentiation() -> None:
    input, target = logits(6, 5).detach(), indices(6, classes=5)
    tangents = []
    for module in (own, F):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(input, torch.ones_like(input))
            tangents.append(torch.autograd.forward_ad.unpack_dual(module.cross_entropy(dual, target)).tangent)
    torch.testing.assert_close(*tangents)


def test_saved_tensors_pass_through_hooks() -> None:
    input, target = LOSSES["cross_entropy"]()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: packed.append(tensor) or tensor, lambda tensor: tensor
    ):
        loss = F.cross_entropy(input, target)
    loss.backward()
    assert len(packed) == 2


def test_checkpointing() -> None:
    gradients = []
    for module in (own, F):
        input, target = LOSSES["cross_entropy"]()
        torch.utils.checkpoint.checkpoint(
            lambda x, t, f: f.cross_entropy(x * 2, t), input, target, module, use_reentrant=False
        ).backward()
        gradients.append(input.grad)
    torch.testing.assert_close(*gradients)


def of_both(work: Callable[[Any], torch.Tensor]) -> None:
    """Assert that `work` gives the same with torch's functions and with ours."""
    torch.testing.assert_close(work(F), work(own), equal_nan=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_may_be_strided(smoothing: float) -> None:
    for classes in (2, 5, 200):
        input, target = logits(40, classes).detach(), indices(40, classes=classes)
        for weight in (unit(2 * classes)[::2], torch.tensor(2.0).expand(classes)):
            theirs, ours = (f.cross_entropy(input, target, weight, label_smoothing=smoothing) for f in (own, F))
            torch.testing.assert_close(ours, theirs)


def test_losses_of_permuted_inputs_are_contiguous() -> None:
    input, target = logits(3, 4, 5, 2).detach().permute(0, 3, 2, 1), indices(3, 5, 4, classes=2)
    loss = F.cross_entropy(input, target, reduction="none")
    assert loss.is_contiguous()
    torch.testing.assert_close(loss, own.cross_entropy(input, target, reduction="none"))


@losses
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_batched_upstream_gradients(name: str, reduction: str) -> None:
    def gradients(f: Any) -> torch.Tensor:
        input, target = LOSSES[name]()
        loss = loss_of(f, name, input, target, reduction)
        upstream = torch.arange(3 * loss.numel(), dtype=torch.float32).reshape(3, *loss.shape)
        return torch.autograd.grad(loss, input, upstream, is_grads_batched=True)[0]

    of_both(gradients)


@losses
def test_hooks_are_asked_once_for_what_is_saved(name: str) -> None:
    def gradient(f: Any) -> torch.Tensor:
        input, target = LOSSES[name]()
        loss = torch.utils.checkpoint.checkpoint(
            lambda x: loss_of(f, name, 0.5 * x, target), input, use_reentrant=False
        )
        loss.backward(retain_graph=True)
        (2 * loss).backward()
        return input.grad

    of_both(gradient)


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_a_row_of_gradient_zero_stays_so(name: str, number: float) -> None:
    input, target = logits(4, 5), torch.tensor([0, -100, 1, 2])
    upstream = torch.tensor([1.0, number, 1.0, 1.0])
    loss = getattr(F, name)(input, target, reduction="none")
    (ours,) = torch.autograd.grad(loss, input, upstream)
    (theirs,) = torch.autograd.grad(getattr(own, name)(input, target, reduction="none"), input, upstream)
    torch.testing.assert_close(ours, theirs)


def test_half_precision_losses_that_are_scaled_later_do_not_underflow() -> None:
    input = torch.tensor([[0.0, -20.0, -18.0]]).half().requires_grad_()
    losses = F.cross_entropy(input, torch.tensor([0]), reduction="none")
    (gradient,) = torch.autograd.grad(losses, input, torch.tensor([60000.0]).half())
    assert (gradient[0, 1:] > 0).all()


def test_second_derivatives_after_autocast() -> None:
    def second(f: Any) -> torch.Tensor:
        input, target = logits(4, 5, dtype=torch.bfloat16), indices(4, classes=5)
        with torch.autocast("cpu", torch.bfloat16):
            loss = f.cross_entropy(input, target, torch.ones(5))
        (first,) = torch.autograd.grad(loss, input, create_graph=True)
        return torch.autograd.grad(first.float().square().sum(), input)[0]

    of_both(second)
