"""Primitives that combine the entries along axes, and those that need an axis in its order."""

from __future__ import annotations

import math
from collections.abc import Callable

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.places import axis
from nnopt_jax.trace.primitives.primitive_names import named
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, Rule

NEUTRAL = {
    **dict.fromkeys(named("reduce_sum reduce_or reduce_xor reduce_window_sum"), 0.0),
    **dict.fromkeys(named("reduce_prod reduce_and"), 1.0),
    **dict.fromkeys(named("reduce_max reduce_window_max"), -math.inf),
    **dict.fromkeys(named("reduce_min reduce_window_min"), math.inf),
}
"""What each reduction may leave out."""


def _reduction(equation: Equation) -> Rule:
    """Positions of the largest entry need the axis whole; so does a reduction by a function."""
    draft, k = Draft(equation), equation.params
    over = {a % len(draft.operand_shapes[0]) for a in k.get("axes", k.get("dimensions"))}
    factors = draft.factors(draft.operand_shapes[0])
    operands = [axes(factors) if shape else [] for shape in draft.operand_shapes]
    outcome = axes([f for a, f in enumerate(factors) if a not in over])
    neutral = NEUTRAL.get(equation.primitive)
    return draft.rule(
        Kind.REDUCTION, operands, [outcome] * len(draft.outcome_shapes),
        whole=frozenset() if neutral is not None else frozenset(factors[a] for a in over),
        neutral=neutral, flops=Flops(1), absorbs=() if neutral is None else (0,),
    )  # fmt: skip


def _ordered(key: str, flops: Flops | None) -> Callable[[Equation], Rule]:
    """Return a maker of rules for equations that work along one axis.

    Args:
        key: the parameter that names the axis.
        flops: what an entry of the outcome costs.
    """

    def make(equation: Equation) -> Rule:
        draft, k = Draft(equation), equation.params
        shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
        at = k.get(key, -1) % len(shape)
        factors = draft.factors(shape)
        last = factors[at] if shape[at] == target[at] else draft.factor(target[at])
        outcome = [axis(last if a == at else f) for a, f in enumerate(factors)]
        zeros = equation.primitive in _ZERO_TO_ZERO
        return draft.rule(
            Kind.ORDERED, [axes(factors)] * len(draft.operand_shapes),
            [outcome] * len(draft.outcome_shapes), whole=frozenset({factors[at], last}),
            flops=flops, absorbs=(0,) if zeros and len(draft.operand_shapes) == 1 else (),
            resize=(lambda _, outs: {"k": outs[0][at]}) if "k" in k else None,
        )  # fmt: skip

    return make


_ZERO_TO_ZERO = named("cumsum cumprod cummax cummin sort")
"""Primitives along an axis whose outcomes are zero where their one operand is."""


REDUCTIONS = {
    **dict.fromkeys(
        named(
            "argmax argmin reduce reduce_and reduce_max reduce_min reduce_or reduce_prod "
            "reduce_sum reduce_xor"
        ),
        _reduction,
    ),
    **dict.fromkeys(named("cumsum cumprod cummax cummin"), _ordered("axis", Flops(1))),
    **dict.fromkeys(named("cumlogsumexp"), _ordered("axis", Flops(0, 1))),
    **dict.fromkeys(named("sort"), _ordered("dimension", None)),
    **dict.fromkeys(named("top_k"), _ordered("axis", None)),
    **dict.fromkeys(named("approx_top_k"), _ordered("reduction_dimension", None)),
}
"""Rules of reductions and of primitives that need an axis in its order."""
