"""Rules of primitives that slide a window over an array."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.places import Dim, Factor, Place, axis
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, Rule, Shape


def _windows(draft: Draft, shape: Shape, positions: Shape, k: Mapping[str, Any]) -> tuple:
    """Return the dimensions that windows cover, those of their positions, and whole factors.

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
        if size == stride == base == 1 and n == draft.sizes[f]:
            covered.append(axis(f))
            continue
        tap = draft.factor(size)
        windowed |= {f, tap}
        covered.append((Place(((f, stride), (tap, dilation)), -low, base),))
    return covered, axes(factors), frozenset(windowed)


def _reduce_window(neutral: float | None, equation: Equation) -> Rule:
    """Return the rule of a pooling; windows of size 1 cost nothing."""
    draft = Draft(equation)
    shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
    covered, positions, whole = _windows(draft, shape, target, equation.params)
    zeros = neutral is not None and _reach_entries(equation.params)
    flops = None if neutral is None else Flops(int(len(draft.sizes) > len(target)))
    operands = [covered if own == shape and shape else [] for own in draft.operand_shapes]
    return draft.rule(
        Kind.ORDERED, operands, [positions] * len(draft.outcome_shapes),
        whole=whole, neutral=neutral, flops=flops, absorbs=(0,) if zeros else (),
    )  # fmt: skip


def _reach_entries(k: Mapping[str, Any]) -> bool:
    """Return whether every window covers an entry; padding alone would not give zero."""
    axes = zip(
        k["window_dimensions"], k["window_dilation"], k["base_dilation"], k["padding"], strict=True
    )
    return all(
        base == 1 and max(padding) <= (size - 1) * dilation
        for size, dilation, base, padding in axes
    )


def _scattered_back(equation: Equation) -> Rule:
    """Return the rule of the gradient of a pooling, which adds to a chosen entry of each window.

    The choice depends on all entries of a window, so the taps of the outcome are own factors.
    """
    draft = Draft(equation)
    given, shape = draft.operand_shapes
    covered, positions, whole = _windows(draft, shape, given, equation.params)
    outcome = list(covered)
    for a, (place,) in enumerate(covered):
        if len(place.factors) > 1:
            position, (tap, stride) = place.factors
            other = draft.factor(draft.sizes[tap])
            outcome[a] = (place._replace(factors=(position, (other, stride))),)
            whole |= {other}
    return draft.rule(Kind.ORDERED, [positions, covered], [outcome], whole=whole)


def _gathered(equation: Equation) -> Rule:
    """Return the rule of a pooling's derivative, which takes the chosen entry of each window."""
    draft = Draft(equation)
    shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
    covered, positions, whole = _windows(draft, shape, target, equation.params)
    return draft.rule(Kind.ORDERED, [covered, covered], [positions], whole=whole)


WINDOWS: dict[str, MakeRule] = {
    "reduce_window": functools.partial(_reduce_window, None),
    "reduce_window_sum": functools.partial(_reduce_window, 0.0),
    "reduce_window_max": functools.partial(_reduce_window, -math.inf),
    "reduce_window_min": functools.partial(_reduce_window, math.inf),
    "select_and_scatter_add": _scattered_back,
    "select_and_gather_add": _gathered,
}
"""Rules of windows."""
