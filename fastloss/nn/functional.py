"""The loss functions of torch.nn.functional, and when a call goes to torch's own.

Signatures, values, gradients and errors are torch's; its documentation applies. Who answers a call, which
`_is_small` and `_served` decide:

| what a call has                                                             | who answers                |
| --------------------------------------------------------------------------- | -------------------------- |
| an input of fewer elements than `CROSSOVERS` or FASTLOSS_MIN_SIZE           | torch                      |
| a tensor that is not on the CPU, or sparse, nested, complex, integer ...    | torch                      |
| a tensor of a subclass (FakeTensor, DTensor, ...), or under a torch         | torch                      |
| function or dispatch mode (a default device, flop counters, make_fx, ...)   |                            |
| functorch transforms (grad, vmap, jvp, ...), dual numbers                   | torch                      |
| a target or weight that requires a gradient                                 | torch                      |
| torch.jit.trace, torch.export                                               | torch, so that the result  |
|                                                                             | runs without fastloss      |
| torch.compile                                                               | losses: an operator around |
|                                                                             | the kernels; else torch    |
| float16 with a gradient and reduction "none", or under torch.compile:       | torch                      |
| scales that follow the loss would come after the gradient has underflowed   |                            |
| an invalid argument                                                         | torch, which says so       |
| a second derivative                                                         | torch's formula            |
| all others                                                                  | the kernels                |
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter, _reduction

from fastloss.nn import _autograd
from fastloss.nn._autograd import Loss, class_loss, element_loss

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "kl_div",
    "log_softmax",
    "logsigmoid",
    "mse_loss",
    "nll_loss",
    "sigmoid",
    "softmax",
]

OWN = SimpleNamespace(**{name: getattr(torch.nn.functional, name) for name in __all__})
"""torch's own functions, as they were before anything replaced them."""

_PLAIN = frozenset((Tensor, Parameter))

_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

_MIN_SIZE = os.environ.encodekey("FASTLOSS_MIN_SIZE")

_ENVIRONMENT = os.environ._data  # type: ignore[attr-defined]  # private; found in Python 3.11 to 3.14
"""What os.environ holds; its own `get` decodes and raises inside, which would take half of what a small call costs."""

_REDUCTIONS = frozenset(("mean", "sum", "none"))

CLASSES_OF_CROSSOVERS = (7, 16)
"""The most classes of a row in memory for which the first and the second crossover of a function hold.

Up to 7 do not fill one of torch's vectors, and it takes them one by one. Up to 16 (8 in float64) have kernels of their
own.
"""

CROSSOVERS = {
    "binary_cross_entropy": ((1 << 15, 1 << 13),),
    "binary_cross_entropy_with_logits": ((1 << 17, 1 << 17),),
    "cross_entropy": ((1 << 14, 1 << 14), (1 << 17, 1 << 17), (1 << 19, 1 << 19)),
    "kl_div": ((1 << 17, 1 << 15),),
    "log_softmax": ((1 << 15, 1 << 15), (1 << 19, 1 << 18), (1 << 22, 1 << 21)),
    "logsigmoid": ((1 << 23, 1 << 19),),
    "mse_loss": ((1 << 21, 1 << 21),),
    "nll_loss": ((1 << 20, 1 << 20), (1 << 22, 1 << 20), (1 << 23, 1 << 20)),
    "sigmoid": ((1 << 23, 1 << 23),),
    "softmax": ((1 << 15, 1 << 14), (1 << 18, 1 << 17), (1 << 22, 1 << 22)),
}
"""Elements from which on the kernels are faster than torch's own function at any shape: (with a gradient, without).

The last ones hold for more classes and for those that are not the last axis or do not lie side by side in it, and those
of functions without classes for all. They are elements of the input, but the targets' of `nll_loss` without a gradient,
which reads no others. Measured by `python -m benchmarks.crossovers` on 2 cores of an AMD EPYC with AVX2, rounded up to
a power of two; `cross_entropy` on one with AVX-512 too, of which the larger ones are here.
"""

