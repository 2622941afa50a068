"""Who computes a loss: each provider's code is here, but for NumPy's own losses and for how another process is asked.

A provider prepares a case in a mode, and what that returns does the whole work at each call: no input is converted and
nothing is compiled while it is timed. All use the same number of threads, Numba's, but for NumPy, which uses one.

Where a result goes matters as much as who computes it, since fresh memory comes in pages that the operating system must
hand out. So each provider says whether its results are `new` memory at each call, or memory `reused`: the caller's
(`out=`), or what the provider or the C library kept; and like is compared with like.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import numpy_losses
from .cases import MODES, Case, inputs_of, sized
from .oracle import Result, check
from .remote import RemoteRun, allocator_that_keeps_pages

Run = Callable[[], Any]
"""Does the work of one call, and returns (loss, gradient or None) in the provider's own types."""


class Skipped(NotImplementedError):
    """A provider is not installed, or has not what is asked; asv leaves out what raises it."""


class Provider(NamedTuple):
    """One who computes losses."""

    name: str
    prepare: Callable[[Case, str], Run]
    memory: str
    """Of the results: `new` or `reused`."""
    needs: tuple[str, ...] = ()
    """The modules without which it is skipped."""
    modes: tuple[str, ...] = ("forward", "gradient")
    thread_counts: bool = True
    """Whether the number of its threads can be set, if only before its first call in a process."""


def threads() -> int:
    """Return the number of threads that every provider uses, where that can be set: Numba's."""
    import numba

    return int(numba.get_num_threads())


def _numpy(case: Case, mode: str) -> Run:
    if case.loss == "log_softmax" and mode != "forward":
        raise Skipped("NumPy has no autograd")
    return numpy_losses.prepare(case, mode != "forward", *inputs_of(case))


def _fastloss(case: Case, mode: str, reuse: bool) -> Run:
    import fastloss as fl

    input, target = inputs_of(case)
    function = getattr(fl, case.loss)
    if case.loss == "log_softmax":
        options: dict[str, Any] = {"out": np.empty_like(input)} if reuse else {}
        return lambda: (function(input, 1, **options), None)
    reduction = {"reduction": "batchmean"} if case.loss == "kl_div" else {}
    if mode == "forward":
        if not reuse:
            raise Skipped("the forward mode of a loss has no large result")
        return lambda: (function(input, target, **reduction), None)
    options = {"out": np.empty_like(input)} if reuse else {}
    return lambda: function(input, target, return_grad=True, **reduction, **options)


def tensor_of(array: np.ndarray) -> Any:
    """Return the memory of an array as a tensor."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _loss_of_tensors(case: Case, functional: Any) -> Callable[[Any, Any], Any]:
    """Return the loss of (input, target), by torch's functions or by functions like them."""
    function = getattr(functional, case.loss)
    if case.loss == "log_softmax":
        return lambda input, _: function(input, dim=1)
    if case.loss == "kl_div":
        return lambda input, target: function(input, target, reduction="batchmean")
    return lambda input, target: function(input, target)


def _run_tensors(case: Case, mode: str, loss_of: Callable[[Any, Any], Any]) -> Run:
    """Return what runs `loss_of` in a mode.

    The input is a leaf tensor of the provider's own. If two providers shared one, `.grad = None` of the one would free
    the gradient of the other, and each would pay for the other's memory or find its pages warm.
    """
    import torch

    torch.set_num_threads(threads())
    input, target = map(tensor_of, inputs_of(case))
    if mode == "forward":
        return lambda: (loss_of(input, target), None)
    leaf = input.requires_grad_()

    def gradient() -> tuple[Any, Any]:
        loss = loss_of(leaf, target)
        return loss, torch.autograd.grad(loss, leaf)[0]

    def step() -> tuple[Any, Any]:
        leaf.grad = None
        loss = loss_of(leaf, target)
        loss.backward(target if case.loss == "log_softmax" else None)
        return loss, leaf.grad

    return gradient if mode == "gradient" else step


def _torch(case: Case, mode: str) -> Run:
    import torch.nn.functional

    return _run_tensors(case, mode, _loss_of_tensors(case, torch.nn.functional))


def _torch_reused(case: Case, mode: str) -> Run:
    return RemoteRun(allocator_that_keeps_pages(), "torch", case, mode)


def _torch_compile(case: Case, mode: str) -> Run:
    import torch._dynamo

    if not (shutil.which("g++") or shutil.which("clang++")):
        raise Skipped("torch.compile needs a C++ compiler")
    torch._dynamo.reset()  # which else gives up after it has compiled one line of code for some eight shapes
    return _run_tensors(case, mode, torch.compile(_loss_of_tensors(case, torch.nn.functional), dynamic=False))


def _fastloss_nn(case: Case, mode: str) -> Run:
    import fastloss.nn.functional

    return _run_tensors(case, mode, _loss_of_tensors(case, fastloss.nn.functional))


