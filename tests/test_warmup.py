"""Compiling ahead: what `warmup` leaves in the cache, and how many kernels the common calls need."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import fastloss as fl

ROOT = pathlib.Path(fl.__file__).parent.parent

KERNELS = """
from fastloss._kernels import _blocks, _cache, bce, cross_entropy, cross_entropy_batches, cross_entropy_few
from fastloss._kernels import cross_entropy_pairs, cross_entropy_planes, cross_entropy_tiles, nll, pointwise
kernels = {
    id(value): value
    for module in (
        _blocks, bce, cross_entropy, cross_entropy_batches, cross_entropy_few, cross_entropy_pairs,
        cross_entropy_planes, cross_entropy_tiles, nll, pointwise,
    )
    for value in vars(module).values()
    if isinstance(getattr(value, "_cache", None), _cache._Cache)
}.values()
compiled = sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)
loaded = sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels)
print(compiled, loaded)
"""

COMMON = """
import numpy as np, fastloss as fl
for classes in (2, 10, 1000):
    for rows in (3, 40000 // classes):
        y = np.zeros(rows, np.int64)
        for order in "CF":
            x = np.zeros((rows, classes), np.float32, order)
            fl.cross_entropy(x, y)
            fl.cross_entropy(x, y, return_grad=True)
"""


def counts(code: str, folder: pathlib.Path) -> tuple[int, int]:
    """Return (kernels compiled, kernels loaded) by a process that runs `code` on two threads."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code + KERNELS]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=600)
    compiled, loaded = run.stdout.split()
    return int(compiled), int(loaded)


def test_a_later_process_compiles_nothing(tmp_path: pathlib.Path) -> None:
    compiled, loaded = counts("import fastloss as fl\nassert list(fl.warmup(['mse_loss'])) == ['mse_loss']", tmp_path)
    assert (compiled, loaded) == (3, 0)  # with and without the gradient, and the loop over blocks of all kernels
    calls = "\n".join(
        f"fl.mse_loss(np.ones({size}, 'f4'), np.ones({size}, 'f4'), return_grad={grad})"
        for size in (5, 10**5)
        for grad in (False, True)
    )
    assert counts(f"import numpy as np, fastloss as fl\n{calls}", tmp_path) == (0, 3)


@pytest.mark.slow
def test_common_calls_of_cross_entropy_need_few_kernels(tmp_path: pathlib.Path) -> None:
    """Four kernels, with and without the gradient; and the loop over blocks."""
    compiled, _ = counts(COMMON, tmp_path)
    assert compiled == 4 * 2 + 1


@pytest.mark.slow
def test_a_number_of_classes_has_its_kernel(tmp_path: pathlib.Path) -> None:
    compiled, _ = counts("import fastloss as fl\nfl.warmup('cross_entropy', classes=7)", tmp_path)
    assert compiled == 2 + 2 + 1  # of rows, of images, and the loop over blocks
    for shape in ("9, 7", "9, 7, 3, 3"):
        call = f"x = np.ones(({shape}), 'f4')\nfl.cross_entropy(x, np.zeros(x[:, 0].shape, int), return_grad=True)"
        assert counts(f"import numpy as np, fastloss as fl\n{call}", tmp_path) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_other_number_of_classes_compiles_anything(tmp_path: pathlib.Path, dtype: str) -> None:
    """Beyond those that have kernels of their own."""
    counts(f"import fastloss as fl\nfl.warmup('cross_entropy', '{dtype}')", tmp_path)
    calls = f"""
import numpy as np, fastloss as fl
for classes in (2, 20, 24, 31, 32, 63, 64, 79, 80, 127, 128, 159, 160, 255, 256, 1000):
    x, y = np.ones((33, classes), '{dtype}'), np.zeros(33, np.int64)
    fl.cross_entropy(x, y)
    fl.cross_entropy(x, y, return_grad=True)
"""
    assert counts(calls, tmp_path)[0] == 0


def test_bfloat16_by_its_name(tmp_path: pathlib.Path) -> None:
    compiled, _ = counts(
        "import fastloss as fl, numpy as np\nfl.warmup('softmax', 'bfloat16', np.array([2]))", tmp_path
    )
    assert compiled == 1 + 1 + 1  # of rows, of images, and the loop over blocks


def test_names_of_any_iterable() -> None:
    assert list(fl.warmup(name for name in ("sigmoid", "mse_loss"))) == ["sigmoid", "mse_loss"]


def test_one_or_more_dtypes() -> None:
    for dtypes in (np.float32, np.dtype(np.float32), "float32", iter([np.float32])):
        assert list(fl.warmup("sigmoid", dtypes)) == ["sigmoid"]


def test_unknown_names_and_dtypes_are_errors() -> None:
    with pytest.raises(ValueError, match="functions has 'hinge_loss'; it must be one of binary_cross_entropy, "):
        fl.warmup(["mse_loss", "hinge_loss"])
    with pytest.raises(ValueError, match="functions has 3; it must be one of"):
        fl.warmup(3)  # type: ignore[arg-type]
    for dtype in (np.complex64, np.int64, np.bool_, "float31", None):
        for dtypes in (dtype, [np.float32, dtype]):
            with pytest.raises(TypeError, match=r"dtypes has .*; it must be float16, bfloat16, float32 or float64"):
                fl.warmup(["sigmoid"], dtypes)
    with pytest.raises(ValueError, match="classes has 0; it must be positive"):
        fl.warmup("cross_entropy", classes=[10, 0])
    with pytest.raises(TypeError, match="classes is 'many'; it must be an integer"):
        fl.warmup("cross_entropy", classes=["many"])
