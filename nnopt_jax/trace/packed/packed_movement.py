"""Transposes, slices and reshapes of packed weights: of codes, and of coarser scales."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.trace.jaxpr import Equation, bind, primitives
from nnopt_jax.trace.primitives import OpRule, Place, RuntimeStart, axes, factors_of
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class Movement:
    """A movement, such as a transpose or slice: one outcome of a step on one packed operand.

    A movement applies to the fields of packed leaves, which may be coarser than the weight: on each
    axis they have one entry for every index, one for each group of indices, or one for all.

    Args:
        equation: the step.
        rule: its rule.
        values: its operands; the first one is moved.
        outcome: the number of the outcome.
        is_step: whether an array of the full shape is moved by running the step itself.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.packed.packed_movement import Movement
        >>> from nnopt_jax.trace.primitives import rule_of
        >>> turned = jax.make_jaxpr(jnp.transpose)(jnp.ones((4, 3))).jaxpr.eqns[0]
        >>> move = Movement(turned, rule_of(turned), [None], 0)
        >>> move.shape, move.apply(jnp.ones((4, 1)), (4, 3)).shape
        ((3, 4), (1, 4))
    """

    equation: Equation
    rule: OpRule
    values: Sequence[Any]
    outcome: int
    is_step: bool = True

    @property
    def before(self) -> Shape:
        """The shape of the moved operand."""
        return self.rule.operand_shapes[0]

    @property
    def shape(self) -> Shape:
        """The shape of the outcome."""
        return self.rule.outcome_shapes[self.outcome]

    @property
    def kept(self) -> int:
        """The number of last axes that remain last, complete and in order."""
        return self.rule.kept_last(0, self.outcome)

    @property
    def axes(self) -> Shape:
        """The permutation of axes, if the movement is only a transpose; else empty."""
        return self.rule.permutation or ()

    @property
    def fills(self) -> bool:
        """Whether some entries of the outcome come from padding alone."""
        return self.rule.fills is not None and self.shape != self.before

    def apply(self, x: Array, shape: Shape, fill: float = 0) -> Array | None:
        """Move an array of the shape of the weight, or a coarser one, such as its scales.

        Args:
            x: an array whose sizes divide those of `shape`.
            shape: the shape of the weight; its last axes, if they stay, may have other sizes.
            fill: the value of new entries.

        Returns:
            An array whose sizes divide those of the outcome; None if groups would be split.
        """
        if self.rule.is_identity:
            return self._identity(x)
        # A transpose does not depend on sizes, so it applies to coarse arrays as well.
        if self.axes:
            return x.transpose(self.axes)
        if tuple(shape) != self.before:
            there = self._for_shape(tuple(shape))
            return None if there is None else there.apply(x, shape, fill)
        if self.is_step and tuple(x.shape) == self.before and not self.fills:
            return bind(self.equation, [x, *self.values[1:]])[self.outcome]
        pair = self.rule.pair(0, self.outcome)
        if pair is None or self._crosses_flat(x):
            return None
        taken = _take(x, self.before, pair[0], self.rule.sizes, self.values)
        if taken is None:
            return None
        x, entries = taken
        return _place(x, entries, pair, self.shape, self.rule.sizes, fill)

    def _for_shape(self, shape: Shape) -> Movement | None:
        """Return the movement for a shape that differs in its last axes, which do not move."""
        lead = len(self.before) - self.kept
        if shape[:lead] != self.before[:lead]:
            return None
        # The last axes get new factors, so that the others keep their numbers.
        first = len(self.rule.sizes)
        dims = tuple(axes(range(first, first + len(shape) - lead)))
        after, outs = len(self.shape) - self.kept, list(self.rule.outcomes)
        shapes = list(self.rule.outcome_shapes)
        outs[self.outcome] = (*outs[self.outcome][:after], *dims)
        shapes[self.outcome] = (*self.shape[:after], *shape[lead:])
        rule = dataclasses.replace(
            self.rule,
            sizes=(*self.rule.sizes, *shape[lead:]),
            operands=((*self.rule.operands[0][:lead], *dims), *self.rule.operands[1:]),
            outcomes=tuple(outs),
            operand_shapes=(shape, *self.rule.operand_shapes[1:]),
            outcome_shapes=tuple(shapes),
        )
        return Movement(self.equation, rule, self.values, self.outcome, is_step=False)

    def _identity(self, x: Array) -> Array:
        """Compute an identity; skip placement on devices for arrays coarser than the weight."""
        if self.equation.primitive in _PLACED and x.shape != self.before:
            return x
        return bind(self.equation, [x] * len(self.values))[0]

    def _crosses_flat(self, x: Array) -> bool:
        """Return whether a reshape would unevenly split an axis that has several entries."""
        return any(x.shape[axis] != 1 for flat in self.rule.flat for axis in flat.operand)


_PLACED = {primitives.sharding_constraint_p, primitives.device_put_p}

Entries = dict[int, int]
"""The number of entries that a coarse array has along each factor."""


def _take(
    x: Array, full: Shape, places: Sequence[Place], sizes: tuple[int, ...], values: Sequence[Any]
) -> tuple[Array, Entries] | None:
    """Return the entries of an array at some places, and their number along each factor."""
    entries: Entries = {}
    for at, (place, size) in enumerate(zip(places, full, strict=True)):
        have = x.shape[at]
        if have == 1:
            entries |= dict.fromkeys(place.names, 1)
            continue
        group, count = size // have, place.count(sizes)
        if count == 0:
            return None
        stride = place.factors[-1][1] if place.factors else 1
        if isinstance(place.start, RuntimeStart):
            if group > 1:
                return None
            # Without groups, any start is allowed.
            start = values[place.start.operand]
            x = lax.dynamic_slice_in_dim(x, start, count, at)
        elif (place.start, count) != (0, size):
            # The slice must consist of whole groups.
            if group > 1 and (stride != 1 or place.start % group or count % group):
                return None
            first, last = place.start // group, (place.start + (count - 1) * stride) // group
            x = lax.slice_in_dim(x, first, last + 1, stride, at)
        for factor in reversed(place.names):
            shared = math.gcd(group, sizes[factor])
            group //= shared
            entries[factor] = sizes[factor] // shared
            if group > 1 and entries[factor] > 1:
                return None
        if group > 1:
            return None
    order = [factor for place in places for factor in place.names]
    return x.reshape([entries[factor] for factor in order]), entries


def _place(
    x: Array, entries: Entries, pair: tuple[tuple[Place, ...], ...], shape: Shape,
    sizes: tuple[int, ...], fill: float,
) -> Array | None:  # fmt: skip
    """Arrange entries with one axis for each factor into the axes of the outcome."""
    order = [factor for place in pair[0] for factor in place.names]
    wanted = [factor for place in pair[1] for factor in place.names]
    kept = [factor for factor in order if factor in wanted]
    x = x.reshape([entries[factor] for factor in kept])  # the other axes have one entry
    x = x.transpose([kept.index(factor) for factor in wanted if factor in kept])
    x = x.reshape([entries.get(factor, 1) for factor in wanted])
    # Entries are repeated while each factor still has an axis of its own.
    needed = entries | _widen(pair[1], entries, sizes)
    for axis, factor in enumerate(wanted):
        if x.shape[axis] != needed.get(factor, 1):
            x = jnp.repeat(x, needed[factor] // x.shape[axis], axis)
    x = x.reshape([math.prod(needed.get(f, 1) for f in place.names) for place in pair[1]])
    for axis, (place, size) in enumerate(zip(pair[1], shape, strict=True)):
        found = _pad_axis(x, axis, place, size, sizes, fill)
        if found is None:
            return None
        x = found
    return x


def _widen(places: Sequence[Place], entries: Entries, sizes: tuple[int, ...]) -> Entries:
    """Return the sizes of the factors that must be repeated in full, since a finer one varies."""
    return {
        factor: sizes[factor]
        for place in places
        for at, factor in enumerate(place.names)
        if entries.get(factor, 1) < sizes[factor]
        and any(entries.get(finer, 1) > 1 for finer in place.names[at + 1 :])
    }


def _pad_axis(
    x: Array, axis: int, place: Place, size: int, sizes: tuple[int, ...], fill: float
) -> Array | None:
    """Reverse one axis if its stride is negative, or pad it to the size of the outcome."""
    have, count = x.shape[axis], place.count(sizes)
    stride = place.factors[-1][1] if place.factors else 1
    if stride < 0:
        return lax.rev(x, [axis])
    # The axis is complete, or one entry stands for all of it.
    if count == size or have == 1 < count:
        return x
    group = count // have
    high = size - int(place.start) - ((count - 1) * stride + 1)  # pyright: ignore[reportArgumentType]
    low = int(place.start)  # pyright: ignore[reportArgumentType]
    if group > 1 and (stride != 1 or low % group or high % group):
        return None
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (low // group, high // group, stride - 1)
    return lax.pad(x, jnp.asarray(fill, x.dtype), padding)


def movements_of(equation: Equation, rule: OpRule, values: Sequence[Any]) -> list[Movement] | None:
    """Return the movement to each outcome; None if the step does not just move one operand.

    Args:
        equation: the step.
        rule: its rule.
        values: its operands; the first is packed, the others are arrays.
    """
    if rule.is_identity and len(values) > 1:  # each outcome comes from another operand
        return None
    moves = rule.is_identity or rule.kind.value == "movement"
    exchanges = rule.mesh and not rule.is_identity  # with other devices, which hold other scales
    if not moves or exchanges or rule.data[:1] != (0,):
        return None
    others = [i for i in rule.data if i != 0 and i != rule.fills]
    if any(factors_of(rule.operands[i]) for i in others):
        return None
    return [Movement(equation, rule, values, at) for at in range(len(rule.outcomes))]
