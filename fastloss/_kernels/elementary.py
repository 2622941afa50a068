"""exp, log, sigmoid and softplus, once for scalars and vectors of float32 and float64.

PyPI's Numba has no vector mathematics library, so these are range-reduced polynomials in operations that every CPU has
on vectors. Each docstring states the function's largest error in ulps of its result's dtype; the tests measure it.

The coefficients are near-minimax fits (Chebyshev interpolation) by `mpmath.chebyfit`; a test derives them anew from
the formula beside each table. The range reductions follow W. J. Cody and W. Waite, "Software Manual for the Elementary
Functions" (1980), chapters 5 and 6; the form of the logarithm and its correction for log1p follow K. C. Ng's in
FreeBSD's msun (e_log.c, s_log1p.c), which its comments derive.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba import types

from fastloss._kernels._jit import inlined_by_type
from fastloss._kernels._simd import (
    absolute,
    add_bits,
    and_bits,
    as_bits,
    constant,
    element_type,
    from_bits,
    in_register,
    looked_up,
    looks_up,
    multiply_add,
    polynomial,
    select,
    shift_left,
    shift_right,
    subtract_bits,
)


class Format(NamedTuple):
    """What the algorithms need to know of a floating-point format."""

    mantissa_bits: int
    bias: int
    ln2_high: float
    """ln 2 rounded to so few bits that its product with an exponent is exact, with or without fused multiply-add."""
    ln2_low: float
    """ln(2) - ln2_high."""
    exp_coefficients: tuple[float, ...]
    """c2, c3, ... of exp(r) = 1 + r + c2 r**2 + c3 r**3 + ... for |r| <= ln(2) / 2."""
    log_coefficients: tuple[float, ...]
    """c0, c1, ... of log((1 + s) / (1 - s)) = 2 s + s z (c0 + c1 z + ...), z = s**2, |s| <= 3 - 2 sqrt(2)."""
    log1p_coefficients: tuple[float, ...]
    """The same for |s| <= 1 / 3."""

    @property
    def rounding_magic(self) -> float:
        """1.5 times the power of two from which on floats are integers: added, it rounds to the nearest integer."""
        return 1.5 * 2.0**self.mantissa_bits

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def scale_exponent(self) -> int:
        """`exp_scaled` multiplies by 2 to this power: half the smallest subnormal becomes normal."""
        return self.mantissa_bits + 2


# The exponential's: mpmath.chebyfit of (exp(r) - 1 - r) / r**2, which is hyp1f1(1, 3, r) / 2, over |r| <= ln(2) / 2.
# The logarithm's: of (2 atanh(sqrt(z)) / sqrt(z) - 2) / z, which is 2/3 hyp2f1(1, 3/2, 5/2, z), over
# 0 <= z <= (3 - 2 sqrt(2))**2 and over 0 <= z <= 1/9.
FLOAT32 = Format(
    mantissa_bits=23,
    bias=127,
    ln2_high=float.fromhex("0x1.62Ep-1"),
    ln2_low=float.fromhex("0x1.0bfbe8e7bcd5ep-15"),
    exp_coefficients=(
        0.5,
        0.1666657702559799,
        0.041666554662050534,
        0.008363173074513711,
        0.001392617611993558,
    ),
    log_coefficients=(
        0.6666668503957586,
        0.3998878056602198,
        0.2957994939197279,
    ),
    log1p_coefficients=(
        0.6666664033669923,
        0.40007560644911205,
        0.2823661980531048,
        0.2685149802283715,
    ),
)
FLOAT64 = Format(
    mantissa_bits=52,
    bias=1023,
    ln2_high=float.fromhex("0x1.62E42FEEp-1"),
    ln2_low=float.fromhex("0x1.a39ef35793c76p-33"),
    exp_coefficients=(
        0.5000000000000001,
        0.16666666666666669,
        0.041666666666624164,
        0.008333333333330065,
        0.0013888888917196719,
        0.00019841269863040545,
        2.4801521322368692e-05,
        2.7557268480310024e-06,
        2.7620075879983367e-07,
        2.5100375832561234e-08,
    ),
    log_coefficients=(
        0.666666666666667,
        0.39999999999899505,
        0.28571428625975487,
        0.2222221113479508,
        0.18182889125261723,
        0.15331721600556042,
        0.14616449685043406,
    ),
    log1p_coefficients=(
        0.6666666666666666,
        0.39999999999999525,
        0.285714285716001,
        0.2222222219823677,
        0.18181819897962714,
        0.1538454396486055,
        0.13335178631449257,
        0.11734279061303197,
        0.10845178394880015,
        0.07492143795550767,
        0.1563057780092285,
    ),
)

EIGHTHS = tuple(round(2.0 ** (k / 8 + 23)) - (1 << 23) - (k << 20) for k in range(8))
"""The mantissa's bits of 2**(k / 8) in float32, less those of k that `exp_scaled` leaves there."""

