"""Elementwise steps: axes meet, and what is left of removed units is computed from what was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.coupling.labels import Labels
from nnopt_jax.trace.coupling.reading import NoRule, Reader, Rule, shape_of
from nnopt_jax.trace.coupling.value import Left, Remains, Value
from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.probed import erf_p

_NAMED = (
    "abs acos acosh add_jaxvals add and asin asinh atan2 atan atanh bessel_i0e bessel_i1e cbrt "
    "ceil clamp clz complex conj convert_element_type copy cos cosh digamma div eq eq_to erf_inv "
    "erfc exp2 exp expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma "
    "log1p log2 log logistic lt lt_to max min mul name ne neg nextafter not one_minus_square or "
    "polygamma population_count pow real reduce_precision rem round rsqrt select_n shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan "
    "tanh xor zeta"
).split()


def _power(equation: Equation, x: float) -> float:
    return x ** equation.params["y"]


def _converted(equation: Equation, x: float) -> float:
    dtype = equation.params["new_dtype"]
    if jnp.issubdtype(dtype, jnp.inexact):
        return x
    return float(bool(x)) if jnp.issubdtype(dtype, jnp.bool_) else float(int(x))


def _not(equation: Equation, x: float) -> float:
    if not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.bool_):
        raise ValueError
    return float(not x)


def _chosen(equation: Equation, which: float, *cases: float) -> float:
    return cases[int(which)]


def _whole(x: float) -> float:
    if x != int(x):
        raise ValueError
    return x


def _plain(function: Callable[..., Any]) -> Callable[..., float]:
    return lambda equation, *xs: float(function(*xs))


_P = primitives
NUMBERS: dict[Any, Callable[..., float]] = {
    erf_p: _plain(math.erf),
    **{
        primitive: _plain(function)
        for primitive, function in {
            _P.abs_p: abs, _P.add_p: lambda x, y: x + y, _P.add_jaxvals_p: lambda x, y: x + y,
            _P.and_p: lambda x, y: int(x) & int(y), _P.or_p: lambda x, y: int(x) | int(y),
            _P.asin_p: math.asin, _P.asinh_p: math.asinh, _P.atan_p: math.atan,
            _P.atanh_p: math.atanh, _P.cbrt_p: math.cbrt, _P.ceil_p: math.ceil,
            _P.clamp_p: lambda low, x, high: min(max(x, low), high), _P.conj_p: lambda x: x,
            _P.copy_p: lambda x: x, _P.cos_p: math.cos, _P.cosh_p: math.cosh,
            _P.div_p: lambda x, y: x / y, _P.eq_p: lambda x, y: x == y, _P.exp_p: math.exp,
            _P.expm1_p: math.expm1, _P.floor_p: math.floor, _P.ge_p: lambda x, y: x >= y,
            _P.gt_p: lambda x, y: x > y, _P.le_p: lambda x, y: x <= y, _P.log1p_p: math.log1p,
            _P.log_p: math.log, _P.logistic_p: lambda x: 1 / (1 + math.exp(-x)),
            _P.lt_p: lambda x, y: x < y, _P.max_p: max, _P.min_p: min,
            _P.mul_p: lambda x, y: x * y, _P.name_p: lambda x: x, _P.ne_p: lambda x, y: x != y,
            _P.neg_p: lambda x: -x, _P.pow_p: lambda x, y: x**y, _P.real_p: lambda x: x,
            _P.reduce_precision_p: lambda x: x, _P.round_p: _whole,
            _P.rsqrt_p: lambda x: 1 / math.sqrt(x), _P.sign_p: np.sign, _P.sin_p: math.sin,
            _P.sinh_p: math.sinh, _P.sqrt_p: math.sqrt, _P.square_p: lambda x: x * x,
            _P.stop_gradient_p: lambda x: x, _P.sub_p: lambda x, y: x - y, _P.tan_p: math.tan,
            _P.tanh_p: math.tanh, _P.xor_p: lambda x, y: int(x) ^ int(y),
        }.items()
    },
    _P.integer_pow_p: _power,
    _P.convert_element_type_p: _converted,
    _P.not_p: _not,
    _P.select_n_p: _chosen,
}  # fmt: skip
"""How numbers that stand for whole arrays go through a step."""


def remaining(equation: Equation, given: Sequence[Remains]) -> Remains:
    """What a step leaves of removed units, of what its operands left."""
    primitive = equation.primitive
    numbers = [x for x in given if not isinstance(x, Left)]
    if primitive in (_P.mul_p, _P.and_p) and 0.0 in numbers:
        return 0.0
    if primitive is _P.div_p and given[0] == 0.0 and given[1] != 0.0:
        return 0.0
    if primitive is _P.select_n_p and len({*given[1:]}) == 1 and len(numbers) >= len(given) - 1:
        return given[1]
    if len(numbers) == len(given):
        try:
            found = NUMBERS[primitive](equation, *numbers)
        except (KeyError, IndexError):
            return Left.ALIKE
        except (ArithmeticError, ValueError):
            return Left.BROKEN
        if not math.isfinite(found):
            return Left.BROKEN
        whole = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.inexact) or found == int(found)
        return found if whole else Left.ALIKE
    return Left.UNKNOWN if Left.UNKNOWN in given else Left.ALIKE


def met(reader: Reader, values: Sequence[Value], rank: int, axis: int) -> Labels:
    """The labels of one axis of arrays that meet there; those of one element are repeated."""
    axes = [value.axes[axis] for value in values if len(value.axes) == rank]
    size = max(map(len, axes))
    first, *others = [labels for labels in axes if len(labels) == size]
    for other in others:
        reader.book.join(first, other)
    return first


def _read(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    shape = shape_of(equation.outvars[0])
    axes, left = [], []
    for axis, size in enumerate(shape):
        axes.append(met(reader, ins, len(shape), axis))
        given = [
            (x.constant if x.constant is not None else Left.ALIKE)
            if len(x.axes) < len(shape) or len(x.axes[axis]) != size
            else x.remains(axis)
            for x in ins
        ]
        left.append(remaining(equation, given))
    constants, found = [x.constant for x in ins], None
    if None not in constants:
        whole = remaining(equation, constants)  # type: ignore[arg-type]
        found = None if isinstance(whole, Left) else whole
    elif Left.BROKEN in left:
        text = f"{equation.primitive.name} gives no finite number where units are removed"
        for labels, remains in zip(axes, left, strict=True):
            if remains is Left.BROKEN:
                reader.book.fix(labels, reader.reason(text))
    left = [Left.ALIKE if remains is Left.BROKEN else remains for remains in left]
    return [Value(tuple(axes), tuple(left), found) for _ in equation.outvars]


def _reinterpreted(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    (value,), shape = ins, shape_of(equation.outvars[0])
    if value.shape == shape:
        return [Value(value.axes, (Left.ALIKE,) * len(shape))]
    raise NoRule("bits of another width")


ELEMENTWISE: dict[Any, Rule] = {
    getattr(primitives, f"{name}_p"): Rule(_read)
    for name in _NAMED
    if hasattr(primitives, f"{name}_p")
} | {
    erf_p: Rule(_read),
    primitives.bitcast_convert_type_p: Rule(_reinterpreted),
}
"""Steps whose outcome at an element depends on the operands at that element."""
