"""Each row of the README's table "Differences from torch" is so, and the table has each of these tests as a row."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as own
from torch import Tensor

import fastloss as fl
import fastloss.nn.functional as F

ROWS: list[str] = []
INF, NAN = float("inf"), float("nan")
LOGITS, LABELS = torch.tensor([[3.0, 0, 1], [0, 1, 2]]), torch.tensor([0, 1])
HALVES = torch.full((2, 3), 0.5)

Test = Callable[..., None]


def row(case: str) -> Callable[[Test], Test]:
    """Register a test as that of the row of the table that begins with `case`."""
    ROWS.append(case)
    return lambda test: test


pytestmark = pytest.mark.usefixtures("no_fallback")


def test_the_table_has_these_rows() -> None:
    readme = pathlib.Path(__file__).parent.parent.joinpath("README.md").read_text()
    section = readme.split("## Differences from torch\n")[1].split("\n## ")[0]
    cases = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    headings = ("`fastloss.nn`", "NumPy functions", "---")
    assert [case for case in cases if not case.startswith(headings)] == ROWS


def gradient(function: Callable[[Tensor], Tensor], input: Tensor, upstream: Any = None) -> Tensor:
    """Return the gradient of the function by its argument."""
    leaf = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = function(leaf)
    value.backward(None if upstream is None else torch.tensor(upstream))
    assert leaf.grad is not None
    return leaf.grad


@row("an ignored row with a logit of nan or inf")
def test_ignored_rows() -> None:
    for number in (NAN, INF):
        logits = torch.tensor([[0, number, 1], [0, 1, 2]])
        ours, theirs = (
            gradient(lambda x, lib=lib: lib.cross_entropy(x, torch.tensor([-100, 1])), logits) for lib in (F, own)
        )
        assert not ours[0].any()
        assert theirs[0].isnan().all()
        torch.testing.assert_close(ours[1], theirs[1])


@row("a gradient of 0 below an upstream gradient of nan or inf")
def test_gradients_of_zero() -> None:
    logits = torch.tensor([[0, -INF, 1], [0, 1, 2]])
    for upstream in ([NAN, 1], [INF, 1]):
        ours, theirs = (
            gradient(lambda x, lib=lib: lib.cross_entropy(x, LABELS, reduction="none"), logits, upstream)
            for lib in (F, own)
        )
        assert ours[0, 1] == 0
        assert theirs[0, 1].isnan()


@row("a label that is all but certain")
def test_confident_predictions() -> None:
    logits, label = torch.tensor([[20.0, 0, 1]]), torch.tensor([0])
    exact = own.cross_entropy(logits.double(), label).item()
    assert own.cross_entropy(logits, label) == 0
    assert F.cross_entropy(logits, label).item() == pytest.approx(exact, rel=1e-6)
    ours, theirs = (gradient(lambda x, lib=lib: lib.cross_entropy(x, label), logits) for lib in (F, own))
    assert theirs[0, 0] == 0
    assert ours[0, 0].item() == pytest.approx(-exact, rel=1e-6)
    one = torch.ones(1)
    ours, theirs = (
        gradient(lambda x, lib=lib: lib.binary_cross_entropy_with_logits(x, one), 20 * one) for lib in (F, own)
    )
    assert theirs == 0
    assert ours.item() == pytest.approx(-np.exp(-20), rel=1e-6)


@row("a sigmoid below the smallest normal number")
def test_subnormal_sigmoids() -> None:
    logits = torch.full((16,), -100.0)
    assert not own.sigmoid(logits).any()
    assert F.sigmoid(logits)[0].item() == pytest.approx(np.exp(-100), rel=0.02)


@row("a mean of float16 or bfloat16 losses")
def test_means_of_half_precision() -> None:
    for dtype, digits in ((torch.float16, 2**-11), (torch.bfloat16, 2**-8)):
        logits, target = torch.zeros(70_000, 3, dtype=dtype), torch.zeros(70_000, dtype=torch.int64)
        assert F.cross_entropy(logits, target).item() == pytest.approx(np.log(3), rel=digits)
        assert own.cross_entropy(logits, target).item() != pytest.approx(np.log(3), rel=digits)


@row("`binary_cross_entropy` of float64 at 0 and 1")
def test_floor_of_the_variance() -> None:
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    ours, theirs = (gradient(lambda x, lib=lib: lib.binary_cross_entropy(x, one), zero).item() for lib in (F, own))
    assert ours == -1 / 1e-12
    assert theirs == -1 / float(np.float32(1e-12))


@row("`binary_cross_entropy_with_logits` of an infinite target")
def test_infinite_targets() -> None:
    logits, target, pos_weight = torch.tensor([0.5]), torch.tensor([INF]), torch.zeros(1)
    assert F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight).isnan()
    assert own.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight) == -INF


@row("`nll_loss` of channels-last input, backward")
def test_channels_last() -> None:
    input = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    target = torch.zeros(2, 4, 5, dtype=torch.int64)
    expected = gradient(lambda x: own.nll_loss(x, target), input.contiguous())
    torch.testing.assert_close(gradient(lambda x: F.nll_loss(x, target), input), expected)
    with pytest.raises(RuntimeError, match="grad_input must be contiguous"):
        gradient(lambda x: own.nll_loss(x, target), input)


@row('`kl_div` with `reduction="mean"`')
def test_warning_of_kl_div() -> None:
    with pytest.warns(UserWarning, match="^reduction 'mean' is not the mean of the divergences"):
        ours = F.kl_div(-HALVES, HALVES)
    with pytest.warns(UserWarning, match="^reduction: 'mean' divides the total loss by both"):
        assert ours == own.kl_div(-HALVES, HALVES)


@row("a result or gradient that is resized in place")
def test_resizing() -> None:
    x = torch.rand(4, 5)
    own.sigmoid(x).resize_(7, 7)
    with pytest.raises(RuntimeError, match="not resizable"):
        F.sigmoid(x).resize_(7, 7)


@row("the target or weight of `cross_entropy` or `kl_div` changed in place before the backward pass")
@pytest.mark.parametrize(("name", "target"), [("cross_entropy", LABELS), ("cross_entropy", HALVES), ("kl_div", HALVES)])
def test_changes_before_the_backward_pass(name: str, target: Tensor) -> None:
    expected = gradient(lambda x: getattr(own, name)(x, target, reduction="sum"), LOGITS)
    for lib in (F, own):
        leaf, changed = LOGITS.clone().requires_grad_(), target.clone()
        loss = getattr(lib, name)(leaf, changed, reduction="sum")
        changed.fill_(1)
        if lib is own:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        else:
            loss.backward()
            torch.testing.assert_close(leaf.grad, expected)


@row("the name of `grad_fn`")
def test_name_of_the_node() -> None:
    leaf = LOGITS.clone().requires_grad_()
    assert type(F.cross_entropy(leaf, LABELS).grad_fn).__name__ == "_DifferentiableBackward"
    assert type(own.cross_entropy(leaf, LABELS).grad_fn).__name__ == "NllLossBackward0"


ARRAY, INDICES = LOGITS.numpy(), LABELS.numpy()


@row("lists, integers and booleans as the input")
def test_other_inputs() -> None:
    loss = fl.cross_entropy([[3, 0, 1], [0, 1, 2]], [0, 1])
    assert loss.dtype == np.float64
    assert loss == pytest.approx(own.cross_entropy(LOGITS.double(), LABELS).item())
    with pytest.raises(NotImplementedError):
        own.cross_entropy(LOGITS.long(), LABELS)


@row("class indices of any integer dtype")
def test_integers() -> None:
    expected = fl.cross_entropy(ARRAY, INDICES)
    assert fl.cross_entropy(ARRAY, INDICES.astype(np.int32)) == expected
    with pytest.raises(RuntimeError, match="expected target dtype"):
        own.cross_entropy(LOGITS, LABELS.int())


@row("a float target or weight of another dtype")
def test_converted_targets() -> None:
    for function in (fl.mse_loss, fl.binary_cross_entropy_with_logits, fl.kl_div):
        assert function(ARRAY, HALVES.double().numpy()).dtype == np.float32
        assert function(ARRAY, np.ones((2, 3), int)).dtype == np.float32
    assert own.mse_loss(LOGITS, HALVES.double()).dtype == torch.float64
    with pytest.raises(RuntimeError):
        own.binary_cross_entropy_with_logits(LOGITS, LABELS.expand(3, 2).T)
    assert fl.cross_entropy(ARRAY, INDICES, np.ones(3)).dtype == np.float32
    with pytest.raises(RuntimeError, match="expected scalar type"):
        own.cross_entropy(LOGITS, LABELS, torch.ones(3).double())


@row("a target of another shape of `mse_loss` or `kl_div`")
def test_no_broadcasting_of_targets() -> None:
    for function in (fl.mse_loss, fl.kl_div):
        with pytest.raises(ValueError, match="target has shape"):
            function(ARRAY, ARRAY[0])
    with pytest.warns(UserWarning, match="target size"):
        own.mse_loss(LOGITS, LOGITS[0])


@row("a negative `label_smoothing`")
def test_negative_smoothing() -> None:
    with pytest.raises(ValueError, match="label_smoothing is -1"):
        fl.cross_entropy(ARRAY, INDICES, label_smoothing=-1)
    assert own.cross_entropy(LOGITS, LABELS, label_smoothing=-1) == own.cross_entropy(LOGITS, LABELS)


@row("wrong arguments")
def test_errors() -> None:
    for error, others in (
        (TypeError, (INDICES.astype(float),)),
        (TypeError, (ARRAY[:, :2],)),
        (ValueError, (INDICES, np.ones(4, np.float32))),
    ):
        with pytest.raises(error):
            fl.cross_entropy(ARRAY, *others)
        with pytest.raises(RuntimeError):
            own.cross_entropy(LOGITS, *map(torch.tensor, others))
    with pytest.raises(ValueError, match="between 0 and 1"):
        fl.binary_cross_entropy([2.0], [1.0])
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        own.binary_cross_entropy(torch.tensor([2.0]), torch.tensor([1.0]))


@row('the gradient with `reduction="none"`')
def test_gradient_of_losses_one_by_one() -> None:
    _, ours = fl.cross_entropy(ARRAY, INDICES, reduction="none", return_grad=True)
    theirs = gradient(lambda x: own.cross_entropy(x, LABELS, reduction="none").sum(), LOGITS)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@row("`softmax` and `log_softmax` without an axis")
def test_default_axis() -> None:
    cube = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        first = own.softmax(torch.from_numpy(cube)).numpy()
    np.testing.assert_allclose(first.sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(fl.softmax(cube).sum(-1), 1, rtol=1e-6)