EIGHTHS_COEFFICIENTS = (1 / 2 + (math.sqrt(8) - 2) * (math.log(2) / 16) ** 2 / 24, 1 / 6)
"""c2, c3 of exp(r) = 1 + r + c2 r**2 + c3 r**3 for |r| <= ln(2) / 16 = h, where the rest is at most 2.7e-8.

They are Taylor's, but that c2 takes a**2 / 24 from the next term: of all r**2 (r**2 - a**2) / 24 that with
a**2 = (sqrt(8) - 2) h**2 is the smallest, as large between its zeros as at the ends."""


def _format_of(number: types.Type) -> Format:
    return FLOAT32 if element_type(number) == types.float32 else FLOAT64


@inlined_by_type
def exp(x):
    """Return e**x: at most 1.2 ulp, through the subnormals; inf and nan as IEEE 754."""
    f = _format_of(x)
    bits, magic = f.mantissa_bits, f.rounding_magic
    log2e, minus_ln2_high, minus_ln2_low = 1 / math.log(2), -f.ln2_high, -f.ln2_low
    coefficients = f.exp_coefficients
    # Beyond these e**x rounds to 0 and inf; within them the halves of the exponent below are in range.
    lowest, highest = (f.scale_exponent + f.bias) * -math.log(2), (f.bias + 2) * math.log(2)
    magic_bits, bias = _bits(f, magic), f.bias

    def implementation(x):
        x = select(x < constant(x, lowest), constant(x, lowest), x)
        x = select(x > constant(x, highest), constant(x, highest), x)
        rounded = multiply_add(x, log2e, magic)
        n = rounded - constant(x, magic)
        r = multiply_add(n, minus_ln2_low, multiply_add(n, minus_ln2_high, x))
        # 2**n in two factors, for it may be subnormal or overflow where e**x does not.
        exponent = subtract_bits(as_bits(rounded), magic_bits - 2 * bias)
        half = shift_right(exponent, 1)
        first = from_bits(shift_left(half, bits))
        second = from_bits(shift_left(subtract_bits(exponent, half), bits))
        p = multiply_add(r * r, polynomial(r, coefficients), r) + constant(x, 1)
        return p * first * second

    return implementation


@inlined_by_type
def _power_of(steps):
    """Return 2**(n / 8) by eighths, else 2**n, as a float from the integer `steps` in which `exp_scaled` left n."""
    if _by_eighths(steps):
        return lambda steps: from_bits(add_bits(shift_left(steps, 20), looked_up(EIGHTHS, steps)))
    bits = (FLOAT32 if element_type(steps) == types.int32 else FLOAT64).mantissa_bits
    return lambda steps: from_bits(shift_left(steps, bits))


def _by_eighths(number):
    """Return whether eighths of powers of two pay: in 32 bits, if the CPU looks them up in a register."""
    return element_type(number).bitwidth == 32 and looks_up()


@inlined_by_type
def exp_scaled(x):
    """Return e**x over `unscale(x)` for x <= 0: at most 1.2 ulp and by eighths |x| / 20 ulp; nan for nan.

    Where e**x is below half the smallest subnormal it is anything from 0 to the truth, 0 at -inf. It costs seven
    operations less than `exp`, by eighths ten. The caller multiplies by `unscale(x)` in the end: so e**x is right down
    to the last subnormal although nothing in between is subnormal.

    It is made for differences of logits, whose own rounding, unless they are exact, errs by |x| / 4 ulp and more: so by
    eighths it takes of ln(2) / 8 what float32 holds.
    """
    return _scaled_exponential(x, exact=False)


