"""torch as the peer: NumPy arrays of any float dtype in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch


def as_tensor(array: np.ndarray | np.generic) -> torch.Tensor:
    """Return a tensor of the same dtype and values, in memory of its own."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return an array of the same dtype and values."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def torch_loss(
    function: Callable[..., torch.Tensor], input: np.ndarray, *arguments: Any, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return (loss, gradient by `input` of its sum) as arrays; arguments that are arrays become tensors."""

    def converted(value: Any) -> Any:
        return as_tensor(value) if isinstance(value, np.ndarray | np.generic) else value

    leaf = as_tensor(input).requires_grad_()
    others = {name: converted(value) for name, value in options.items()}
    loss = function(leaf, *map(converted, arguments), **others)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return as_array(loss), as_array(gradient)
