"""Rules of primitives whose outcome at an index depends on the operands at that index."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes, shape_of
from nnopt_jax.trace.primitives.places import ONE, axis
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, OpRule, Same


def identity_rule(equation: Equation) -> OpRule:
    """Return the rule of an equation whose outcomes equal its first operands, in order."""
    absorbs = (0,) if len(equation.outvars) == 1 else ()
    return paired_rule(equation, Kind.MOVEMENT, same=Same.IDENTITY, flops=Flops(), absorbs=absorbs)


def paired_rule(equation: Equation, kind: Kind, **facts: Any) -> OpRule:
    """Return the rule of an equation whose outcome `i` depends on operand `i` alone.

    Args:
        equation: the equation, in which an entry of an outcome depends on the operand's entry at
            the same index.
        kind: the kind of the rule.
        **facts: further fields of `OpRule`.
    """
    draft = Draft(equation)
    dims = [axes(draft.factors(shape)) for shape in draft.outcome_shapes]
    count = len(dims)
    rest = [draft.unshared(i) for i in range(count, len(draft.operand_shapes))]
    # None stands for all operands, which a single operand is.
    sources = tuple((i,) for i in range(count)) if count > 1 or rest else None
    return draft.rule(kind, dims + rest, dims, sources=sources, **facts)


IDENTITIES: dict[str, MakeRule] = {
    "copy device_put name optimization_barrier pvary sharding_constraint stop_gradient": (
        identity_rule
    )
}
"""The rules of identities, by names of primitives."""


_OPERATION, _FUNCTION = Flops(1), Flops(0, 1)
"""The cost of one entry as XLA counts it; a transcendental counts as one on any backend."""


def elementwise_rule(equation: Equation, **facts: Any) -> OpRule:
    """Return the rule of an equation that is computed entry by entry.

    Args:
        equation: the equation, whose operands have the shape of the outcome, size 1 on some axes,
            or no axes.
        **facts: further fields of `OpRule`.
    """
    draft = Draft(equation)
    shape = draft.outcome_shapes[0]
    factors = draft.factors(shape)
    # Scalars and axes of size 1 broadcast.
    operands = [
        [axis(f) if n == size else ONE for f, n, size in zip(factors, shape, own, strict=False)]
        for own in draft.operand_shapes
    ]
    outcomes = [axes(factors)] * len(draft.outcome_shapes)
    return draft.rule(Kind.ELEMENTWISE, operands, outcomes, **facts)


def _elementwise(flops: Flops, *absorbs: int, **facts: Any) -> MakeRule:
    """Return a function that makes elementwise rules with the given cost and facts.

    Args:
        flops: the cost of an entry of the outcome.
        *absorbs: operands whose zeros make the outcome zero.
        **facts: further fields of `OpRule`.
    """
    return functools.partial(elementwise_rule, flops=flops, absorbs=absorbs, **facts)


def _product(*absorbs: int) -> MakeRule:
    """Return a function that makes rules of products and quotients, which may scale by a scalar."""

    def make(equation: Equation) -> OpRule:
        ranks = [len(shape_of(x)) for x in equation.invars]
        # A factor of rank 0 multiplies all entries alike, while an array may differ by entry.
        is_scaled = any(ranks[i] > ranks[1 - i] == 0 for i in absorbs)
        same = Same.SCALED if is_scaled else Same.NO
        return _elementwise(_OPERATION, *absorbs, same=same)(equation)

    return make


def _cast(equation: Equation) -> OpRule:
    """Return the rule of a cast; a cast to the same dtype only changes a weak type, at no cost."""
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    integers = jnp.issubdtype(before, jnp.integer) and jnp.issubdtype(after, jnp.integer)
    # From float to integer is not a rounding of entries that analyses may follow.
    rounds = jnp.issubdtype(after, jnp.inexact) or integers
    same = Same.IDENTITY if before == after else Same.CAST if rounds else Same.NO
    return elementwise_rule(equation, flops=Flops(int(before != after)), same=same, absorbs=(0,))


def _integer_power(equation: Equation) -> OpRule:
    """Return the rule of an integer power: repeated squaring, plus a division if negative."""
    power = equation.params["y"]
    times = abs(power)
    # One squaring for each bit after the first, and one product for each further set bit.
    operations = max(times.bit_length() + times.bit_count() - 2, 0) + (power < 0)
    return elementwise_rule(equation, flops=Flops(operations), absorbs=(0,) if power > 0 else ())


def _bitcast(equation: Equation) -> OpRule:
    """Return the rule of a bitcast; if the width changes, it needs the last axis in full."""
    draft = Draft(equation)
    before, after = draft.operand_shapes[0], draft.outcome_shapes[0]
    factors = draft.factors(max(before, after, key=len))
    # The longer shape has one more axis, of the words that one wider word consists of.
    whole = factors[min(len(before), len(after)) :]
    return draft.rule(
        Kind.ELEMENTWISE,
        [axes(factors[: len(before)])],
        [axes(factors[: len(after)])],
        whole=frozenset(whole),
        absorbs=(0,),
        flops=Flops(),
    )


ELEMENTWISE: dict[str, MakeRule] = {
    "complex": _elementwise(Flops()),
    "real imag": _elementwise(Flops(), 0),
    "abs ceil conj floor population_count round sign square": _elementwise(_OPERATION, 0),
    "rem shift_left shift_right_arithmetic shift_right_logical": _elementwise(_OPERATION, 0),
    "neg": _elementwise(_OPERATION, 0, same=Same.SCALED),
    "mul": _product(0, 1),
    "div": _product(0),
    "and": _elementwise(_OPERATION, 0, 1),
    "add add_jaxvals clamp clz eq eq_to ge gt is_finite le le_to lt lt_to max min ne nextafter not "
    "or sub xor": _elementwise(_OPERATION),
    "select_n": _elementwise(_OPERATION, chooses=(0,)),
    "asin asinh atan atanh bessel_i1e cbrt erf erf_inv expm1 log1p sin sinh sqrt tan tanh": (
        _elementwise(_FUNCTION, 0)
    ),
    "acos acosh atan2 bessel_i0e cos cosh digamma erfc exp exp2 igamma igamma_grad_a igammac "
    "lgamma log log2 polygamma pow regularized_incomplete_beta rsqrt zeta": _elementwise(_FUNCTION),
    "logistic": _elementwise(Flops(3, 1)),  # 1 / (1 + exp(-x))
    "one_minus_square": _elementwise(Flops(2)),
    "convert_element_type": _cast,
    "reduce_precision": _elementwise(_OPERATION, 0, same=Same.CAST),
    "integer_pow": _integer_power,
    "bitcast_convert_type": _bitcast,
}
"""The rules of elementwise primitives, by names."""
