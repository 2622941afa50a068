"""The values, gradients, strides, warnings and errors of fastloss.nn.functional are those of torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as own
from peers import as_array
from tolerances import ULPS, assert_agree, assert_no_worse
from torch import Tensor

import fastloss.nn as ours_nn
import fastloss.nn.functional as F

Layout = Callable[[Tensor], Tensor]

pytestmark = [
    pytest.mark.usefixtures("no_fallback"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:reduction.* 'mean':UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a target size:UserWarning"),
]


class Case(NamedTuple):
    """A call of the function `name`."""

    name: str
    options: dict[str, Any]
    weights: tuple[str, ...] = ()
    of_probabilities: bool = False

    def __str__(self) -> str:
        values = [f"{name}={value}" for name, value in self.options.items()]
        return "-".join([self.name, *values, *self.weights, *["probabilities"] * self.of_probabilities])


LOSSES = [
    Case("cross_entropy", {"reduction": "mean"}),
    Case("cross_entropy", {"reduction": "sum", "ignore_index": 1}),
    Case("cross_entropy", {"reduction": "mean", "ignore_index": 0}, ("weight",)),
    Case("cross_entropy", {"reduction": "none", "label_smoothing": 0.1}, ("weight",)),
    Case("cross_entropy", {"reduction": "mean", "label_smoothing": 1.0}),
    Case("cross_entropy", {"reduction": "mean"}, (), True),
    Case("cross_entropy", {"reduction": "none", "label_smoothing": 0.25}, ("weight",), True),
    Case("nll_loss", {"reduction": "mean"}),
    Case("nll_loss", {"reduction": "mean", "ignore_index": 1}, ("weight",)),
    Case("nll_loss", {"reduction": "sum"}, ("weight",)),
    Case("nll_loss", {"reduction": "none"}, ("weight",)),
    Case("binary_cross_entropy", {"reduction": "mean"}),
    Case("binary_cross_entropy", {"reduction": "sum"}, ("weight",)),
    Case("binary_cross_entropy", {"reduction": "none"}, ("weight",)),
    Case("binary_cross_entropy_with_logits", {"reduction": "mean"}, ("pos_weight",)),
    Case("binary_cross_entropy_with_logits", {"reduction": "sum"}),
    Case("binary_cross_entropy_with_logits", {"reduction": "none"}, ("weight", "pos_weight")),
    Case("mse_loss", {"reduction": "mean"}, ("weight",)),
    Case("mse_loss", {"reduction": "sum"}),
    Case("mse_loss", {"reduction": "none"}),
    Case("kl_div", {"reduction": "batchmean"}),
    Case("kl_div", {"reduction": "mean"}),
    Case("kl_div", {"reduction": "sum", "log_target": True}),
    Case("kl_div", {"reduction": "none"}),
    Case("kl_div", {"reduction": "none", "log_target": True}),
]

ACTIVATIONS = [
    Case("log_softmax", {"dim": 0}),
    Case("log_softmax", {"dim": -1}),
    Case("softmax", {"dim": 0}),
    Case("softmax", {"dim": -1}),
    Case("softmax", {"dim": 0, "dtype": torch.float64}),
    Case("sigmoid", {}),
    Case("logsigmoid", {}),
]

OF_ALL_DTYPES = [LOSSES[at] for at in (3, 6, 8, 13, 16, 19, 24)] + [ACTIVATIONS[at] for at in (1, 3, 5, 6)]
"""Those that all dtypes are tested with; between them they reach every option."""
OF_ALL_LAYOUTS = [case for case in LOSSES if case.name != "cross_entropy"] + [
    Case("cross_entropy", {"reduction": "mean"}, ("weight",)),
    *OF_ALL_DTYPES[:2],
    *OF_ALL_DTYPES[-4:],
]


def arguments(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return the input and, for a loss, the target."""
    random = torch.Generator().manual_seed(sum(shape))
    axis = min(len(shape) - 1, 1)
    logits = 3 * torch.randn(shape, generator=random, dtype=torch.float64)
    others = torch.randn(shape, generator=random, dtype=torch.float64)
    classes = torch.randint(shape[axis], shape[:axis] + shape[axis + 1 :], generator=random)
    p = (2 * others).softmax(axis)
    both = {
        "cross_entropy": [logits, p if case.of_probabilities else classes],
        "nll_loss": [logits.log_softmax(axis), classes],
        "binary_cross_entropy": [logits.sigmoid().clip(0.02, 0.98), others.sigmoid()],
        "binary_cross_entropy_with_logits": [logits, others.sigmoid()],
        "mse_loss": [logits, others],
        "kl_div": [logits.log_softmax(axis), p.log() if "log_target" in case.options else p],
    }.get(case.name, [logits])
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in both]


