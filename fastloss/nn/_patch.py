"""Put the functions of fastloss.nn.functional in the place of torch's own, and back."""

from __future__ import annotations

import threading
from typing import Any

import torch.nn.functional

from fastloss.nn import functional

_lock = threading.Lock()
_applied: list[Patch] = []
_replaced: dict[str, Any] = {}
"""What torch.nn.functional had before the first of the patches in effect."""


class Patch:
    """Holds until `restore` is called, or the `with` block around it is left."""

    def restore(self) -> None:
        """Undo this patch; torch's functions return when the last one is undone."""
        with _lock:
            if self not in _applied:
                return
            _applied.remove(self)
            if not _applied:
                vars(torch.nn.functional).update(_replaced)
                _replaced.clear()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def patch_torch() -> Patch:
    """Make `torch.nn.functional` use fastloss's functions, and so `torch.nn` and all code that calls them.

    Replaced are the functions in `fastloss.nn.functional`, for the whole process. Code that imported one by its name
    before keeps torch's, and `torch.nn.Sigmoid`, which calls `torch.sigmoid`, is as it was. torch.jit.script cannot
    compile code that calls a replaced function.

    Returns
    -------
    Patch
        Its method `restore`, or leaving a `with` block, puts back the very objects that were there. Patches may be
        nested and undone in any order: torch's functions return with the last one.

    Examples
    --------
    >>> import torch
    >>> import fastloss.nn
    >>> before = torch.nn.functional.cross_entropy
    >>> with fastloss.nn.patch_torch():
    ...     torch.nn.functional.cross_entropy is fastloss.nn.functional.cross_entropy
    True
    >>> torch.nn.functional.cross_entropy is before
    True
    """
    patch = Patch()
    with _lock:
        for name in functional.__all__ if not _applied else ():
            _replaced[name] = getattr(torch.nn.functional, name)
            setattr(torch.nn.functional, name, getattr(functional, name))
        _applied.append(patch)
    return patch
