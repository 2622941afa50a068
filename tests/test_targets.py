"""The look at class indices, of all integer dtypes, against Python's integers."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import pytest

from fastloss._kernels import targets

ROWS = 40


@numba.njit(error_model="numpy")
def _survey(
    target: np.ndarray, first: int, last: int, classes: int, ignored: int, weight: np.ndarray | None, sums: np.ndarray
) -> bool:
    return targets.survey_rows(target, first, last, classes, ignored, weight, 1, sums)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["i1", "i4", "i8", "u1", "u8"])
def test_survey(dtype: str, weighted: bool) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    edges = [0, 1, 4, 5, 100, info.max, info.max - 99, info.min, info.max // 2 + 1]
    edges += [-1, -100] if info.min < 0 else []
    for some, step in itertools.product((edges[:2], edges[:4], edges), (1, 2)):
        memory = np.array(rng.choice(np.array(some, object), (2, ROWS * step)), dtype)
        target = memory[:, ::step]
        for classes, ignored, (first, last) in itertools.product(
            (2, 5, 101), (-100, 1, 5), ((0, 80), (3, 77), (38, 43))
        ):
            counted = [value for value in target.ravel()[first:last].tolist() if value != ignored]
            valid = [value for value in counted if 0 <= value < classes]
            weight = None
            if weighted:
                weight = np.full(classes, np.inf, np.float32)  # of a class that is absent, or ignored
                weight[valid] = rng.random(len(valid))
            sums = np.zeros(6)
            plain = _survey(target, first, last, classes, ignored, weight, sums)
            expected = len(valid) if weight is None else weight[valid].sum(dtype=np.float64)
            assert sums[3] == pytest.approx(expected)
            assert sums[targets.INVALID] == (len(valid) < len(counted))
            assert not sums[[0, 1, 2, targets.WEIGHT]].any()
            assert plain == (weight is None and len(valid) == last - first)
