"""Rules of reductions, window reductions, and collectives inside `shard_map`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.elementwise import paired_rule
from nnopt_jax.trace.primitives.places import Dim, Factor, Place, axis
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, OpRule, Shape


def _reduction(neutral: float | None, equation: Equation) -> OpRule:
    """Return the rule of a reduction; without a neutral element it needs its axes in full."""
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


def _ordered_rule(key: str, flops: Flops | None, *absorbs: int) -> MakeRule:
    """Return a function that makes rules of primitives that need one axis whole and in order.

    Args:
        key: the parameter that names the axis.
        flops: the cost of an entry of the outcome.
        *absorbs: operands whose zeros make the outcome zero, if there are no other operands.
    """

    def make(equation: Equation) -> OpRule:
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
    "cumsum cumprod cummax cummin": _ordered_rule("axis", Flops(1), 0),
    "cumlogsumexp": _ordered_rule("axis", Flops(0, 1)),
    "sort": _ordered_rule("dimension", None, 0),
    "top_k": _ordered_rule("axis", None),
    "approx_top_k": _ordered_rule("reduction_dimension", None),
}
"""Rules of reductions with their neutral elements, and of primitives that need an axis in order."""


def _windows(draft: Draft, shape: Shape, positions: Shape, k: Mapping[str, Any]) -> tuple:
    """Return the dimensions of the windowed array and of window positions, and whole factors.

    Args:
        draft: the draft that factors are added to.
        shape: the shape of the array that windows cover.
        positions: the number of windows on each axis.
        k: the settings of the windows.
    """
    ones = (1,) * len(shape)
    factors = draft.factors(positions)
    covered: list[Dim] = []
    windowed = set[Factor]()
    for f, n, size, stride, (low, _), base, dilation in zip(
        factors, shape, k["window_dimensions"], k["window_strides"], k["padding"],
        k.get("base_dilation", ones), k.get("window_dilation", ones), strict=True,
    ):  # fmt: skip
        # A window of one entry at every position does not move along the axis.
        if size == stride == base == 1 and n == draft.sizes[f]:
            covered.append(axis(f))
            continue
        tap = draft.factor(size)
        windowed |= {f, tap}
        covered.append((Place(((f, stride), (tap, dilation)), -low, base),))
    return covered, axes(factors), frozenset(windowed)


def _reduce_window(neutral: float | None, equation: Equation) -> OpRule:
    """Return the rule of a pooling; windows of size 1 cost nothing."""
    draft = Draft(equation)
    shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
    covered, positions, whole = _windows(draft, shape, target, equation.params)
    zeros = neutral is not None and _cover_entries(equation.params)
    flops = None if neutral is None else Flops(int(len(draft.sizes) > len(target)))
    operands = [covered if own == shape and shape else [] for own in draft.operand_shapes]
    return draft.rule(
        Kind.ORDERED, operands, [positions] * len(draft.outcome_shapes),
        whole=whole, neutral=neutral, flops=flops, absorbs=(0,) if zeros else (),
    )  # fmt: skip


def _cover_entries(k: Mapping[str, Any]) -> bool:
    """Return whether every window covers at least one entry, since padding may not be zero."""
    axes = zip(
        k["window_dimensions"], k["window_dilation"], k["base_dilation"], k["padding"], strict=True
    )
    return all(
        base == 1 and max(padding) <= (size - 1) * dilation
        for size, dilation, base, padding in axes
    )


def _select_and_scatter_add(equation: Equation) -> OpRule:
    """Return the rule of the gradient of max pooling, which adds to one entry of each window.

    The choice depends on all entries of a window, so the taps of the outcome have factors of their
    own.
    """
    draft = Draft(equation)
    given, shape = draft.operand_shapes
    covered, positions, whole = _windows(draft, shape, given, equation.params)
    outcome = list(covered)
    for a, (place,) in enumerate(covered):
        if len(place.factors) > 1:
            position, (tap, stride) = place.factors
            # Taps of the outcome get another factor, since which one is chosen depends on all.
            other = draft.factor(draft.sizes[tap])
            outcome[a] = (place._replace(factors=(position, (other, stride))),)
            whole |= {other}
    return draft.rule(Kind.ORDERED, [positions, covered], [outcome], whole=whole)


def _select_and_gather_add(equation: Equation) -> OpRule:
    """Return the rule of the derivative of max pooling, which takes one entry of each window."""
    draft = Draft(equation)
    shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
    covered, positions, whole = _windows(draft, shape, target, equation.params)
    return draft.rule(Kind.ORDERED, [covered, covered], [positions], whole=whole)


WINDOWS: dict[str, MakeRule] = {
    "reduce_window": functools.partial(_reduce_window, None),
    "reduce_window_sum": functools.partial(_reduce_window, 0.0),
    "reduce_window_max": functools.partial(_reduce_window, -math.inf),
    "reduce_window_min": functools.partial(_reduce_window, math.inf),
    "select_and_scatter_add": _select_and_scatter_add,
    "select_and_gather_add": _select_and_gather_add,
}
"""Rules of window reductions, such as pooling, and of their derivatives."""


def _mesh_axes(equation: Equation) -> tuple[str, ...]:
    k = equation.params
    names = k.get("axes", k.get("axis_name", ()))
    return tuple(names) if isinstance(names, tuple | list | frozenset) else (names,)


def _all_reduce(equation: Equation) -> OpRule:
    """Return the rule of a collective that combines the entries of all devices at each index."""
    absorbs = tuple(range(len(equation.outvars)))
    return paired_rule(equation, Kind.REDUCTION, mesh=_mesh_axes(equation), absorbs=absorbs)


def _mesh_movement(equation: Equation) -> OpRule:
    """Return the rule of a collective that moves entries between devices on the named axes."""
    draft, k = Draft(equation), equation.params
    shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
    changed = {
        k[key]
        for key in ("all_gather_dimension", "scatter_dimension", "split_axis", "concat_axis")
        if key in k
    }
    factors = draft.factors(shape)
    kept = factors if len(shape) == len(target) else [None] * len(target)
    after = [
        draft.factor(n) if f is None or a in changed else f
        for a, (f, n) in enumerate(zip(kept, target, strict=True))
    ]
    # An axis that changes is needed whole, since each device sends another piece of it.
    whole = {*factors} ^ {*after}
    return draft.rule(
        Kind.MOVEMENT, [axes(factors)], [axes(after)], whole=frozenset(whole),
        mesh=_mesh_axes(equation),
    )  # fmt: skip


MESH_EXCHANGES: dict[str, MakeRule] = {
    "psum psum_invariant pmax pmin": _all_reduce,
    "all_gather all_gather_invariant all_to_all ppermute reduce_scatter pbroadcast": _mesh_movement,
}
"""Rules of collectives; `OpRule.mesh` names the axes of the mesh."""