def _scaled_exponential(x, exact):
    """Return the implementation of `exp_scaled` for the type `x`; if `exact` the error does not grow with |x|.

    By eighths, x is taken apart into n ln(2) / 8 + r with a remainder an eighth as long, which takes three products
    less: 7 to 17 % of the time of a loss. (After P. T. P. Tang, "Table-driven implementation of the exponential
    function in IEEE floating-point arithmetic", ACM TOMS 15 (1989).)
    """
    f, steps = _format_of(x), 8 if _by_eighths(x) else 1
    in_parts = exact or steps == 1
    steps_per_unit, minus_low = steps / math.log(2), -f.ln2_low / steps
    minus_high = -(f.ln2_high if in_parts else math.log(2)) / steps
    lowest = -(f.bias + f.scale_exponent) * math.log(2)  # its exponent field is 0: so is the result
    magic = f.rounding_magic + steps * (f.bias + f.scale_exponent)  # leaves n in the place of the exponent field
    coefficients = EIGHTHS_COEFFICIENTS if steps == 8 else f.exp_coefficients

    def implementation(x):
        low, shift = in_register(x, lowest), in_register(x, magic)
        x = select(x < low, low, x)
        rounded = multiply_add(x, in_register(x, steps_per_unit), shift)
        n = rounded - shift
        r = multiply_add(n, in_register(x, minus_high), x)
        if in_parts:
            r = multiply_add(n, in_register(x, minus_low), r)
        p = multiply_add(r * r, polynomial(r, coefficients), r)
        power = _power_of(as_bits(rounded))
        return multiply_add(p, power, power)

    return implementation


@inlined_by_type
def unscale(x):
    """Return the factor that takes the results of `exp_scaled(x)` to those of `exp(x)`, in the type of `x`."""
    factor = 2.0 ** -_format_of(x).scale_exponent
    return lambda x: constant(x, factor)


@inlined_by_type
def total_above_one(rest, e):
    """Return rest + e - 1 of the sum of other exponentials and of one, both of `exp_scaled`, unscaled.

    `log1p_of_sum` of it is the logarithm of all: where e is 1, the largest exponential, nothing of `rest` is lost.
    """
    return lambda rest, e: (rest + (e - constant(e, 1) / unscale(e))) * unscale(e)


@inlined_by_type
def _log_of_normal(u, correction):
    """Return log(u) + correction for a normal finite u > 0 and a tiny correction.

    With u = 2**k m and sqrt(1/2) <= m < sqrt(2), log(m) is 2 atanh(s) for s = (m - 1) / (m + 1).
    """
    f = _format_of(u)
    bits, magic = f.mantissa_bits, f.rounding_magic
    lowest_m = _bits(f, math.sqrt(0.5))
    bias = f.bias + 1  # keeps k positive while it is an integer: no CPU before AVX-512 shifts 64 bits with their sign
    magic_bits = _bits(f, magic)
    below_exponent = (1 << bits) - 1
    ln2_high, ln2_low, coefficients = f.ln2_high, f.ln2_low, f.log_coefficients

    def implementation(u, correction):
        shifted = subtract_bits(as_bits(u), lowest_m - (bias << bits))
        m = from_bits(add_bits(and_bits(shifted, below_exponent), lowest_m))
        k = from_bits(add_bits(shift_right(shifted, bits), magic_bits)) - constant(u, magic + bias)
        fraction = m - constant(u, 1)
        s = fraction / (fraction + constant(u, 2))
        z = s * s
        half_square = constant(u, 0.5) * fraction * fraction
        tail = multiply_add(s, half_square + z * polynomial(z, coefficients), multiply_add(k, ln2_low, correction))
        return multiply_add(k, ln2_high, fraction - (half_square - tail))

    return implementation


@inlined_by_type
def _scaled_up(x):
    """Return (u, log(u / x)) for a normal u: x itself and 0, unless x is subnormal."""
    f = _format_of(x)
    smallest, up, shift_of_log = f.smallest_normal, 2.0**f.scale_exponent, f.scale_exponent * math.log(2)

    def implementation(x):
        subnormal, zero = x < constant(x, smallest), constant(x, 0)
        return select(subnormal, x * constant(x, up), x), select(subnormal, constant(x, shift_of_log), zero)

    return implementation


@inlined_by_type
def log(x):
    """Return the natural logarithm of x: at most 1.1 ulp; -inf at 0, nan below, inf at inf."""
    inf, nan = math.inf, math.nan

    def implementation(x):
        normal, shift = _scaled_up(x)
        result = _log_of_normal(normal, constant(x, 0)) - shift
        result = select(x < constant(x, inf), result, x)
        at_most_zero = select(x == constant(x, 0), constant(x, -inf), constant(x, nan))
        return select(x > constant(x, 0), result, at_most_zero)

    return implementation


