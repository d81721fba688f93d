"""Rules of primitives that reduce axes, and of those that need an axis in order."""

from __future__ import annotations

import functools
import math

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.places import axis
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, Rule


def _reduction(neutral: float | None, equation: Equation) -> Rule:
    """Return the rule of a reduction; one without a neutral element needs its axes whole."""
    draft, k = Draft(equation), equation.params
    over = {a % len(draft.operand_shapes[0]) for a in k.get("axes", k.get("dimensions"))}
    factors = draft.factors(draft.operand_shapes[0])
    operands = [axes(factors) if shape else [] for shape in draft.operand_shapes]
    outcome = axes([f for a, f in enumerate(factors) if a not in over])
    return draft.rule(
        Kind.REDUCTION, operands, [outcome] * len(draft.outcome_shapes),
        whole=frozenset() if neutral is not None else frozenset(factors[a] for a in over),
        neutral=neutral, flops=Flops(1), absorbs=() if neutral is None else (0,),
    )  # fmt: skip


def _ordered(key: str, flops: Flops | None, *absorbs: int) -> MakeRule:
    """Return a maker of rules for equations that need one axis whole and in order.

    Args:
        key: the parameter that names the axis.
        flops: the cost of an entry of the outcome.
        *absorbs: operands whose zeros make the outcome zero, if there are no other operands.
    """

    def make(equation: Equation) -> Rule:
        draft, k = Draft(equation), equation.params
        shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
        at = k.get(key, -1) % len(shape)
        factors = draft.factors(shape)
        last = factors[at] if shape[at] == target[at] else draft.factor(target[at])
        outcome = [axis(last if a == at else f) for a, f in enumerate(factors)]
        return draft.rule(
            Kind.ORDERED, [axes(factors)] * len(draft.operand_shapes),
            [outcome] * len(draft.outcome_shapes), whole=frozenset({factors[at], last}),
            flops=flops, absorbs=absorbs if len(draft.operand_shapes) == 1 else (),
            resize=(lambda _, outs: {"k": outs[0][at]}) if "k" in k else None,
        )  # fmt: skip

    return make


REDUCTIONS: dict[str, MakeRule] = {
    "argmax argmin reduce": functools.partial(_reduction, None),
    "reduce_sum reduce_or reduce_xor": functools.partial(_reduction, 0.0),
    "reduce_prod reduce_and": functools.partial(_reduction, 1.0),
    "reduce_max": functools.partial(_reduction, -math.inf),
    "reduce_min": functools.partial(_reduction, math.inf),
    "cumsum cumprod cummax cummin": _ordered("axis", Flops(1), 0),
    "cumlogsumexp": _ordered("axis", Flops(0, 1)),
    "sort": _ordered("dimension", None, 0),
    "top_k": _ordered("axis", None),
    "approx_top_k": _ordered("reduction_dimension", None),
}
"""Rules of reductions with their neutral elements, and of primitives that need an axis in order."""