def weights_of(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights that the case names, in the shape in which torch wants them."""
    classes = (shape[min(len(shape) - 1, 1)],) if case.name in ("cross_entropy", "nll_loss") else shape[-1:]
    random = torch.Generator().manual_seed(7)
    wanted = shape if case.name == "mse_loss" else classes
    return {name: (0.25 + 2 * torch.rand(wanted, generator=random)).to(dtype) for name in case.weights}


def upstream_of(result: Tensor) -> Tensor:
    """Return a random gradient, of numbers that all dtypes have, in the strides of `result`."""
    random = torch.rand(result.shape, generator=torch.Generator().manual_seed(3))
    return torch.empty_like(result).copy_((0.5 + random).to(torch.bfloat16))


def evaluate(function: Callable[..., Tensor], input: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Return (the result, the gradient by the input for a random upstream gradient)."""
    leaf = input.detach().requires_grad_()
    result = function(leaf, *others, **options)
    (gradient,) = torch.autograd.grad(result, leaf, upstream_of(result))
    return result.detach(), gradient


def doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def truth_of(name: str, *tensors: Any, dim: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what `evaluate` does: of losses torch's in float64, of activations the formulas in longdouble."""
    if name in ("cross_entropy", "nll_loss", "mse_loss", "kl_div") or name.startswith("binary"):
        options = {key: doubled(value) for key, value in options.items()}
        loss, gradient = evaluate(getattr(own, name), *map(doubled, tensors), **options)
        return loss.numpy(), gradient.numpy()
    x, upstream = as_array(tensors[0].double()), as_array(upstream_of(tensors[0].double()))
    p = oracles.softmax(x, dim)
    return {
        "softmax": (p, p * (upstream - np.sum(p * upstream, axis=dim, keepdims=True))),
        "log_softmax": (oracles.log_softmax(x, dim), upstream - p * upstream.sum(dim, keepdims=True)),
        "sigmoid": (oracles.sigmoid(x), upstream * oracles.sigmoid(x) * oracles.sigmoid(-x)),
        "logsigmoid": (oracles.log_sigmoid(x), upstream * oracles.sigmoid(-x)),
    }[name]


def layout_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()


def assert_as_close(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], name: str, *tensors: Any, **options: Any
) -> None:
    """Assert that ours is no further from the truth, torch's float64, than theirs."""
    truths = truth_of(name, *tensors, **options)
    for mine, peer, truth in zip(ours, theirs, truths, strict=True):
        ulps = ULPS
        if name == "softmax" and truth is truths[1]:  # p g - p sum(p g), of terms far larger: one unit of the largest p
            ulps += np.max(np.abs(truths[0])) / np.max(np.abs(truth))
        assert_no_worse(as_array(mine), as_array(peer), truth, as_array(mine).dtype, ulps)


def assert_torchs(case: Case, dtype: torch.dtype, shape: tuple[int, ...], arrange: Layout = Tensor.contiguous) -> None:
    """Assert that ours has torch's dtypes, shapes and strides, and is as close to the truth."""
    tensors = [arrange(x) if x.shape == shape else x for x in arguments(case, shape, dtype)]
    options = {**weights_of(case, shape, dtype), **case.options}
    ours = evaluate(getattr(F, case.name), *tensors, **options)
    theirs = evaluate(getattr(own, case.name), *tensors, **options)
    assert [layout_of(tensor) for tensor in ours] == [layout_of(tensor) for tensor in theirs]
    assert_as_close(ours, theirs, case.name, *tensors, **options)


@pytest.mark.parametrize("case", [*LOSSES, *ACTIVATIONS], ids=str)
def test_all_options_are_as_close_to_the_truth_as_torch(case: Case) -> None:
    assert_torchs(case, torch.float32, (33, 9))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", OF_ALL_DTYPES, ids=str)
def test_all_dtypes_are_as_close_to_the_truth_as_torch(case: Case, dtype: torch.dtype) -> None:
    assert_torchs(case, dtype, (33, 9))


LAYOUTS: dict[str, tuple[tuple[int, ...], Layout]] = {
    "one row": ((9,), Tensor.contiguous),
    "images": ((3, 4, 2, 5), Tensor.contiguous),
    "channels last": ((3, 4, 2, 5), lambda x: x.contiguous(memory_format=torch.channels_last)),
    "transpose(1, 2)": ((4, 6, 5), lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)),
    "every second column": ((7, 9), lambda x: x.repeat_interleave(2, dim=1)[:, ::2]),
}
REFUSED = [("nll_loss", "channels last")]
"""Of which torch says in the backward pass that "grad_input must be contiguous"."""


