"""Primitives that make arrays from positions, shapes and random keys."""

from __future__ import annotations

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes, opaque_rule
from nnopt_jax.trace.primitives.primitive_names import named
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, Rule


def _filled(equation: Equation) -> Rule:
    has_shape = "shape" in equation.params
    resize = (lambda _, outcomes: {"shape": tuple(outcomes[0])}) if has_shape else None
    return opaque_rule(equation, kind=Kind.MADE, flops=Flops(), resize=resize)


def _for_each_key(equation: Equation) -> Rule:
    """The outcome has the axes of the keys, then axes of its own."""
    draft = Draft(equation)
    count = len(draft.operand_shapes[0])
    factors = draft.factors(draft.outcome_shapes[0])
    return draft.rule(
        Kind.MADE, [axes(factors[:count])], [axes(factors)], whole=frozenset(factors[count:]),
        resize=(lambda _, outcomes: {"shape": tuple(outcomes[0][count:])})
        if "shape" in equation.params else None,
    )  # fmt: skip


def _keys_from_words(equation: Equation) -> Rule:
    """Each key is made from the words along the last axes."""
    draft = Draft(equation)
    factors = draft.factors(draft.operand_shapes[0])
    count = len(draft.outcome_shapes[0])
    return draft.rule(
        Kind.MADE, [axes(factors)], [axes(factors[:count])], whole=frozenset(factors[count:])
    )


def _entrywise(equation: Equation) -> Rule:
    """Keys and numbers of one shape, or a single key for all numbers."""
    shapes = [len(v.aval.shape) for v in (*equation.invars, *equation.outvars)]
    return opaque_rule(equation, min(shapes), kind=Kind.MADE)


def _drawn(equation: Equation) -> Rule:
    """Draws of a generator that has no keys."""
    return opaque_rule(
        equation, kind=Kind.MADE, resize=lambda _, outcomes: {"shape": tuple(outcomes[-1])}
    )


GENERATORS = {
    **dict.fromkeys(named("iota empty empty2"), _filled),
    **dict.fromkeys(named("random_bits random_split random_unwrap"), _for_each_key),
    **dict.fromkeys(named("random_wrap"), _keys_from_words),
    **dict.fromkeys(
        named("random_fold_in random_gamma random_seed threefry2x32"), _entrywise
    ),
    **dict.fromkeys(named("rng_bit_generator rng_uniform"), _drawn),
    **dict.fromkeys(
        named("axis_index platform_index create_token after_all"),
        lambda equation: opaque_rule(equation, kind=Kind.MADE),
    ),
}  # fmt: skip
"""Rules of primitives that make arrays."""
