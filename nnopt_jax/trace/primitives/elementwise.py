"""Primitives whose outcome at an index depends on the operands at that index."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes, shape_of
from nnopt_jax.trace.primitives.places import ONE, axis
from nnopt_jax.trace.primitives.primitive_names import named
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, Rule, Same

_ZERO_TO_ZERO = named(
    "abs ceil conj floor imag neg population_count real round sign square "
    "asin asinh atan atanh bessel_i1e cbrt erf erf_inv expm1 log1p sin sinh sqrt tan tanh"
)
"""Functions of one operand that are zero where it is."""

_ONE_OPERATION = named(
    "abs add add_jaxvals and ceil clamp clz conj eq eq_to floor ge gt is_finite le le_to lt lt_to "
    "max min mul ne neg nextafter not or population_count rem round shift_left "
    "shift_right_arithmetic shift_right_logical sign square sub xor div select_n"
)
_TRANSCENDENTAL = named(
    "acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt cos cosh digamma erf "
    "erf_inv erfc exp exp2 expm1 igamma igamma_grad_a igammac lgamma log log1p log2 polygamma pow "
    "regularized_incomplete_beta rsqrt sin sinh sqrt tan tanh zeta"
)
"""Functions that XLA counts as one each, however a backend computes them."""


def elementwise_rule(equation: Equation, **facts: Any) -> Rule:
    """Return the rule of an equation that is computed entry by entry.

    Args:
        equation: operands have the shape of the outcome, one entry along some axes, or no axes.
        **facts: further fields of `Rule`.
    """
    draft = Draft(equation)
    shape = draft.outcome_shapes[0]
    factors = draft.factors(shape)
    operands = [
        [axis(f) if n == size else ONE for f, n, size in zip(factors, shape, own, strict=False)]
        for own in draft.operand_shapes
    ]
    outcomes = [axes(factors)] * len(draft.outcome_shapes)
    return draft.rule(Kind.ELEMENTWISE, operands, outcomes, **facts)


def _plain(equation: Equation) -> Rule:
    primitive = equation.primitive
    operations = int(primitive in _ONE_OPERATION)
    absorbs = _ABSORBING.get(primitive, (0,) if primitive in _ZERO_TO_ZERO else ())
    return elementwise_rule(
        equation,
        flops=_FLOPS.get(primitive, Flops(operations, int(primitive in _TRANSCENDENTAL))),
        absorbs=absorbs,
        chooses=(0,) if primitive in _SELECTING else (),
        same=Same.SCALED if _is_scaled(equation) else Same.NO,
    )


_ABSORBING = {
    **dict.fromkeys(named("mul and"), (0, 1)),
    **dict.fromkeys(named("div rem shift_left shift_right_arithmetic shift_right_logical"), (0,)),
}
_FLOPS = {
    **dict.fromkeys(named("logistic"), Flops(3, 1)),  # 1 / (1 + exp(-x))
    **dict.fromkeys(named("one_minus_square"), Flops(2, 0)),
}
_SELECTING = named("select_n")
_NEGATING, _SCALING, _DIVIDING = named("neg"), named("mul div"), named("div")


def _is_scaled(equation: Equation) -> bool:
    """Return whether one operand is multiplied by a single number."""
    if equation.primitive in _NEGATING:
        return True
    if equation.primitive not in _SCALING:
        return False
    first, second = (len(shape_of(x)) for x in equation.invars)
    return (second == 0 < first) or (first == 0 < second and equation.primitive not in _DIVIDING)


def _cast(equation: Equation) -> Rule:
    """A cast to the dtype that an array has costs nothing: it changes how weak the type is."""
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    integers = jnp.issubdtype(before, jnp.integer) and jnp.issubdtype(after, jnp.integer)
    rounds = jnp.issubdtype(after, jnp.inexact) or integers
    same = Same.IDENTITY if before == after else Same.CAST if rounds else Same.NO
    return elementwise_rule(equation, flops=Flops(int(before != after)), same=same, absorbs=(0,))


def _reduced_precision(equation: Equation) -> Rule:
    return elementwise_rule(equation, flops=Flops(1), same=Same.CAST, absorbs=(0,))


def _integer_power(equation: Equation) -> Rule:
    """Powers are computed by squaring; a negative one needs a division more."""
    power = equation.params["y"]
    times = abs(power)
    operations = max(times.bit_length() + times.bit_count() - 2, 0) + (power < 0)
    return elementwise_rule(equation, flops=Flops(operations), absorbs=(0,) if power > 0 else ())


def _reinterpreted(equation: Equation) -> Rule:
    """Bits of another width: the last axis of the narrower array is needed whole."""
    draft = Draft(equation)
    before, after = draft.operand_shapes[0], draft.outcome_shapes[0]
    factors = draft.factors(max(before, after, key=len))
    whole = factors[min(len(before), len(after)) :]
    return draft.rule(
        Kind.ELEMENTWISE,
        [axes(factors[: len(before)])],
        [axes(factors[: len(after)])],
        whole=frozenset(whole),
        absorbs=(0,),
        flops=Flops(),
    )


ELEMENTWISE = {
    **dict.fromkeys(
        (
            *_ONE_OPERATION, *_TRANSCENDENTAL, *_FLOPS,
            *named("real imag complex"),
        ),
        _plain,
    ),
    **dict.fromkeys(named("convert_element_type"), _cast),
    **dict.fromkeys(named("reduce_precision"), _reduced_precision),
    **dict.fromkeys(named("integer_pow"), _integer_power),
    **dict.fromkeys(named("bitcast_convert_type"), _reinterpreted),
}  # fmt: skip
"""Rules of elementwise primitives."""
