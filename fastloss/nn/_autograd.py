"""Tensors to arrays and back, and what autograd and torch.compile need to know; no arithmetic.

A loss that needs a gradient is computed together with it in the forward pass. The backward pass hands the gradient
over and lets go of it, so that nothing copies it on its way to `.grad`. Second derivatives are those of torch's own
function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastloss import _engine, _threads
from fastloss.nn import _memory


def _array(tensor: Tensor) -> np.ndarray:
    """Return the memory of `tensor` as an array, of its bits if it is of bfloat16, which NumPy does not know."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


_STORED: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16), torch.bfloat16: np.dtype(np.uint16),
    torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64),
}  # fmt: skip
"""The dtypes of the arrays that `_array` returns."""


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return the memory of `array` as a tensor of `dtype`."""
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(dtype)
    return torch.from_numpy(array)


def _weights(weight: Tensor | None, shape: Sequence[int]) -> np.ndarray | None:
    """Return `weight` broadcast to `shape`, in the dtype in which the kernels compute."""
    if weight is None:
        return None
    return np.broadcast_to(_array(weight if weight.dtype is torch.float64 else weight.float()), shape)


def _like(input: Tensor, preserve: bool) -> tuple[int, ...] | None:
    """Return the strides of a result of the input's shape, None if it is contiguous.

    As in torch, those that are to `preserve` the memory format get that of `empty_like`.
    """
    if not preserve or input.is_contiguous():
        return None
    return torch.empty_like(input, device="meta").stride()


def _buffer(input: Tensor, preserve: bool) -> np.ndarray:
    """Return an array for a result of the input's shape and dtype."""
    dtype = _STORED[input.dtype]
    strides = _like(input, preserve)
    return _memory.empty(input.shape, strides and [stride * dtype.itemsize for stride in strides], dtype)


def _loss_tensor(loss: float | np.ndarray, dtype: torch.dtype) -> Tensor:
    if isinstance(loss, np.ndarray):
        return _tensor(loss, torch.bfloat16) if loss.dtype == np.uint16 else torch.from_numpy(loss).to(dtype)
    try:
        return torch.scalar_tensor(loss, dtype=dtype)
    except RuntimeError:  # it is too large for `dtype`: inf
        return torch.scalar_tensor(loss, dtype=torch.float64).to(dtype)


def class_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    name: str,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    dtype: torch.dtype,
    with_grad: bool,
    upstream: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (the loss `name` in `dtype`, its gradient times `upstream`, empty unless `with_grad`)."""
    array = _array(target)
    indices, probabilities = (None, array) if input.shape == target.shape else (array, None)
    weights = None if weight is None else np.ascontiguousarray(_weights(weight, weight.shape))
    out = _buffer(input, preserve=False) if with_grad else None
    with _threads.at_most(torch.get_num_threads()):
        x, of_logits = _array(input), name == "cross_entropy"
        evaluate = _engine.class_loss(
            x, indices, probabilities, ignore_index, label_smoothing, reduction, with_grad, out, of_logits
        )
        loss, _ = evaluate(x, array, weights, out, upstream)
    value = _loss_tensor(loss, dtype).contiguous()
    return value, input.new_empty(0) if out is None else _tensor(out, input.dtype)


def _preserves(name: str, reduction: str) -> bool:
    """Return whether torch gives the gradient of the element loss `name` the memory format of the input."""
    return name in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div_of_logs") or (
        name == "kl_div" and reduction == "none"
    )


def element_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    name: str,
    reduction: str,
    dtype: torch.dtype,
    with_grad: bool,
    upstream: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (the loss `name` in `dtype`, its gradient times `upstream`, empty unless `with_grad`)."""
    x, t = _array(input), _array(target)
    weights, pos_weights = _weights(weight, x.shape), _weights(pos_weight, x.shape)
    out = _buffer(input, _preserves(name, reduction)) if with_grad else None
    with _threads.at_most(torch.get_num_threads()):
        loss, _ = _engine.element_loss(
            name, x, t, weights, pos_weights, reduction, with_grad, out, upstream, out_is_new=True
        )  # fmt: skip
    value = _loss_tensor(loss, dtype)
    if reduction == "none" and not input.is_contiguous():
        value = torch.empty_like(input, dtype=dtype).copy_(value)
    return value, input.new_empty(0) if out is None else _tensor(out, input.dtype)


