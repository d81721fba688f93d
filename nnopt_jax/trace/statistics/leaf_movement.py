"""The positions of a leaf's entries after a step that moves them, from the step's rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp

from nnopt_jax.trace.jaxpr import Equation, is_variable
from nnopt_jax.trace.primitives import Kind, OpRule, Place, RuntimeStart, Same
from nnopt_jax.trace.statistics.leaf_part import REPEATED, LeafFactor, LeafPart, PartAxis

Starts = list[int | None]
"""The start index of a leaf's part on each axis of the leaf; functions here change it in place."""


class CutAcrossError(Exception):
    """An error with the reason why the entries of a leaf cannot be followed through a step."""


def is_moved(equation: Equation, rule: OpRule, operand: int) -> bool:
    """Return whether a step moves the entries of an operand, at most rounded or scaled.

    Args:
        equation: the step.
        rule: its rule.
        operand: the number of the operand.
    """
    if operand not in rule.data or operand == rule.fills or rule.mesh or rule.same is Same.NO:
        return False
    if rule.kind is Kind.MOVEMENT:
        return True
    # The outcome of a product with a scalar holds the array, not the scalar.
    is_number = equation.invars[operand].aval.ndim == 0 and len(equation.invars) > 1
    is_float = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
    return rule.kind is Kind.ELEMENTWISE and is_float and not is_number


def move_parts(
    equation: Equation, rule: OpRule, operand: int, parts: Sequence[LeafPart]
) -> list[list[LeafPart]]:
    """Return the parts of leaves that each outcome holds, from those that an operand holds.

    Args:
        equation: a step that `is_moved` the operand.
        rule: its rule.
        operand: the number of the operand.
        parts: the parts that the operand holds.

    Raises:
        CutAcrossError: positions are not known, or entries are not equally spaced.
    """
    found: list[list[LeafPart]] = []
    for outcome in range(len(rule.outcomes)):
        pair = rule.pair(operand, outcome)
        if pair is None or rule.is_identity:
            found.append([] if pair is None else list(parts))
            continue
        _check_flat(equation, rule, parts)
        before = [
            _resolve(equation, place, size, rule.sizes)
            for place, size in zip(pair[0], rule.operand_shapes[operand], strict=True)
        ]
        each = [_move_part(equation, rule, before, pair[1], part) for part in parts]
        found.append([part for part in each if part is not None])
    return found


def _move_part(
    equation: Equation, rule: OpRule, before: Sequence[Place], after: Sequence[Place],
    part: LeafPart,
) -> LeafPart | None:  # fmt: skip
    """Return the part of a leaf that one outcome holds; None without any entry of the leaf."""
    starts, taken = list(part.starts), dict.fromkeys(part.taken)
    inside: dict[int, PartAxis] = {}
    for place, axis in zip(before, part.axes, strict=True):
        found = _by_factor(equation, place, axis, rule.sizes, starts)
        if found is None:
            return None
        inside |= dict(zip(place.names, found, strict=False))
        # A dimension without factors is a single entry of the leaf, such as a layer by index.
        if not place.factors:
            taken |= {f.axis: None for f in axis.factors if f.axis != REPEATED}
    axes = [_outcome_axis(equation, place, inside, rule.sizes, starts) for place in after]
    return part._replace(axes=tuple(axes), starts=tuple(starts), taken=tuple(taken))


def _check_flat(equation: Equation, rule: OpRule, parts: Sequence[LeafPart]) -> None:
    """Raise if a reshape splits axes unevenly, unless the leaf is only repeated along them."""
    for part in parts:
        for axis in (axis for flat in rule.flat for axis in flat.operand):
            positions, size = part.axes[axis], rule.operand_shapes[0][axis]
            if not (positions.is_constant and positions.count == size):
                raise CutAcrossError(f"{equation.primitive.name} cuts across its axes")


def _resolve(equation: Equation, place: Place, size: int, sizes: Sequence[int]) -> Place:
    """Return a place whose start is a number if it is constant, clamped as in XLA."""
    if not isinstance(place.start, RuntimeStart):
        return place
    start = equation.invars[place.start.operand]
    if is_variable(start):
        return place
    # A window that would leave the array is moved back inside.
    last = size - place.count(list(sizes))
    return place._replace(start=max(0, min(int(start.val), last)))


def _by_factor(
    equation: Equation, place: Place, axis: PartAxis, sizes: Sequence[int], starts: Starts
) -> list[PartAxis] | None:
    """Return the positions of a leaf along each factor of an operand's axis; None if empty."""
    counts = [sizes[factor] for factor in place.names]
    try:
        if isinstance(place.start, RuntimeStart):
            return [_window_axis(axis, math.prod(counts), starts)]
        if len(counts) > 1:
            return split_axis(axis, [stride for _, stride in place.factors])
        stride, count = (place.factors[0][1], counts[0]) if counts else (1, 1)
        found = _intersect(axis, place.start, stride, count, starts)
    except CutAcrossError as error:
        raise CutAcrossError(f"{equation.primitive.name} {error}") from None
    return None if found is None else [found]


def _window_axis(axis: PartAxis, count: int, starts: Starts) -> PartAxis:
    """Return a leaf's positions in a window whose start is known only at run time."""
    loose = [factor for factor in axis.factors if factor.size > 1]
    if axis.start or not loose or (len(loose) > 1 and count > 1) or loose[0].step != 1:
        raise CutAcrossError("takes a part whose position is known only at run time")
    # The start is not known before the program runs.
    for factor in loose:
        if factor.axis != REPEATED:
            starts[factor.axis] = None
    shape = (count,) if len(loose) == 1 else (1,) * len(loose)
    return PartAxis(0, tuple(f._replace(size=n) for f, n in zip(loose, shape, strict=True)))


