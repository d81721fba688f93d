"""Rules of primitives that return their operands, and only affect placement or gradients."""

from __future__ import annotations

from typing import Any

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, Rule, Same


def identity_rule(equation: Equation) -> Rule:
    """Return the rule of an equation whose outcomes are its first operands, in order."""
    absorbs = (0,) if len(equation.outvars) == 1 else ()
    return paired_rule(equation, Kind.MOVEMENT, same=Same.IDENTITY, flops=Flops(), absorbs=absorbs)


def paired_rule(equation: Equation, kind: Kind, **facts: Any) -> Rule:
    """Return the rule of an equation whose outcomes each depend on the operand with their number.

    Args:
        equation: an entry of an outcome depends on the operand's entry at the same index.
        kind: the kind of the rule.
        **facts: further fields of `Rule`.
    """
    draft = Draft(equation)
    dims = [axes(draft.factors(shape)) for shape in draft.outcome_shapes]
    count = len(dims)
    rest = [draft.unread(i) for i in range(count, len(draft.operand_shapes))]
    sources = tuple((i,) for i in range(count)) if count > 1 or rest else None
    return draft.rule(kind, dims + rest, dims, sources=sources, **facts)


IDENTITIES: dict[str, MakeRule] = {
    "copy device_put name optimization_barrier pvary sharding_constraint stop_gradient": (
        identity_rule
    )
}
"""Rules of identities."""