class Loss(NamedTuple):
    """A loss function with its options, of tensors of which the first is the input."""

    evaluate: Callable[..., tuple[Tensor, Tensor]]
    """`class_loss` or `element_loss`."""
    options: tuple[Any, ...]
    """What that takes behind the tensors, up to `dtype`."""
    own: Callable[..., Tensor]
    """torch's own function of the tensors."""
    keeps_input: bool
    """Whether torch's backward pass needs the input, so that it is an error if the input has been changed.

    Of other losses it is an error only where the gradient has to be computed again.
    """

    def __call__(self, *tensors: Tensor | None) -> Tensor:
        """Return the loss."""
        with_grad = torch.is_grad_enabled() and tensors[0] is not None and tensors[0].requires_grad
        if torch.compiler.is_compiling():
            operator = _class_operator if self.evaluate is class_loss else _element_operator
            return operator(*tensors, *self.options, with_grad)[0]
        try:
            if with_grad:
                loss: Tensor = _Differentiable.apply(self, *tensors)
                return loss
            return self.evaluate(*tensors, *self.options, False)[0]
        except (IndexError, ValueError):
            return self.own(*tensors)  # says what is wrong as torch says it

    def own_gradient(self, tensors: Sequence[Tensor | None], upstream: Tensor) -> Tensor:
        """Return the gradient by the input from torch's own function, which can be differentiated again."""
        dtype = self.options[-1]  # that of the input, or of autocast, which is over by now
        cast = [t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors]
        with torch.enable_grad():
            value = self.own(*cast)
        input = tensors[0]
        assert input is not None
        (gradient,) = torch.autograd.grad(value, input, upstream, create_graph=torch.is_grad_enabled())
        return gradient


def _is_batched(tensor: Tensor) -> bool:
    """Return whether `tensor` stands for many, as upstream gradients do with `is_grads_batched`."""
    of_functorch = torch._C._functorch
    return of_functorch.is_batchedtensor(tensor) or of_functorch.is_legacy_batchedtensor(tensor)


def _per_element(upstream: Tensor, gradient: Tensor) -> Tensor:
    """Return the upstream gradient of the losses in a shape that broadcasts against that of the input."""
    return upstream.unsqueeze(1) if 0 < upstream.dim() < gradient.dim() else upstream


