"""Random calls of all functions give torch's values and gradients, computed in float64, or torch's errors.

`FASTLOSS_FUZZ=200000,7 pytest tests/test_fuzz.py -n 0` draws that many calls from all there is to draw from, with the
random numbers of that seed. Without it some hundred are drawn from what other tests compile too.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import fuzzing
import numpy as np
import pytest
import torch
import torch.nn.functional as own
from fuzzing import Call
from hypothesis import HealthCheck, Phase, given, seed, settings
from peers import as_array, as_tensor
from tolerances import epsilon
from torch import Tensor

import fastloss as fl
import fastloss.nn.functional as F

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_fallback")]

EXAMPLES, _, SEED = os.environ.get("FASTLOSS_FUZZ", "200").partition(",")

fuzzed = settings(
    max_examples=int(EXAMPLES) // 2,
    derandomize=not SEED,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def torchs_options(call: Call, convert: Callable[[np.ndarray], Tensor]) -> dict[str, Any]:
    weights = {name: convert(array) for name, array in call.weights.items()}
    options = {"dim" if name == "axis" else name: value for name, value in call.options.items()}
    return {**weights, **options}


def evaluated(
    function: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, Any], upstream: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[type[Exception], str]:
    """Return (the value, the gradient by the input), or the type and the message of the error."""
    leaf = tensors[0].requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = function(leaf, *tensors[1:], **options)
        if upstream is None:
            upstream = torch.ones_like(value)
        scales = torch.empty_like(value).copy_(upstream)
        (gradient,) = torch.autograd.grad(value, leaf, scales)
    except (IndexError, ValueError, RuntimeError) as error:
        return type(error), str(error)
    return value.detach(), gradient


def peers_of(call: Call, upstream: Tensor | None) -> tuple[Any, Any]:
    """Return what torch's own function gives, in the call's dtype and in float64."""

    def widened(array: np.ndarray) -> Tensor:
        tensor = as_tensor(array)
        return tensor.double() if tensor.is_floating_point() else tensor

    function = getattr(own, call.name.replace("log_sigmoid", "logsigmoid"))
    arrays = [array for array in (call.input, call.target) if array is not None]
    same, wide = (
        evaluated(function, [convert(array) for array in arrays], torchs_options(call, convert), upstream)
        for convert in (as_tensor, widened)
    )
    return same, wide


def assert_near(call: Call, value: Any, gradient: Any, peer: Any, wide: Any, upstream: np.ndarray) -> None:
    """Assert that value and gradient are near those of `peers_of`."""
    dtype, terms = call.input.dtype, fuzzing.terms_of(call)
    with np.errstate(all="ignore"):
        divisor = fuzzing.divisor_of(call) if call.name in fuzzing.LOSSES else 1.0
        loss = [np.broadcast_to(array, _shape_of_losses(call)) for array in (terms.loss, terms.crude_loss)]
        if call.options.get("reduction", "none") != "none":
            loss = [array.sum() / abs(divisor) for array in loss]
        scales = np.abs(upstream) / abs(divisor)
        if call.name in ("softmax", "log_softmax"):
            scales = scales.max()
        if call.name not in fuzzing.LOSSES:  # their backward pass starts from the result, rounded to the dtype
            scales = scales * (epsilon(dtype) / epsilon(np.float64 if dtype == np.float64 else np.float32))
        if upstream.ndim and call.name in fuzzing.CLASS_LOSSES:
            scales = np.expand_dims(scales, min(call.input.ndim - 1, 1))
        gradients = [
            np.broadcast_to(array * scales, call.input.shape) for array in (terms.gradient, terms.crude_gradient)
        ]
    fuzzing.assert_near(value, as_array(peer[0]), as_array(wide[0]), *loss, dtype)
    # In ignored rows torch's gradient of cross-entropy is nan where a logit is not finite, else 0.
    ignored = np.broadcast_to(fuzzing.ignored_rows(call), call.input.shape)
    peers_gradient, truth = (np.where(ignored, 0, as_array(tensor)) for tensor in (peer[1], wide[1]))
    fuzzing.assert_near(gradient, peers_gradient, truth, *gradients, dtype)


def _shape_of_losses(call: Call) -> tuple[int, ...]:
    if call.name not in fuzzing.CLASS_LOSSES:
        return call.input.shape
    axis = min(call.input.ndim - 1, 1)
    return call.input.shape[:axis] + call.input.shape[axis + 1 :]


@seed(int(SEED or 0))
@fuzzed
@given(fuzzing.calls(fuzzing.LOSSES))
def test_losses_of_arrays_are_torchs(call: Call) -> None:
    peer, wide = peers_of(call, None)
    arguments = call.laid_out()
    function = getattr(fl, call.name)
    if isinstance(wide[0], type):
        out = np.full(call.input.shape, 7, call.input.dtype)
        with pytest.raises((IndexError, ValueError)):
            function(*arguments, **call.weights, **call.options, return_grad=True, out=out)
        assert (out == 7).all()
        return
    value, gradient = function(*arguments, **call.weights, **call.options, return_grad=True)
    assert_near(call, value, gradient, peer, wide, np.ones(()))


def _tensor_in_layout(array: np.ndarray, layout: str) -> Tensor:
    """Return a tensor that is laid out in a way of torch's own that stands for the `layout` of an array."""
    tensor = as_tensor(array)
    if layout == "F" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout in ("F", "permuted") and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout in ("by two", "backwards") and tensor.dim():
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    return tensor


@seed(int(SEED or 0))
@fuzzed
@given(fuzzing.calls(fuzzing.LOSSES + fuzzing.ACTIVATIONS))
def test_functions_of_tensors_are_torchs(call: Call) -> None:
    call = call._replace(options={("dim" if key == "axis" else key): value for key, value in call.options.items()})
    shape = _shape_of_losses(call) if call.options.get("reduction", "none") == "none" else ()
    upstream = torch.linspace(-1, 2, int(np.prod(shape))).to(torch.bfloat16).double().reshape(shape)
    if upstream.numel():
        upstream.view(-1)[-1] = call.upstream
    peer, wide = peers_of(call, upstream)
    arrays = [array for array in (call.input, call.target) if array is not None]
    tensors = [_tensor_in_layout(array, layout) for array, layout in zip(arrays, call.layouts, strict=False)]
    function = getattr(F, call.name.replace("log_sigmoid", "logsigmoid"))
    ours = evaluated(function, tensors, torchs_options(call, as_tensor), upstream)
    if isinstance(peer[0], type) or isinstance(ours[0], type):
        assert ours == peer
        return
    assert_near(call, as_array(ours[0]), as_array(ours[1]), peer, wide, upstream.numpy())
