"""A call like an earlier one skips the checks that this one has passed: nothing else about it is different."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tolerances import assert_agree

import fastloss as fl
from fastloss import functional


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_remembered", {})


def arguments(classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    return rng.standard_normal((7, classes)).astype(np.float32), rng.integers(0, classes, 7)


@pytest.mark.parametrize("options", [{}, {"return_grad": True}, {"label_smoothing": 0.1}, {"reduction": "none"}])
def test_calls_alike_are_remembered_once_and_differ_by_their_values_alone(options: dict[str, Any]) -> None:
    def results(logits: np.ndarray, target: np.ndarray) -> tuple[Any, ...]:
        result = fl.cross_entropy(logits, target, **options)
        return result if isinstance(result, tuple) else (result,)

    for scale in (1.0, 2.0, -0.5):
        logits, target = arguments()
        logits *= np.float32(scale)
        remembered = results(logits, target)
        functional._remembered.clear()
        for result, expected in zip(remembered, results(logits, target), strict=True):
            np.testing.assert_array_equal(result, expected)
        assert len(functional._remembered) == 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("ignore_index", -100.0, TypeError),
        ("ignore_index", [-100], TypeError),
        ("label_smoothing", "0", TypeError),
        ("label_smoothing", [0.0], TypeError),
        ("reduction", ["mean"], ValueError),
        ("weight", [1.0, 2.0], ValueError),
        ("out", [0.0], (TypeError, ValueError)),
    ],
)
def test_options_of_other_types_are_checked_though_they_equal_those_of_before(
    name: str, value: Any, error: type[Exception]
) -> None:
    logits, target = arguments()
    fl.cross_entropy(logits, target)
    with pytest.raises(error, match=name):
        fl.cross_entropy(logits, target, **{name: value})


def test_arrays_of_other_kinds_are_checked() -> None:
    logits, target = arguments()
    out = np.empty_like(logits)
    fl.cross_entropy(logits, target, return_grad=True, out=out)
    frozen = np.empty_like(logits)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fl.cross_entropy(logits, target, return_grad=True, out=frozen)
    with pytest.raises(TypeError, match="target has dtype bool"):
        fl.cross_entropy(logits, target > 1, return_grad=True, out=out)
    with pytest.raises(TypeError, match="target is a masked array"):
        fl.cross_entropy(logits, np.ma.masked_array(target), return_grad=True, out=out)
    with pytest.raises(ValueError, match="out receives the gradient"):
        fl.cross_entropy(logits, target, out=out)


def test_invalid_indices_are_found_each_time_and_write_nothing() -> None:
    logits, target = arguments()
    out = np.zeros_like(logits)
    for wrong in (5, -1):
        fl.cross_entropy(logits, target % 5, return_grad=True, out=out.copy())
        target[3] = wrong
        with pytest.raises(IndexError, match=rf"target\[3\] is {wrong}"):
            fl.cross_entropy(logits, target, return_grad=True, out=out)
        assert not out.any()


def test_an_output_that_overlaps_another_argument_is_found_each_time() -> None:
    memory = np.zeros(2 * 35, np.float32)
    logits, target = arguments()
    apart, expected = fl.cross_entropy(logits, target, return_grad=True, out=np.empty_like(logits))
    for shift in (0, 1, 5, 17, 35):
        memory[:35] = logits.ravel()
        input, out = memory[:35].reshape(7, 5), memory[shift : shift + 35].reshape(7, 5)
        loss, gradient = fl.cross_entropy(input, target, return_grad=True, out=out)
        assert gradient is out
        assert loss == apart
        np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("shared", ["target", "weight"])
def test_an_output_that_is_another_operand_is_found_each_time(shared: str) -> None:
    logits, _ = arguments()
    given = {"input": logits, "target": np.abs(logits), "weight": np.linspace(0.5, 2.0, 5, dtype=np.float32)}
    loss, gradient = fl.cross_entropy(**given, return_grad=True, out=np.empty_like(logits))
    memory = np.zeros(logits.shape, np.float32)
    operand = memory if shared == "target" else memory[3]
    for _ in range(2):
        operand[...] = given[shared]
        again = fl.cross_entropy(**{**given, shared: operand}, return_grad=True, out=memory)
        assert again[0] == loss
        np.testing.assert_array_equal(memory, gradient)


def test_threads_remember_and_forget_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_MOST_REMEMBERED", 3)
    logits, target = arguments()
    expected = [fl.cross_entropy(logits, target, ignore_index=index) for index in range(5)]

    def work(seed: int) -> bool:
        for index in np.random.default_rng(seed).integers(0, 5, 500).tolist():
            if fl.cross_entropy(logits, target, ignore_index=index) != expected[index]:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.parametrize("unaligned", ["input", "target", "weight"])
def test_unaligned_arrays_are_converted_each_time(unaligned: str) -> None:
    logits, target = arguments()
    given = {"input": logits, "target": target, "weight": np.linspace(0.5, 2.0, 5, dtype=np.float32)}
    expected = fl.cross_entropy(**given)
    array = given[unaligned]
    given[unaligned] = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    given[unaligned][...] = array
    for _ in range(2):
        assert_agree(fl.cross_entropy(**given), expected, np.float32)
    assert len(functional._remembered) == 1, "that of the aligned ones"


def test_no_array_is_kept() -> None:
    logits, target = arguments()
    out, weight = np.empty_like(logits), np.ones(5, np.float32)
    fl.cross_entropy(logits, target, weight, return_grad=True, out=out)
    fl.nll_loss(logits, target, weight, return_grad=True)
    alive = [weakref.ref(array) for array in (logits, target, out, weight)]
    del logits, target, out, weight
    gc.collect()
    assert functional._remembered
    assert not any(reference() is not None for reference in alive)


def test_so_many_are_remembered_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_MOST_REMEMBERED", 3)
    for ignore_index in range(-10, -1):
        fl.cross_entropy(*arguments(), ignore_index=ignore_index)
        assert 1 <= len(functional._remembered) <= 3