class _Differentiable(torch.autograd.Function):
    """A loss whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.loss = loss
        value, ctx.gradient = loss.evaluate(*tensors, *loss.options, True)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        loss: Loss = ctx.loss
        others = [None] * (len(ctx.needs_input_grad) - 2)
        if torch.is_grad_enabled() or _is_batched(upstream):
            return None, loss.own_gradient(ctx.saved_tensors, upstream), *others
        gradient: Tensor | None = vars(ctx).pop("gradient", None)
        scale = float(upstream) if upstream.dim() == 0 else 1.0
        underflowed = gradient is not None and gradient.dtype is torch.float16 and scale != 1.0
        again = gradient is None or underflowed or not math.isfinite(scale)
        # Hooks allow the saved tensors to be asked for once. It is an error if one has been changed since.
        tensors = ctx.saved_tensors if again or loss.keeps_input else ()
        if again:
            # An earlier backward pass took it; or it is too late to scale what has underflowed, or zeros by nan.
            _, gradient = loss.evaluate(*tensors, *loss.options, True, scale)
        assert gradient is not None
        if not again and scale != 1.0:
            gradient.mul_(scale)
        if upstream.dim() > 0:
            scales = _per_element(upstream, gradient)
            if loss.evaluate is class_loss and not upstream.isfinite().all():
                scales = torch.where(gradient == 0, 1, scales)  # as in ignored rows: 0 times nan stays 0
            gradient.mul_(scales)
        return None, gradient, *others


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor], of_classes: bool) -> None:
    ctx.save_for_backward(output[1])
    ctx.others = len(inputs) - 1
    ctx.of_classes = of_classes


def _backward_of_operator(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the losses of fastloss.nn cannot be differentiated twice under torch.compile")
    (gradient,) = ctx.saved_tensors
    scaled = (gradient * _per_element(upstream, gradient)).to(gradient.dtype)
    if ctx.of_classes:  # an ignored row's gradient is 0 whatever comes from above
        scaled = torch.where(gradient == 0, gradient, scaled)
    return scaled, *([None] * ctx.others)


_class_operator = torch.library.custom_op("fastloss::class_loss", class_loss, mutates_args=(), device_types="cpu")
_element_operator = torch.library.custom_op("fastloss::element_loss", element_loss, mutates_args=(), device_types="cpu")
for _custom, _of_classes in ((_class_operator, True), (_element_operator, False)):
    _custom.register_autograd(
        _backward_of_operator, setup_context=functools.partial(_save_gradient, of_classes=_of_classes)
    )


@_class_operator.register_fake
def _(input, target, weight, name, ignore_index, label_smoothing, reduction, dtype, with_grad, upstream=1.0):  # type: ignore[no-untyped-def]  # the types are those of the operator
    losses = input.select(min(input.dim() - 1, 1), 0).shape if reduction == "none" else ()
    return input.new_empty(losses, dtype=dtype), input.new_empty(input.shape if with_grad else 0)


@_element_operator.register_fake
def _(input, target, weight, pos_weight, name, reduction, dtype, with_grad, upstream=1.0):  # type: ignore[no-untyped-def]  # the types are those of the operator
    value = torch.empty_like(input, dtype=dtype) if reduction == "none" else input.new_empty((), dtype=dtype)
    if not with_grad:
        return value, input.new_empty(0)
    return value, torch.empty_like(input) if _preserves(name, reduction) else input.new_empty(input.shape)


class _Softmax(torch.autograd.Function):
    """softmax or log_softmax along an axis."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, dim: int, logarithm: bool) -> Tensor:
        out = _buffer(input, preserve=False)
        with _threads.at_most(torch.get_num_threads()):
            (_engine.log_softmax if logarithm else _engine.softmax)(_array(input), dim, out)
        result = _tensor(out, input.dtype)
        ctx.save_for_backward(result)
        ctx.dim, ctx.logarithm = dim, logarithm
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        backward = torch._log_softmax_backward_data if ctx.logarithm else torch._softmax_backward_data
        return backward(upstream, result, ctx.dim, result.dtype), None, None


def _elements(name: str, input: Tensor) -> Tensor:
    out = _buffer(input, preserve=name == "sigmoid")
    with _threads.at_most(torch.get_num_threads()):
        _engine.element_function(name, _array(input), out)
    return _tensor(out, input.dtype)


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        result = _elements("sigmoid", input)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        gradient: Tensor = torch.ops.aten.sigmoid_backward(upstream, *ctx.saved_tensors)
        return gradient


class _LogSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return _elements("log_sigmoid", input)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return upstream * sigmoid(-input)


def softmax(input: Tensor, dim: int) -> Tensor:
    result: Tensor = _Softmax.apply(input, dim, False)
    return result


def log_softmax(input: Tensor, dim: int) -> Tensor:
    result: Tensor = _Softmax.apply(input, dim, True)
    return result


def sigmoid(input: Tensor) -> Tensor:
    result: Tensor = _Sigmoid.apply(input)
    return result


def log_sigmoid(input: Tensor) -> Tensor:
    result: Tensor = _LogSigmoid.apply(input)
    return result
