"""Loss functions with their gradients, fused into one pass over the input by Numba kernels.

The functions take and return NumPy arrays and follow those of the same names in `torch.nn.functional`.
"""

from fastloss._warmup import warmup
from fastloss.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    log_sigmoid,
    log_softmax,
    logsumexp,
    mse_loss,
    nll_loss,
    sigmoid,
    softmax,
)

__version__ = "0.1.0"

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "kl_div",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "mse_loss",
    "nll_loss",
    "sigmoid",
    "softmax",
    "warmup",
]
