"""torch's own test samples give torch's values, gradients and errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as own
from peers import as_array
from tolerances import assert_no_worse
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_map_only

import fastloss.nn as ours_nn
import fastloss.nn.functional as F
from fastloss.nn import _autograd

OPERATORS = {
    f"{name}{variant and '.'}{variant}": op
    for op in op_db
    for name, variant in [(op.name.removeprefix("nn.functional."), op.variant_test_name)]
    if name in F.__all__ and op.name in (name, f"nn.functional.{name}")
}
MODULES = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls is getattr(torch.nn, info.module_cls.__name__, None)
    and info.module_cls.__name__ in ours_nn.__all__
}

pytestmark = [
    pytest.mark.usefixtures("no_fallback"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:reduction.* 'mean':UserWarning"),
    pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a target size:UserWarning"),
    pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def function_of(module: Any, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(module, name.partition(".")[0])
    return function


Sample = tuple[tuple[Any, ...], dict[str, Any]]


def samples_of(name: str, dtype: torch.dtype) -> list[Sample]:
    """Return (arguments, keywords) of torch's samples of a function, none of which requires a gradient."""
    torch.manual_seed(0)
    samples = OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=False)
    return [((sample.input, *sample.args), sample.kwargs) for sample in samples]


def spread(values: list[Any], count: int) -> list[Any]:
    """Return at most `count` of the values, from all over the list."""
    return values[:: -(-len(values) // count)]


def outcome(function: Callable[..., Any], input: torch.Tensor, *others: Any, **options: Any) -> Any:
    """Return the result and the gradient by the input, or the type and message of the error."""
    leaf = input.detach().requires_grad_(input.is_floating_point())
    try:
        result = function(leaf, *others, **options)
        if not result.requires_grad:
            return (result,)
        upstream = 0.5 + torch.rand(result.shape, generator=torch.Generator().manual_seed(3))
        upstream = upstream.to(torch.bfloat16).to(result.dtype)
        return result.detach(), *torch.autograd.grad(result, leaf, upstream)
    except Exception as error:
        return type(error), str(error)


def doubled(values: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, values)


def assert_same(ours: Any, theirs: Any, truths: Callable[[], Any]) -> None:
    """Assert that an outcome is torch's error, or agrees; in half precision, that it is no further from `truths`."""
    if isinstance(theirs[0], type):
        assert ours == theirs
    elif theirs[-1].dtype not in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    else:
        for mine, peer, truth in zip(ours, theirs, truths(), strict=True):
            assert_no_worse(as_array(mine), as_array(peer), as_array(truth), as_array(peer).dtype)


def test_torch_has_samples_of_all_functions_and_modules() -> None:
    assert {name.partition(".")[0] for name in OPERATORS} == set(F.__all__)
    assert set(MODULES) == {name for name in ours_nn.__all__ if name[0].isupper()}


@pytest.mark.parametrize("name", OPERATORS)
def test_torchs_samples_give_torchs_values_and_gradients(name: str) -> None:
    for arguments, options in samples_of(name, torch.float32):
        ours, theirs = (outcome(function_of(module, name), *arguments, **options) for module in (F, own))
        assert_same(ours, theirs, lambda: None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_some_of_torchs_samples_in_other_dtypes_give_torchs_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    for arguments, options in spread(samples_of(name, dtype), 2):
        ours, theirs = (outcome(function_of(module, name), *arguments, **options) for module in (F, own))
        exact = doubled((arguments, options))
        assert_same(ours, theirs, lambda exact=exact: outcome(function_of(own, name), *exact[0], **exact[1]))


def test_torch_has_no_erroneous_samples_of_these_functions() -> None:
    """Those of its modules are tested below."""
    assert not [name for name, op in OPERATORS.items() if op.error_inputs_func is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_torchs_samples_of_modules_give_torchs_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    info = MODULES[name]
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
    for sample in spread(samples, 20 if dtype is torch.float32 else 2):
        constructor, call = sample.constructor_input, sample.forward_input

        def result(library: Any, convert: Callable[[Any], Any] = copy.deepcopy) -> Any:
            module = getattr(library, name)(*convert(constructor.args), **convert(constructor.kwargs))  # noqa: B023
            return outcome(module, *convert(call.args), **convert(call.kwargs))  # noqa: B023

        assert_same(result(ours_nn), result(torch.nn), lambda result=result: result(torch.nn, doubled))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name, info in MODULES.items() if info.module_error_inputs_func is not None])
def test_torchs_erroneous_samples_of_modules_give_torchs_errors(name: str, dtype: torch.dtype) -> None:
    info = MODULES[name]
    for error in info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False):
        sample = error.module_error_input
        module = getattr(ours_nn, name)(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*sample.forward_input.args, **sample.forward_input.kwargs)


def small_samples(name: str, count: int) -> list[Sample]:
    """Return some of torch's samples in float64 that are neither empty nor large."""
    return spread([sample for sample in samples_of(name, torch.float64) if 0 < sample[0][0].numel() < 2000], count)


def of_input(function: Callable[..., Any], others: Any, options: dict[str, Any]) -> Callable[[torch.Tensor], Any]:
    """Return the function of its first argument only."""
    return lambda input: function(input, *others, **options)


DIFFERENTIABLE = [name for name in OPERATORS if not name.endswith("with_dtype")]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_the_derivatives_of_the_values(name: str) -> None:
    for (input, *others), options in small_samples(name, 4):
        function = of_input(function_of(F, name), others, options)
        assert torch.autograd.gradcheck(function, input.detach().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_are_the_derivatives_of_the_gradients(name: str) -> None:
    for (input, *others), options in small_samples(name, 4):
        function = of_input(function_of(F, name), others, options)
        assert torch.autograd.gradgradcheck(function, input.detach().requires_grad_(), fast_mode=True)


TRANSFORMS: dict[str, Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], Any]] = {
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x + 0.001, x])),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda y: f(y).sum()))(torch.stack([x, x])),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_functional_transforms_give_what_they_give_of_torchs(name: str, transform: str) -> None:
    for (input, *others), options in small_samples(name, 2):
        ours, theirs = (
            TRANSFORMS[transform](of_input(function_of(module, name), others, options), input) for module in (F, own)
        )
        torch.testing.assert_close(ours, theirs)


def class_operands(reduction: str, dtype: torch.dtype, with_grad: bool) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(1)
    input = torch.randn(6, 5, generator=random).to(dtype).requires_grad_(with_grad)
    target, weight = torch.randint(5, (6,), generator=random), torch.rand(5, generator=random).to(dtype)
    return input, target, weight, "cross_entropy", 1, 0.1, reduction, dtype, with_grad


def element_operands(name: str, reduction: str, dtype: torch.dtype, with_grad: bool) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(2)
    input = torch.rand(6, 5, generator=random).to(dtype).requires_grad_(with_grad)
    target, weight = torch.rand(6, 5, generator=random).to(dtype), torch.rand(5, generator=random).to(dtype)
    weights = (None, None) if name in ("mse_loss", "kl_div") else (weight, None)
    return input, target, *weights, name, reduction, dtype, with_grad


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operator_of_class_losses_keeps_the_rules_of_operators(
    reduction: str, dtype: torch.dtype, with_grad: bool
) -> None:
    torch.library.opcheck(_autograd._class_operator, class_operands(reduction, dtype, with_grad))


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["binary_cross_entropy", "mse_loss", "kl_div"])
def test_the_operator_of_element_losses_keeps_the_rules_of_operators(
    name: str, reduction: str, with_grad: bool
) -> None:
    torch.library.opcheck(_autograd._element_operator, element_operands(name, reduction, torch.float32, with_grad))
