"""Primitives that return their operands: they say where arrays lie or how gradients flow."""

from __future__ import annotations

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.primitive_names import named
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, Rule, Same


def identity_rule(equation: Equation) -> Rule:
    """Return the rule of an equation whose outcomes are its first operands, in their order."""
    draft = Draft(equation)
    dims = [axes(draft.factors(shape)) for shape in draft.outcome_shapes]
    count = len(dims)
    rest = [draft.unread(i) for i in range(count, len(draft.operand_shapes))]
    return draft.rule(
        Kind.MOVEMENT,
        dims + rest,
        dims,
        same=Same.IDENTITY,
        flops=Flops(),
        absorbs=(0,) if count == 1 else (),
        sources=tuple((i,) for i in range(count)) if count > 1 or rest else None,
    )


IDENTITIES = dict.fromkeys(
    named("copy device_put name optimization_barrier pvary sharding_constraint stop_gradient"),
    identity_rule,
)
"""Rules of identities."""