@inlined_by_type
def log_of_ratio(a, b):
    """Return log(a / b) for 1/2 <= a <= 1, 0 < b <= a: at most 2.1 ulp; at b = 0 a number larger than for every such b.

    It is 2 atanh((a - m) / (a + m)) - k ln(2) for b = 2**k m, so that the ratio itself is not needed. By the bits of a
    and b, which are nearly logarithms to base 2, m is chosen within a factor of 3/2 of a.
    """
    f = _format_of(a)
    bits, magic, up = f.mantissa_bits, f.rounding_magic, 2.0**f.scale_exponent
    offset, half, whole = f.bias << bits, 1 << (bits - 1), -1 << bits  # the offset keeps the difference positive
    magic_bits, shift = _bits(f, magic), magic + f.bias + f.scale_exponent
    coefficients, ln2_high, ln2_low = f.log1p_coefficients, f.ln2_high, f.ln2_low

    def implementation(a, b):
        lifted = add_bits(as_bits(multiply_add(b, up, 0.0)), offset)  # b is normal now, or +0
        difference = subtract_bits(lifted, subtract_bits(as_bits(a), half))
        minus_k = constant(a, shift) - from_bits(add_bits(shift_right(difference, bits), magic_bits))
        m = from_bits(subtract_bits(lifted, and_bits(difference, whole)))
        s = (a - m) / (a + m)
        z = s * s
        log_of_m = multiply_add(s * z, polynomial(z, coefficients), multiply_add(minus_k, ln2_low, s + s))
        return multiply_add(minus_k, ln2_high, log_of_m)

    return implementation


@inlined_by_type
def log_of_normal(x):
    """Return log(x) for normal finite x > 0, nan for nan: at most 1.1 ulp, without what `log` does for other x."""
    return lambda x: _log_of_normal(x, x - x)


@inlined_by_type
def log1p_of_sum(x):
    """Return log(1 + x) for finite x >= 0, nan for nan: at most 1.5 ulp."""

    def implementation(x):
        one = constant(x, 1)
        u = one + x
        lost = select(x < one, x - (u - one), one - (u - x))  # what the rounding of u took, exactly
        return _log_of_normal(u, lost / u)

    return implementation


@inlined_by_type
def _exp_scaled_exactly(x):
    """Return what `exp_scaled` does, at most 1.2 ulp off."""
    return _scaled_exponential(x, exact=True)


@inlined_by_type
def decay(x):
    """Return e**-|x|, from which the sigmoid and the softplus follow on either side without overflow: 1.2 ulp."""
    return lambda x: _exp_scaled_exactly(-absolute(x)) * unscale(x)


@inlined_by_type
def log1p_of_fraction(x):
    """Return log(1 + x) for 0 <= x <= 1, nan for nan: at most 2 ulp, at half the cost of `log1p_of_sum`.

    It is 2 atanh(s) with s = x / (2 + x), which needs no reduction since s <= 1 / 3.
    """
    coefficients = _format_of(x).log1p_coefficients

    def implementation(x):
        s = x / (x + constant(x, 2))
        z = s * s
        return multiply_add(s * z, polynomial(z, coefficients), s + s)

    return implementation


@inlined_by_type
def compounded(growth, x):
    """Return (1 + growth) (1 + x) - 1 for both >= 0, nan for nan, without losing what is small against 1.

    So the sum of log(1 + x) over several x is one logarithm, log(1 + growth), while the product does not overflow:
    `log1p_of_sum` of what n of them make is within n + 1 ulp.
    """
    return lambda growth, x: multiply_add(growth, constant(x, 1) + x, x)


@inlined_by_type
def compounded_ratio(numerator, denominator, a, b, sum_of_both):
    """Return what `compounded` does as (numerator, denominator), x being a / b for a >= 0, 0 < b <= 1: no division.

    `sum_of_both` is a + b. The denominator, at first 1, is the product of all b.
    """
    return lambda numerator, denominator, a, b, sum_of_both: (
        multiply_add(numerator, sum_of_both, denominator * a),
        denominator * b,
    )


@inlined_by_type
def sigmoid(x):
    """Return 1 / (1 + e**-x): at most 2.6 ulp, without overflow or cancellation on either side."""

    def implementation(x):
        one = constant(x, 1)
        e = decay(x)
        return select(x < constant(x, 0), e, one) / (one + e)

    return implementation


@inlined_by_type
def softplus(x):
    """Return log(1 + e**x): at most 3 ulp, without overflow or cancellation on either side."""

    def implementation(x):
        zero = constant(x, 0)
        return select(x > zero, x, zero) + log1p_of_fraction(decay(x))

    return implementation


def _bits(f: Format, number: float) -> int:
    """Return the bits of `number` in the format `f`."""
    mantissa, exponent = math.frexp(number)
    fraction = round((2 * mantissa - 1) * 2.0**f.mantissa_bits)
    return ((exponent - 1 + f.bias) << f.mantissa_bits) + fraction
