"""More than 2**31 elements: no index, count or sum wraps, in arrays that take hardly any memory.

Fresh memory that is only read is one page of zeros, however large. What is written to is one piece of memory, mapped
again and again, except for the last piece, whose contents are checked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

import numpy as np
import oracles
import pytest
from tolerances import assert_agree, assert_close

import fastloss as fl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is taken as soon as it is read"),
]

LIMIT = 2**31
FLOAT = np.dtype(np.float32)
PIECE = 1 << 26
"""Bytes that are mapped at once."""


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, FLOAT)


def rows_beyond(classes: int) -> int:
    """Return how many rows of `classes` have some elements more than `LIMIT`."""
    return (LIMIT + 5_000) // classes


def overlaid(elements: int) -> np.ndarray:
    """Return a writable array that takes twice `PIECE`: all but the end of it is the same memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    pieces = -(-elements * FLOAT.itemsize // PIECE)
    memory = mmap.mmap(-1, pieces * PIECE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    file = os.memfd_create("overlaid")
    os.truncate(file, PIECE)
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10  # MAP_FIXED
    for piece in range(pieces - 2):
        place = address + piece * PIECE
        if libc.mmap(place, PIECE, protection, flags, file, 0) != place:
            raise OSError(ctypes.get_errno(), "mmap")
    os.close(file)
    return np.frombuffer(memory, FLOAT, elements)


def test_rows_beyond_the_limit() -> None:
    logits = zeros(rows_beyond(1000), 1000)
    others = (len(logits) - 1) * np.log(1000)
    logits[-1, 0] = -others / 2
    loss = fl.cross_entropy(logits, np.zeros(len(logits), np.int64), reduction="sum")
    assert_close(loss, np.longdouble(others * 1.5 + np.log(999)), FLOAT)


@pytest.mark.parametrize("classes", [2, 5, 100, 1000])
def test_gradients_beyond_the_limit(classes: int) -> None:
    """Each number of classes has another kernel. All rows but the last nine are ignored."""
    logits = zeros(rows_beyond(classes), classes)
    target = np.zeros(len(logits), np.int64)
    rng = np.random.default_rng(0)
    logits[-9:], target[-9:] = rng.normal(size=(9, classes)), rng.integers(1, classes, 9)
    out = overlaid(logits.size).reshape(logits.shape)
    loss, gradient = fl.cross_entropy(logits, target, ignore_index=0, reduction="sum", return_grad=True, out=out)
    expected = oracles.cross_entropy(logits[-9:], target[-9:], reduction="sum")
    assert_agree(loss, expected[0], FLOAT)
    assert_agree(gradient[-9:], expected[1], FLOAT)
    assert not gradient[-99:-9].any()
    target[-1] = classes
    with pytest.raises(IndexError, match=rf"^target\[{len(logits) - 1}\] is {classes}, but there are {classes} class"):
        fl.cross_entropy(logits, target)


def test_one_row_of_classes_beyond_the_limit() -> None:
    logits, last = zeros(1, LIMIT + 5_000), LIMIT + 4_999
    logits[0, last] = 30
    for label, expected in ((last, np.log1p(last / np.exp(30))), (last - 1, 30 + np.log1p(last / np.exp(30)))):
        assert_close(fl.cross_entropy(logits, [label]), np.longdouble(expected), FLOAT)
    with pytest.raises(IndexError, match=rf"^target\[0\] is {last + 1}, but there are {last + 1} classes$"):
        fl.cross_entropy(logits, [last + 1])


def test_class_indices_beyond_the_limit() -> None:
    log_probabilities, target = zeros(LIMIT + 5_000, 1), np.zeros(LIMIT + 5_000, np.int8)
    log_probabilities[-1] = -7
    assert fl.nll_loss(log_probabilities, target, reduction="sum") == 7
    target[-1] = 1
    with pytest.raises(IndexError, match=rf"^target\[{LIMIT + 4_999}\] is 1, but there are 1 classes$"):
        fl.nll_loss(log_probabilities, target)


def test_elements_beyond_the_limit() -> None:
    predictions = zeros(LIMIT + 5_000)
    predictions[-1] = 3
    assert fl.mse_loss(predictions, zeros(LIMIT + 5_000), reduction="sum") == 9