@pytest.mark.parametrize(
    ("case", "layout"),
    [(case, layout) for case in OF_ALL_LAYOUTS for layout in LAYOUTS if (case.name, layout) not in REFUSED],
    ids=str,
)
def test_results_have_torchs_strides_for_all_layouts(case: Case, layout: str) -> None:
    assert_torchs(case, torch.float32, *LAYOUTS[layout])


@pytest.mark.parametrize("case", [case for case in LOSSES if case.name == "nll_loss"], ids=str)
def test_channels_last_is_served_where_torch_refuses_it(case: Case) -> None:
    shape, channels_last = LAYOUTS["channels last"]
    input, target = arguments(case, shape, torch.float32)
    options = {**weights_of(case, shape, torch.float32), **case.options}
    ours = evaluate(F.nll_loss, channels_last(input), target, **options)
    assert_as_close(ours, evaluate(own.nll_loss, input, target, **options), "nll_loss", input, target, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("one_hot", [False, True])
def test_autocast_gives_losses_as_exact_as_float32(dtype: torch.dtype, one_hot: bool) -> None:
    logits = (4 * torch.randn(300, 300, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[:, 0] = 12
    target = torch.nn.functional.one_hot(torch.zeros(300, dtype=torch.int64), 300).to(dtype)
    labels = target if one_hot else target.argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = F.cross_entropy(logits, labels, reduction="none")
    assert losses.dtype is torch.float32
    expected = own.cross_entropy(logits.double(), labels.double() if one_hot else labels, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5 if one_hot else 2e-6, atol=1e-6 if one_hot else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", OF_ALL_DTYPES, ids=str)
def test_autocast_gives_torchs_dtypes_and_values(case: Case, dtype: torch.dtype) -> None:
    tensors, weights = arguments(case, (33, 9), dtype), weights_of(case, (33, 9), torch.float32)

    def autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.autocast("cpu", torch.bfloat16)(function)

    options = {**weights, **case.options}
    ours = evaluate(autocast(getattr(F, case.name)), *tensors, **options)
    theirs = evaluate(autocast(getattr(own, case.name)), *tensors, **options)
    assert [layout_of(tensor) for tensor in ours] == [layout_of(tensor) for tensor in theirs]
    assert_as_close(ours, theirs, case.name, *tensors, **options)


INF, NAN = float("inf"), float("nan")
LOGITS = torch.tensor(
    [[INF, 0, 1], [0, INF, 1], [INF, INF, 0], [-INF, 0, 1], [0, -INF, 1], [-INF] * 3, [NAN, 0, 1], [0, NAN, 1],
     [1e38, -1e38, 0], [3e38, 3e38, -3e38], [1e-45, 0, -1e-45], [-200, 200, 0], [0, 0, 0]]
)  # fmt: skip
ENDS = torch.cartesian_prod(torch.tensor([0, 1e-45, 0.5, 1 - 2**-24, 1]), torch.tensor([0, 0.25, 1]))
FIRST, SECOND = torch.zeros(13, dtype=torch.int64), torch.ones(13, dtype=torch.int64)
PAIRS = torch.cartesian_prod(torch.tensor([-INF, -1, 0, 1, INF, NAN]), torch.tensor([-INF, -1, 0, 1, INF, NAN]))
EDGES: dict[str, tuple[str, tuple[Tensor, ...], dict[str, Any]]] = {
    "first class": ("cross_entropy", (LOGITS, FIRST), {}),
    "second class": ("cross_entropy", (LOGITS, SECOND), {"weight": torch.tensor([1, 2.0, 3])}),
    "label smoothing": ("cross_entropy", (LOGITS, SECOND), {"label_smoothing": 0.1}),
    "class of weight 0": ("cross_entropy", (LOGITS, FIRST), {"weight": torch.tensor([0, 1.0, 1])}),
    "weights of 0": ("cross_entropy", (LOGITS[-3:], FIRST[-3:]), {"weight": torch.zeros(3)}),
    "smoothed weights of 0": (
        "cross_entropy", (LOGITS[-3:], FIRST[-3:]), {"weight": torch.zeros(3), "label_smoothing": 0.5}),
    "all ignored": ("cross_entropy", (LOGITS[-3:], FIRST[-3:]), {"ignore_index": 0}),
    "all ignored, smoothed": ("cross_entropy", (LOGITS[-3:], FIRST[-3:]), {"ignore_index": 0, "label_smoothing": 0.5}),
    "probabilities": ("cross_entropy", (LOGITS, torch.full((13, 3), 0.25)), {}),
    "probabilities of 0": ("cross_entropy", (LOGITS, torch.zeros(13, 3)), {}),
    "nll": ("nll_loss", (LOGITS, SECOND), {"weight": torch.tensor([1, 2.0, 0])}),
    "nll of weights of 0": ("nll_loss", (LOGITS, FIRST), {"weight": torch.zeros(3)}),
    "nll, all ignored": ("nll_loss", (LOGITS, FIRST), {"ignore_index": 0}),
    "ends of the unit interval": ("binary_cross_entropy", (ENDS[:, 0], ENDS[:, 1]), {}),
    "weights of 0 at the ends": ("binary_cross_entropy", (ENDS[:, 0], ENDS[:, 1]), {"weight": torch.zeros(15)}),
    "logits": ("binary_cross_entropy_with_logits", (LOGITS, torch.full((13, 3), 0.25)), {}),
    "logits of 0": ("binary_cross_entropy_with_logits", (LOGITS, torch.zeros(13, 3)), {}),
    "logits of 1": ("binary_cross_entropy_with_logits", (LOGITS, torch.ones(13, 3)), {"pos_weight": torch.ones(3)}),
    "weights of 0 of logits": ("binary_cross_entropy_with_logits", (LOGITS, torch.ones(13, 3)),
                               {"weight": torch.zeros(3), "pos_weight": torch.zeros(3)}),
    "squares": ("mse_loss", (PAIRS[:, 0], PAIRS[:, 1]), {}),
    "squares that overflow": ("mse_loss", (torch.tensor([1e30, 3e38, 1e-30]), torch.tensor([0, -3e38, 0])), {}),
    "divergences": ("kl_div", (PAIRS[:, 0], PAIRS[:, 1]), {}),
    "divergences of logarithms": ("kl_div", (PAIRS[:, 0], PAIRS[:, 1]), {"log_target": True}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_sum_too_large_for_its_dtype_is_infinite(dtype: torch.dtype) -> None:
    input = torch.full((9, 3), -0.9 * torch.finfo(dtype).max, dtype=dtype)
    target = torch.zeros(9, dtype=torch.int64)
    for module in (F, own):
        loss, gradient = evaluate(module.nll_loss, input, target, reduction="sum")
        assert loss == INF
        assert gradient.isfinite().all()


def assert_agrees(name: str, *tensors: Tensor, **options: Any) -> None:
    ours = evaluate(getattr(F, name), *tensors, **options)
    for mine, expected in zip(ours, evaluate(getattr(own, name), *tensors, **options), strict=True):
        assert_agree(as_array(mine), as_array(expected), as_array(expected).dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("edge", EDGES)
def test_losses_of_edge_values_are_torchs(edge: str, reduction: str) -> None:
    name, tensors, options = EDGES[edge]
    assert_agrees(name, *tensors, **options, reduction=reduction)


def test_logits_of_ignored_rows_do_not_matter() -> None:
    _, gradient = evaluate(F.cross_entropy, LOGITS, FIRST, ignore_index=0, reduction="sum")
    assert not gradient.any()


@pytest.mark.parametrize("case", ACTIVATIONS, ids=str)
def test_activations_of_edge_values_are_torchs(case: Case) -> None:
    assert_agrees(case.name, LOGITS, **case.options)


X, T, P = torch.zeros(3, 5), torch.tensor([0, 4, 1]), torch.full((3, 5), 0.5)
TOO_LARGE, NEGATIVE = torch.tensor([0, 5, 1]), torch.tensor([0, -1, 1])
Error = tuple[Tensor | None, tuple[Any, ...], dict[str, Any]]
CLASS_ERRORS: list[Error] = [
    *((X, (target,), {}) for target in (TOO_LARGE, NEGATIVE, TOO_LARGE.byte(), T.int(), T.bool(), T.float())),
    *((X, (target,), {}) for target in (T[:2], T[:, None], X[:, :4], P.long(), None)),
    (X, (NEGATIVE,), {"reduction": "none"}),
    *((X[0], (target,), {}) for target in (TOO_LARGE[1], T)),
    (X[0, 0], (T[0],), {}),
    *((X.reshape(1, 5, 3), (target,), {}) for target in (T, TOO_LARGE[None], T[None, :2])),
    *((X, (T, weight), {}) for weight in (torch.ones(4), torch.ones(3, 5), torch.ones(5).double(), T.new_ones(5))),
    *((X, (T,), {"reduction": reduction}) for reduction in ("average", "batchmean")),
    (X, (T,), {"ignore_index": 1.5}),
    (X.long(), (T,), {}),
]
ELEMENT_ERRORS: list[Error] = [
    (P, (P,), {"reduction": "average"}),
    *((P, (target,), {}) for target in (P[:2], P[:, :4], None)),
]
BINARY_ERRORS: list[Error] = [
    *ELEMENT_ERRORS,
    *((P, (P,), {"weight": weight}) for weight in (torch.ones(4), torch.ones(2, 3, 5))),
    (P, (P,), {"reduction": "batchmean"}),
    (P, (P[0],), {}),
]
ERRORS_OF: dict[str, list[Error]] = {
    "cross_entropy": [
        *CLASS_ERRORS,
        *((X, (T,), {"label_smoothing": label_smoothing}) for label_smoothing in (1.5, None)),
        (X, (P,), {"ignore_index": 1}),
        (X, (P, torch.ones(4)), {}),
    ],
    "nll_loss": [*CLASS_ERRORS, (X, (P,), {})],
    "mse_loss": [*ELEMENT_ERRORS, (P, (P,), {"weight": torch.ones(4)})],
    "kl_div": ELEMENT_ERRORS,
    "binary_cross_entropy": [
        *BINARY_ERRORS,
        *((torch.tensor([0.5, outside]), (P[0, :2],), {}) for outside in (-0.1, 1.5, INF, NAN)),
        *((P[0, :2], (torch.tensor([0.5, outside]),), {}) for outside in (-0.1, 1.5, NAN)),
        *((P, (target,), {}) for target in (P.double(), P.long())),
    ],
    "binary_cross_entropy_with_logits": [*BINARY_ERRORS, (P, (P,), {"pos_weight": torch.ones(4)})],
    "softmax": [(X, (), {"dim": 2}), (X, (), {"dim": -3}), (X.long(), (), {"dim": 1})],
    "log_softmax": [(X, (), {"dim": 2}), (X, (), {"dim": -3}), (X.long(), (), {"dim": 1})],
    "logsigmoid": [(X.long(), (), {}), (None, (), {})],
    "sigmoid": [(None, (), {})],
}
ERRORS = [(name, *error) for name, errors in ERRORS_OF.items() for error in errors]


@pytest.mark.parametrize(("name", "input", "others", "options"), ERRORS)
def test_errors_are_torchs(name: str, input: Tensor | None, others: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r".") as expected:
        getattr(own, name)(input, *others, **options)
    differentiable = input is not None and input.is_floating_point()
    for leaf in [input, input.detach().requires_grad_()] if differentiable else [input]:
        with pytest.raises(Exception, match=r".") as raised:
            getattr(F, name)(leaf, *others, **options)
        assert (raised.type, str(raised.value)) == (expected.type, str(expected.value))


@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("case", [LOSSES[at] for at in (0, 7, 11, 15, 18, 20)], ids=lambda case: case.name)
def test_legacy_arguments_give_torchs_warnings_and_values(
    case: Case, size_average: bool | None, reduce: bool | None
) -> None:
    tensors = arguments(case, (33, 9), torch.float32)
    results, warned = [], []
    for module in (F, own):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(getattr(module, case.name)(*tensors, size_average=size_average, reduce=reduce))
        warned.append([(warning.category, str(warning.message)) for warning in caught])
    legacy = size_average is not None or reduce is not None
    assert not legacy or warned[0] == warned[1] != []
    assert_agree(as_array(results[0]), as_array(results[1]), as_array(results[1]).dtype)


def test_torchs_figures_of_a_seed() -> None:
    """They are those of torch 2.13.0, as are the next ones."""
    torch.manual_seed(420)
    input, target = torch.randn(50, 1), torch.randn(50, 1)
    assert round(float(ours_nn.MSELoss()(input, target)), 4) == 2.4869
    assert round(float(ours_nn.MSELoss(reduction="sum")(input, target)), 4) == 124.3458
    torch.manual_seed(420)
    logits = torch.rand(300, 4) @ torch.rand(4, 3)
    classes = torch.randint(0, 3, (300,))
    assert round(float(ours_nn.NLLLoss()(ours_nn.LogSoftmax(dim=1)(logits), classes)), 4) == 1.1591
    assert round(float(ours_nn.CrossEntropyLoss()(logits, classes)), 4) == 1.1591


def test_torchs_figures_of_three_million_rows() -> None:
    torch.manual_seed(420)
    logits = torch.rand(3_000_000, 4) @ torch.rand(4, 1)
    target = torch.randint(0, 2, (3_000_000, 1)).float()
    assert round(float(ours_nn.BCEWithLogitsLoss()(logits, target)), 4) == 0.8685
    assert round(float(ours_nn.BCELoss()(ours_nn.Sigmoid()(logits), target)), 4) == 0.8685


def test_one_logit_is_two_classes_of_which_the_first_has_a_logit_of_zero() -> None:
    z = torch.randn(1000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    target = torch.arange(1000) % 2
    expected = ours_nn.CrossEntropyLoss(reduction="none")(torch.stack([torch.zeros_like(z), z], dim=1), target)
    loss = ours_nn.BCEWithLogitsLoss(reduction="none")(z, target.double())
    assert_agree(as_array(loss), as_array(expected), as_array(loss).dtype)