def _jax_loss(case: Case) -> Callable[[Any, Any], Any]:
    """Return the loss as Optax writes it, half precision in float32 inside, where XLA fuses the conversion."""
    import jax
    from jax import numpy as jnp

    def loss(x: Any, t: Any) -> Any:
        dtype = x.dtype
        if dtype.itemsize == 2:
            x = x.astype(jnp.float32)
        if case.loss == "log_softmax":
            return jax.nn.log_softmax(x, axis=1).astype(dtype)
        if case.of_classes:
            at_label = jnp.take_along_axis(x, jnp.expand_dims(t, 1), axis=1).squeeze(1)
            normalizer = jax.nn.logsumexp(x, axis=1) if case.loss == "cross_entropy" else 0
            value = jnp.mean(normalizer - at_label)
        elif case.loss == "binary_cross_entropy_with_logits":
            value = -jnp.mean(t * jax.nn.log_sigmoid(x) + (1 - t) * jax.nn.log_sigmoid(-x))
        elif case.loss == "binary_cross_entropy":
            value = -jnp.mean(t * jnp.log(x) + (1 - t) * jnp.log1p(-x))
        elif case.loss == "mse_loss":
            value = jnp.mean((x - t) ** 2)
        else:
            value = jnp.sum(t * (jnp.log(t) - x)) / x.shape[0]
        return value.astype(dtype)

    return loss


def _jax(case: Case, mode: str) -> Run:
    if case.loss == "log_softmax" and mode != "forward":
        raise Skipped("a step of JAX is not an autograd step")
    os.environ["NPROC"] = str(threads())  # which XLA reads when JAX is first used, and never again
    import jax

    jax.config.update("jax_enable_x64", True)
    input, target = (jax.device_put(array) for array in inputs_of(case))
    loss = _jax_loss(case)
    if mode == "forward":
        forward = jax.jit(loss)
        return lambda: (forward(input, target).block_until_ready(), None)
    both = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(both(input, target))


def _sklearn(case: Case, mode: str) -> Run:
    """Return the private losses of scikit-learn; sample weights of 1 / N make their sums means in the same pass."""
    try:
        from sklearn._loss import loss as losses
    except ImportError as error:
        raise Skipped("this scikit-learn has no sklearn._loss") from error
    input, target = inputs_of(case)
    if input.dtype.itemsize < 4 or input.ndim > 2:
        raise Skipped("sklearn._loss has float32 and float64, and no axes behind that of the classes")
    weight = 1 / len(input)
    if case.loss == "cross_entropy":
        loss = losses.HalfMultinomialLoss(n_classes=case.shape[1])
    elif case.loss == "binary_cross_entropy_with_logits":
        loss = losses.HalfBinomialLoss()
    elif case.loss == "mse_loss":
        loss, weight = losses.HalfSquaredError(), 2 * weight
    else:
        raise Skipped(f"sklearn._loss has no {case.loss}")
    arguments: dict[str, Any] = {
        "y_true": target.astype(input.dtype, copy=False),
        "raw_prediction": input,
        "sample_weight": np.full(len(input), weight, input.dtype),
        "loss_out": np.empty(len(input), input.dtype),
        "n_threads": threads(),
    }
    if mode == "forward":
        return lambda: (loss.loss(**arguments).sum(), None)
    gradient = np.empty_like(input)

    def run() -> tuple[Any, np.ndarray]:
        per_row, _ = loss.loss_gradient(gradient_out=gradient, **arguments)
        return per_row.sum(), gradient

    return run


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("fastloss", functools.partial(_fastloss, reuse=True), "reused", ("fastloss",)),
        Provider("fastloss, new", functools.partial(_fastloss, reuse=False), "new", ("fastloss",)),
        Provider("fastloss.nn", _fastloss_nn, "reused", ("torch", "fastloss.nn"), MODES),
        Provider("numpy", _numpy, "reused", thread_counts=False),
        Provider("torch", _torch, "new", ("torch",), MODES),
        Provider("torch, pages reused", _torch_reused, "reused", ("torch",), MODES, thread_counts=False),
        Provider("torch.compile", _torch_compile, "new", ("torch",), MODES),
        Provider("jax.jit", _jax, "new", ("jax",)),
        Provider("sklearn._loss", _sklearn, "reused", ("sklearn",)),
    )
}


def installed(module: str) -> bool:
    """Return whether a module is there to be imported; early commits have no fastloss.nn."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def counterpart(name: str, mode: str) -> str:
    """Return the fastloss with which a provider is compared: the one whose results are in memory of the same kind."""
    if mode == "autograd":
        return "fastloss.nn"
    if mode == "gradient" and PROVIDERS[name].memory == "new":
        return "fastloss, new"
    return "fastloss"


def prepare(name: str, case: Case, mode: str) -> Run:
    """Return what a provider runs; raise `Skipped` where it cannot."""
    provider = PROVIDERS[name]
    for module in provider.needs:
        if not installed(module):
            raise Skipped(f"{module} is not installed")
    if mode not in case.modes() or mode not in provider.modes:
        raise Skipped(f"{name} has no {mode} of {case.title}")
    return provider.prepare(case, mode)


def result_of(outcome: Any) -> Result:
    """Return as arrays what a run returned."""

    def array(value: Any) -> Any:
        if hasattr(value, "detach"):
            value = value.detach()
            value = value.double() if value.dtype.itemsize == 2 else value
        return None if value is None else np.asarray(value)

    loss, gradient = outcome.fetch() if isinstance(outcome, RemoteRun) else outcome
    return Result(array(loss), array(gradient))


@functools.lru_cache(maxsize=1)
def ready(name: str, case: Case, mode: str) -> Run:
    """Return what a provider runs, once it has run and its result is found to be right; a peer's may be skipped."""
    run = prepare(name, sized(case), mode)
    checked(result_of(run()), sized(case), mode, name)
    return run


def checked(result: Result, case: Case, mode: str, name: str) -> None:
    """Raise `Skipped` if the result of a peer is wrong, an AssertionError if one of ours is."""
    try:
        check(result, case, mode, name)
    except AssertionError as error:
        if name.startswith("fastloss"):
            raise
        raise Skipped(str(error)) from error
