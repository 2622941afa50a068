"""The tables of elementary.py follow from the formulas in its comments: no digit was typed by hand."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from fastloss._kernels.elementary import EIGHTHS, EIGHTHS_COEFFICIENTS, FLOAT32, FLOAT64, Format

FORMATS = [pytest.param(FLOAT32, id="float32"), pytest.param(FLOAT64, id="float64")]


def of_exponential(r: mpmath.mpf) -> mpmath.mpf:
    return mpmath.hyp1f1(1, 3, r) / 2


def of_logarithm(z: mpmath.mpf) -> mpmath.mpf:
    return 2 * mpmath.hyp2f1(1, mpmath.mpf(3) / 2, mpmath.mpf(5) / 2, z) / 3


@pytest.mark.parametrize("f", FORMATS)
@pytest.mark.parametrize("table", ["exp", "log", "log1p"])
def test_tables_are_chebyshev_fits(f: Format, table: str) -> None:
    with mpmath.workdps(40):
        half_ln2, root = mpmath.log(2) / 2, 3 - 2 * mpmath.sqrt(2)
        coefficients, formula, interval = {
            "exp": (f.exp_coefficients, of_exponential, [-half_ln2, half_ln2]),
            "log": (f.log_coefficients, of_logarithm, [0, root**2]),
            "log1p": (f.log1p_coefficients, of_logarithm, [0, mpmath.mpf(1) / 9]),
        }[table]
        fit = mpmath.chebyfit(formula, interval, len(coefficients))[::-1]
        np.testing.assert_allclose(coefficients, [float(c) for c in fit], rtol=1e-12)


def test_powers_of_eighths() -> None:
    """2**(k / 8) is right to the last bit, and the polynomial behind it as near as its comment says."""
    with mpmath.workdps(40):
        for k, bits in enumerate(EIGHTHS):
            power = np.int32((FLOAT32.bias << FLOAT32.mantissa_bits) + bits + (k << 20)).view(np.float32)
            assert abs(float(power) - mpmath.mpf(2) ** (mpmath.mpf(k) / 8)) <= mpmath.mpf(2) ** -24
        longest = mpmath.log(2) / 16
        for step in range(-1000, 1001):
            r = longest * step / 1000
            terms = sum(c * r**n for n, c in enumerate(EIGHTHS_COEFFICIENTS, 2))
            assert abs(1 + r + terms - mpmath.exp(r)) <= 2.7e-8


def test_formulas_are_those_of_the_functions() -> None:
    """What is fitted is the remainder of exp(r) behind 1 + r, and of log((1 + s) / (1 - s)) behind 2 s."""
    with mpmath.workdps(40):
        for r in (mpmath.mpf("-0.3"), mpmath.mpf("0.01"), mpmath.mpf("0.34")):
            assert mpmath.almosteq(1 + r + r**2 * of_exponential(r), mpmath.exp(r), 1e-35)
            series = 2 * r + r**3 * of_logarithm(r**2)
            assert mpmath.almosteq(series, mpmath.log((1 + r) / (1 - r)), 1e-35)


@pytest.mark.parametrize("f", FORMATS)
def test_ln2_in_two_parts(f: Format) -> None:
    dtype = np.float32 if f is FLOAT32 else np.float64
    assert float(dtype(f.ln2_high)) == f.ln2_high, "the dtype holds it exactly"
    with mpmath.workdps(60):
        sum_of_parts = mpmath.mpf(f.ln2_high) + mpmath.mpf(float(dtype(f.ln2_low)))
        assert abs(sum_of_parts - mpmath.log(2)) <= mpmath.ldexp(f.ln2_low, -f.mantissa_bits - 1)
    significant = int(math.ldexp(f.ln2_high, f.mantissa_bits + 1))
    trailing_zeros = (significant & -significant).bit_length() - 1
    largest_exponent = f.bias + f.scale_exponent + 1  # of any e**x, subnormal or scaled
    assert trailing_zeros >= largest_exponent.bit_length(), "so that its product with an exponent is exact"


@pytest.mark.parametrize("f", FORMATS)
def test_format_is_that_of_numpy(f: Format) -> None:
    info = np.finfo(np.float32 if f is FLOAT32 else np.float64)
    assert (f.mantissa_bits, f.bias) == (info.nmant, info.maxexp - 1)
    assert f.smallest_normal == info.smallest_normal