def _intersect(
    axis: PartAxis, first: int, stride: int, count: int, starts: Starts
) -> PartAxis | None:
    """Return a leaf's positions among `first + stride * j`, `j < count`; None without any."""
    loose = [at for at, factor in enumerate(axis.factors) if factor.size > 1]
    if not loose:
        start, rest = divmod(axis.start - first, stride)
        return PartAxis(start, axis.factors) if not rest and 0 <= start < count else None
    # The factor of greatest step is cut; the others must lie between two of its steps.
    at = max(loose, key=lambda at: axis.factors[at].step)
    if len(loose) == 1:
        return _cut_one(axis, at, first, stride, count, starts)
    if stride != 1:
        raise CutAcrossError("takes entries across its axes")
    factor = axis.factors[at]
    span = sum(f.step * (f.size - 1) for f in axis.factors if f is not factor)
    low = max(0, -((axis.start + span - first) // factor.step))
    high = min(factor.size - 1, (first + count - 1 - axis.start) // factor.step)
    if low > high:
        return None
    _shift(starts, factor, low)
    least = axis.start + factor.step * low
    kept = _replace_factor(axis, at, factor._replace(size=high - low + 1))
    if least >= first and axis.start + factor.step * high + span < first + count:
        return kept._replace(start=least - first)
    if low != high:
        raise CutAcrossError("takes entries across its axes")
    return _intersect(kept._replace(start=least), first, stride, count, starts)


def _cut_one(
    axis: PartAxis, at: int, first: int, stride: int, count: int, starts: Starts
) -> PartAxis | None:
    """Intersect one factor with a strided slice, by the least common multiple of the strides."""
    factor = axis.factors[at]
    apart = first - axis.start
    common = math.gcd(factor.step, stride)
    if apart % common:
        return None
    # Solve start + step * i = first + stride * j; solutions i are `period` apart.
    period = stride // common
    least = max(0, -(-apart // factor.step))
    residue = apart // common * pow(factor.step // common, -1, period) % period
    low = least + (residue - least) % period
    high = min(factor.size - 1, (apart + stride * (count - 1)) // factor.step)
    if low > high:
        return None
    _shift(starts, factor, low)
    size = (high - low) // period + 1
    step = factor.step // common if size > 1 else 1
    kept = _replace_factor(axis, at, LeafFactor(factor.axis, factor.stride * period, size, step))
    return kept._replace(start=(factor.step * low - apart) // stride)


def split_axis(axis: PartAxis, strides: Sequence[int]) -> list[PartAxis]:
    """Return the positions of a leaf on each of several axes that one axis is reshaped to.

    Args:
        axis: its positions on the axis before the split.
        strides: the strides of the new axes, from major to minor.

    Raises:
        CutAcrossError: the new axes cut across the factors of the part.
    """
    stride, *rest = strides
    if not rest:
        return [axis]
    start, inner_start = divmod(axis.start, stride)
    major, minor = [], []
    for factor in axis.factors:
        inner, left = divmod(stride, factor.step)
        # A factor runs over the major axis, over the minor axes, or is split between them.
        if factor.size > 1 and factor.step % stride == 0:
            major.append(factor._replace(step=factor.step // stride))
        elif factor.step * (factor.size - 1) < stride:
            minor.append(factor)
        elif left == 0 and factor.size % inner == 0:
            minor.append(factor._replace(size=inner))
            outer = factor.stride * inner, factor.size // inner
            major.append(LeafFactor(factor.axis, *outer, 1))
        else:
            raise CutAcrossError("cuts across its axes")
    if inner_start + sum(f.step * (f.size - 1) for f in minor) >= stride:
        raise CutAcrossError("cuts across its axes")
    return [PartAxis(start, tuple(major)), *split_axis(PartAxis(inner_start, tuple(minor)), rest)]


def _outcome_axis(
    equation: Equation, place: Place, inside: dict[int, PartAxis], sizes: Sequence[int],
    starts: Starts,
) -> PartAxis:  # fmt: skip
    """Return the positions of a leaf on one axis of an outcome."""
    if isinstance(place.start, RuntimeStart):
        raise CutAcrossError(f"{equation.primitive.name} puts it at an unknown position")
    start, factors = place.start, []
    for name, stride in place.factors:
        repeated = PartAxis(0, (LeafFactor(REPEATED, 0, sizes[name], 1),))
        axis = inside.get(name, repeated)
        start += stride * axis.start
        for factor in axis.factors:
            factor = factor._replace(step=stride * factor.step)
            if factor.step < 0:  # counted from the other end
                start += factor.step * (factor.size - 1)
                _shift(starts, factor, factor.size - 1)
                factor = factor._replace(stride=-factor.stride, step=-factor.step)
            factors.append(factor)
    return PartAxis(start, tuple(factors))


def _shift(starts: Starts, factor: LeafFactor, entries: int) -> None:
    if factor.axis != REPEATED and (start := starts[factor.axis]) is not None:
        starts[factor.axis] = start + factor.stride * entries


def _replace_factor(axis: PartAxis, at: int, factor: LeafFactor) -> PartAxis:
    return axis._replace(factors=(*axis.factors[:at], factor, *axis.factors[at + 1 :]))