_LEAST = {name: min(map(min, crossovers)) for name, crossovers in CROSSOVERS.items()}
"""Calls of fewer elements go to torch, whatever the shape: small ones are spared the rest of the choice."""


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    """Return whether functorch transforms or forward mode are active; torch.compile guards against other answers."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _served(name: str, input: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernels can serve a call of `name` by the kinds of its tensors; their shapes come later."""
    if input.dtype not in _DTYPES or (others and others[0] is None):
        return False
    compiling = torch.compiler.is_compiling()
    for tensor in (input, *others):
        if tensor is not None and not (
            type(tensor) in _PLAIN
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and not tensor.is_nested
            and (compiling or not (tensor.is_neg() or tensor._is_zerotensor()))
        ):
            return False
    for tensor in others:
        if tensor is not None and tensor.requires_grad:
            return False
    if not input.numel():
        return False
    if _is_transformed():
        return False
    if compiling:
        is_loss = name not in ("log_softmax", "softmax", "sigmoid", "logsigmoid")
        return is_loss and input.dtype is not torch.float16 and not torch.compiler.is_exporting()
    return not (
        torch._C._is_torch_function_mode_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
    )


def _crossover(name: str, input: Tensor, dim: int | None) -> tuple[int, int]:
    """Return the one of `CROSSOVERS` for a call with the classes along the axis `dim`."""
    *of_few_classes, others = CROSSOVERS[name]
    has_strides = input.layout is torch.strided and not input.is_nested
    if has_strides and type(dim) is int and dim in (-1, input.dim() - 1) and input.stride(-1) == 1:
        for classes, crossover in zip(CLASSES_OF_CROSSOVERS, of_few_classes, strict=True):
            if input.shape[-1] <= classes:
                return crossover
    return others


def _is_small(name: str, input: Tensor, dim: int | None = None, read: Tensor | None = None) -> bool:
    """Return whether a call has too few elements for the kernels, or no plain tensor as its input.

    Its classes lie along the axis `dim`. Without a gradient it has as many elements as there are in `read`, if that is
    a tensor.
    """
    if type(input) not in _PLAIN:
        return True
    setting = _ENVIRONMENT.get(_MIN_SIZE)
    if setting is None:
        if input.numel() < _LEAST[name]:
            return True
        with_gradient, without = _crossover(name, input, dim)
        if input.requires_grad and torch.is_grad_enabled():
            return input.numel() < with_gradient
        return (read if isinstance(read, Tensor) else input).numel() < without
    try:
        return input.numel() < int(setting)
    except ValueError:
        raise ValueError(f"FASTLOSS_MIN_SIZE is {os.fsdecode(setting)!r}; it must be a number of elements") from None


