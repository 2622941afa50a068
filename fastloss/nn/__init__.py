"""Drop-in replacements for the losses of torch.nn, computed by the kernels of fastloss.

Each module is a subclass of torch's own, and each function has the signature of torch's own. What the kernels do not
serve, or would not make faster, torch's own functions answer: `fastloss.nn.functional` has the table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastloss.nn import functional
from fastloss.nn._memory import held_memory, release_memory
from fastloss.nn._patch import patch_torch

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "LogSigmoid",
    "LogSoftmax",
    "MSELoss",
    "NLLLoss",
    "Sigmoid",
    "Softmax",
    "functional",
    "held_memory",
    "patch_torch",
    "release_memory",
]


class _Scriptable(torch.nn.Module):
    """A module that torch.jit.script sees as the module of torch that it is derived from, as it cannot compile this."""

    def __prepare_scriptable__(self) -> torch.nn.Module:
        if type(self).forward.__module__ != __name__:
            return self  # a subclass's own, which torch's module would not have
        own: Any = next(base for base in type(self).__mro__ if not issubclass(base, _Scriptable))
        module: torch.nn.Module = own.__new__(own)
        module.__dict__.update(self.__dict__)
        return module


class BCELoss(torch.nn.BCELoss, _Scriptable):
    """torch.nn.BCELoss, of fastloss's `binary_cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross-entropy of probabilities."""
        return functional.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss, _Scriptable):
    """torch.nn.BCEWithLogitsLoss, of fastloss's `binary_cross_entropy_with_logits`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross-entropy of logits."""
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss, _Scriptable):
    """torch.nn.CrossEntropyLoss, of fastloss's `cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy between logits and class indices or probabilities."""
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(torch.nn.NLLLoss, _Scriptable):
    """torch.nn.NLLLoss, of fastloss's `nll_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the negative log-likelihood of class indices."""
        return functional.nll_loss(
            input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class MSELoss(torch.nn.MSELoss, _Scriptable):
    """torch.nn.MSELoss, of fastloss's `mse_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the squared error."""
        return functional.mse_loss(input, target, reduction=self.reduction)


class KLDivLoss(torch.nn.KLDivLoss, _Scriptable):
    """torch.nn.KLDivLoss, of fastloss's `kl_div`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of log-probabilities."""
        return functional.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class LogSoftmax(torch.nn.LogSoftmax, _Scriptable):
    """torch.nn.LogSoftmax, of fastloss's `log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the logarithm of the softmax."""
        return functional.log_softmax(input, self.dim, _stacklevel=5)


class Softmax(torch.nn.Softmax, _Scriptable):
    """torch.nn.Softmax, of fastloss's `softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the softmax."""
        return functional.softmax(input, self.dim, _stacklevel=5)


class Sigmoid(torch.nn.Sigmoid, _Scriptable):
    """torch.nn.Sigmoid, of fastloss's `sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the logistic sigmoid."""
        return functional.sigmoid(input)


class LogSigmoid(torch.nn.LogSigmoid, _Scriptable):
    """torch.nn.LogSigmoid, of fastloss's `logsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the logarithm of the logistic sigmoid."""
        return functional.logsigmoid(input)