def _reduction_of(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return the reduction that a call asks for; torch warns of the arguments that it has deprecated."""
    if size_average is None and reduce is None:
        return reduction
    legacy: str = _reduction.legacy_get_string(size_average, reduce)
    return legacy


def _would_underflow(input: Tensor, reduction: str) -> bool:
    """Return whether a float16 gradient could underflow before the losses' upstream gradients scale it."""
    return reduction == "none" and input.dtype is torch.float16 and input.requires_grad and torch.is_grad_enabled()


def _autocast(input: Tensor) -> bool:
    """Return whether autocast makes the loss of `input` float32, as it does with those of half precision."""
    return input.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled("cpu")


def _class_loss(
    name: str,
    own: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    if not (
        _served(name, input, target, weight)
        and isinstance(reduction, str)
        and reduction in _REDUCTIONS
        and not _would_underflow(input, reduction)
        and type(ignore_index) is int
        and -(2**63) <= ignore_index < 2**63
        and isinstance(label_smoothing, int | float)
        and 0.0 <= label_smoothing <= 1.0
        and _is_class_target(name, target, input, ignore_index)
        and (weight is None or weight.shape == input.shape[min(input.dim() - 1, 1) :][:1])
    ):
        return own(input, target, weight)
    autocast = _autocast(input)
    if weight is not None and weight.dtype != input.dtype and not (autocast and weight.dtype is torch.float32):
        return own(input, target, weight)
    dtype = torch.float32 if autocast else input.dtype
    options = (name, ignore_index, float(label_smoothing), reduction, dtype)
    return Loss(class_loss, options, own, keeps_input=name == "nll_loss")(input, target, weight)


def _is_class_target(name: str, target: Tensor, input: Tensor, ignore_index: int) -> bool:
    """Return whether `target` holds class indices or, for cross-entropy, probabilities for `input`."""
    if input.dim() == 0:
        return False
    if input.shape == target.shape:
        return name == "cross_entropy" and target.dtype == input.dtype and ignore_index < 0
    axis = min(input.dim() - 1, 1)
    return target.shape == input.shape[:axis] + input.shape[axis + 1 :] and (
        target.dtype is torch.int64 or (target.dtype is torch.uint8 and input.dim() <= 2)
    )


def _element_loss(
    name: str,
    own: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> Tensor:
    weights = [tensor for tensor in (weight, pos_weight) if tensor is not None]
    if not (
        _served(name.removesuffix("_of_logs"), input, target, weight, pos_weight)
        and isinstance(reduction, str)
        and (reduction in _REDUCTIONS or (reduction == "batchmean" and name.startswith("kl_div") and input.dim() > 0))
        and not _would_underflow(input, reduction)
        and input.shape == target.shape
        and all(_broadcasts(tensor, input) for tensor in weights)
        and (name != "mse_loss" or weight is None or weight.shape == input.shape)
    ):
        return own(input, target, weight, pos_weight)
    autocast = _autocast(input)
    if autocast and (target.dtype is torch.float64 or (name == "mse_loss" and weight is not None)):
        return own(input, target, weight, pos_weight)  # autocast leaves these as they are
    if autocast and (reduction == "none" or target.dtype != input.dtype):
        input, target = input.float(), target.float()
    if any(tensor.dtype != input.dtype for tensor in (target, *weights)):
        return own(input, target, weight, pos_weight)
    if name.startswith("kl_div") and reduction == "mean":
        warnings.warn(
            "reduction 'mean' is not the mean of the divergences, as it divides by their elements too: 'batchmean' is",
            stacklevel=3,
        )
    dtype = torch.float32 if autocast else input.dtype
    return Loss(element_loss, (name, reduction, dtype), own, keeps_input=not name.startswith("kl_div"))(
        input, target, weight, pos_weight
    )


def _broadcasts(weight: Tensor, input: Tensor) -> bool:
    """Return whether `weight` broadcasts to the shape of `input`."""
    return weight.dim() <= input.dim() and all(
        length in (1, full) for length, full in zip(reversed(weight.shape), reversed(input.shape), strict=False)
    )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy between logits and class indices or probabilities, in nats.

    See `torch.nn.functional.cross_entropy
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html>`_.
    """
    if _is_small("cross_entropy", input, 1):
        return OWN.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    reduction = _reduction_of(size_average, reduce, reduction)
    own = partial(OWN.cross_entropy, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    return _class_loss("cross_entropy", own, input, target, weight, ignore_index, label_smoothing, reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the negative log-likelihood of class indices, in nats.

    See `torch.nn.functional.nll_loss
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html>`_.
    """
    if _is_small("nll_loss", input, 1, target):
        return OWN.nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)
    reduction = _reduction_of(size_average, reduce, reduction)
    own = partial(OWN.nll_loss, ignore_index=ignore_index, reduction=reduction)
    return _class_loss("nll_loss", own, input, target, weight, ignore_index, 0.0, reduction)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the binary cross-entropy of probabilities, in nats.

    See `torch.nn.functional.binary_cross_entropy
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy.html>`_.
    """
    if _is_small("binary_cross_entropy", input):
        return OWN.binary_cross_entropy(input, target, weight, size_average, reduce, reduction)
    reduction = _reduction_of(size_average, reduce, reduction)

    def own(input: Tensor, target: Tensor, weight: Tensor | None, _: None) -> Tensor:
        return OWN.binary_cross_entropy(input, target, weight, reduction=reduction)

    return _element_loss("binary_cross_entropy", own, input, target, weight, None, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the binary cross-entropy of logits, in nats.

    See `torch.nn.functional.binary_cross_entropy_with_logits
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy_with_logits.html>`_.
    """
    if _is_small("binary_cross_entropy_with_logits", input):
        return OWN.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)
    reduction = _reduction_of(size_average, reduce, reduction)

    def own(input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None) -> Tensor:
        return OWN.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)

    return _element_loss("binary_cross_entropy_with_logits", own, input, target, weight, pos_weight, reduction)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return the squared error.

    See `torch.nn.functional.mse_loss
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.mse_loss.html>`_.
    """
    if weight is None and _is_small("mse_loss", input):
        return OWN.mse_loss(input, target, size_average, reduce, reduction)
    reduction = _reduction_of(size_average, reduce, reduction)

    def own(input: Tensor, target: Tensor, weight: Tensor | None, _: None) -> Tensor:
        weights = {} if weight is None else {"weight": weight}  # which older versions of torch do not have
        return OWN.mse_loss(input, target, reduction=reduction, **weights)

    return _element_loss("mse_loss", own, input, target, weight, None, reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Return the Kullback-Leibler divergence of log-probabilities, in nats.

    See `torch.nn.functional.kl_div
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.kl_div.html>`_.
    """
    if _is_small("kl_div", input):
        return OWN.kl_div(input, target, size_average, reduce, reduction, log_target)
    if size_average is not None or reduce is not None or type(log_target) is not bool:
        return OWN.kl_div(input, target, size_average, reduce, reduction, log_target)

    def own(input: Tensor, target: Tensor, *_: None) -> Tensor:
        return OWN.kl_div(input, target, reduction=reduction, log_target=log_target)

    name = "kl_div_of_logs" if log_target else "kl_div"
    return _element_loss(name, own, input, target, None, None, reduction)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the logarithm of the softmax along an axis, in nats.

    See `torch.nn.functional.log_softmax
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html>`_.
    """
    if _is_small("log_softmax", input, dim):
        return OWN.log_softmax(input, dim, _stacklevel + 1, dtype)
    return _softmax("log_softmax", input, dim, _stacklevel, dtype)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Return the softmax along an axis.

    See `torch.nn.functional.softmax
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.softmax.html>`_.
    """
    if _is_small("softmax", input, dim):
        return OWN.softmax(input, dim, _stacklevel + 1, dtype)
    return _softmax("softmax", input, dim, _stacklevel, dtype)


def _softmax(name: str, input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None) -> Tensor:
    if (
        type(dim) is not int
        or not (dtype is None or isinstance(dtype, torch.dtype))
        or not _served(name, input)
        or not -input.dim() <= dim < input.dim()
    ):
        return getattr(OWN, name)(input, dim, stacklevel + 2, dtype)
    if dtype is not None:
        input = input.to(dtype)
    if input.dtype not in _DTYPES:
        return getattr(OWN, name)(input, dim, stacklevel + 2)
    return getattr(_autograd, name)(input, dim % input.dim())


def sigmoid(input: Tensor) -> Tensor:
    """Return the logistic sigmoid of each element.

    See `torch.nn.functional.sigmoid <https://pytorch.org/docs/stable/generated/torch.nn.functional.sigmoid.html>`_.
    """
    if _is_small("sigmoid", input) or not _served("sigmoid", input):
        return OWN.sigmoid(input)
    return _autograd.sigmoid(input)


def logsigmoid(input: Tensor) -> Tensor:
    """Return the logarithm of the logistic sigmoid of each element, in nats.

    See `torch.nn.functional.logsigmoid
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.logsigmoid.html>`_.
    """
    if _is_small("logsigmoid", input) or not _served("logsigmoid", input):
        return OWN.logsigmoid(input)
    return _autograd.log_sigmoid(input)
