"""What was measured at one use, in the order of the leaf itself."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.trace.statistics.arrangement import spread
from nnopt_jax.trace.statistics.leaf_part import (
    REPEATED,
    LeafFactor,
    LeafPart,
    ScanLevel,
    leaf_order,
)
from nnopt_jax.trace.statistics.product_use import Factors, ProductUse
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class LeafLayout:
    """Which part of a leaf each axis of a state belongs to.

    States have the axes (batch, then groups and channels, or outs, or others of their own).

    Args:
        shape: of the leaf.
        starts: for each axis of the leaf the least index that the use has; None where it is not
            known.
        factors: all of the leaf that the use has, groups apart from the rest of their axis.
        scans: the scans that go along the leaf, from the outermost.
        batch: what scans go along, from the outermost, then what products have of their own.
        contracted: axes of the leaf that are summed over.
        groups: of a grouped convolution.
        channels: of inputs.
        outs: of outputs.
    """

    shape: Shape
    starts: tuple[int | None, ...]
    factors: Factors
    scans: tuple[ScanLevel, ...]
    batch: Factors
    contracted: tuple[int, ...]
    groups: Factors
    channels: Factors
    outs: Factors

    @classmethod
    def of(cls, shape: Shape, part: LeafPart, use: ProductUse) -> LeafLayout:
        """Make the layout of a use.

        Args:
            shape: of the leaf.
            part: the leaf where it is used.
            use: the use.
        """
        scans = tuple(level for level in part.levels if level.is_over)
        scanned = tuple(f for level in scans for f in level.axis.factors)
        factors = (*(f for f in scanned if f.axis != REPEATED), *use.factors)
        return cls(
            shape, _least(part), factors, scans, (*scanned, *use.batch), use.contracted,
            use.groups, use.channels, use.outs,
        )  # fmt: skip

    def unscanned(self, state: Any) -> Any:
        """Give a state one axis for each factor of scans, in place of one for each scan."""
        for at in reversed(range(len(self.scans))):
            place = self.scans[at].axis
            state = jax.tree.map(lambda x, at=at, place=place: spread(x, at, place), state)
        return state

    def leaf(self, x: Array) -> Array:
        """Numbers for the whole leaf, or for each of its layers.

        They broadcast to the leaf once axes of one entry are put behind them.
        """
        last = max((factor.axis for factor in self.batch), default=-1) + 1
        found = self._like_leaf(x, self.batch)
        return found.reshape(found.shape[:last])

    def channel(self, x: Array) -> Array:
        """Numbers for each channel of inputs; they broadcast to the leaf."""
        return self._like_leaf(x, (*self.batch, *self.groups, *self.channels))

    def out(self, x: Array) -> Array:
        """Numbers for each channel of outputs; they broadcast to the leaf."""
        return self._like_leaf(x, (*self.batch, *self.outs))

    def apart(self, x: Array) -> Array:
        """Anything, behind a batch in the order of the leaf."""
        order, rest = leaf_order(self.batch), x.shape[len(self.batch) :]
        x = x.transpose((*order, *range(len(order), x.ndim)))
        return x.reshape(*_sizes(self.batch).values(), *rest)

    def _like_leaf(self, x: Array, factors: Factors) -> Array:
        """Join the factors of each axis; one that lacks is repeated beside another."""
        x = x.reshape([factor.size for factor in factors]).transpose(leaf_order(factors))
        there = {_name(factor) for factor in factors}
        axes = {axis for axis, _ in there}
        wide = [self.factors[i] for i in leaf_order(self.factors) if self.factors[i].axis in axes]
        x = x.reshape([f.size if _name(f) in there else 1 for f in wide])
        x = jnp.broadcast_to(x, [factor.size for factor in wide])
        sizes = _sizes(wide)
        return x.reshape([sizes.get(axis, 1) for axis in range(len(self.shape))])

    def folded(self) -> LeafLayout:
        """The layout of a state that has lost its batch."""
        return dataclasses.replace(self, scans=(), batch=())

    def marks(self, labels: tuple[str, ...]) -> Any:
        """What two layouts have in common whose states may be added.

        Args:
            labels: names of fields.
        """
        named = [getattr(self, label) for label in labels]
        axes = {f.axis for each in named for f in each if isinstance(f, LeafFactor)}
        # A start that is not known is not that of another use.
        starts = tuple(
            object() if self.starts[axis] is None else self.starts[axis] for axis in sorted(axes)
        )
        plain = tuple(
            tuple((*_name(f), f.size) if isinstance(f, LeafFactor) else f for f in each)
            for each in named
        )
        return plain, starts


def folded(state: Any, axes: int, add: Callable[[Any, Any], Any]) -> Any:
    """A state for all of a batch, of states for each entry of its first axes."""
    for _ in range(axes):
        count = jax.tree.leaves(state)[0].shape[0]
        state = functools.reduce(
            add, [jax.tree.map(lambda x, at=at: x[at], state) for at in range(count)]
        )
    return state


def _name(factor: LeafFactor) -> tuple[int, int]:
    return factor.axis, abs(factor.stride)


def _least(part: LeafPart) -> tuple[int | None, ...]:
    """The least index of each axis: starts are those of factors that may run backwards."""
    found = list(part.starts)
    for factor in part.factors:
        if factor.stride < 0 and (start := found[factor.axis]) is not None:
            found[factor.axis] = start + factor.stride * (factor.size - 1)
    return tuple(found)


def _sizes(factors: Factors | list) -> dict[int, int]:
    """How much of each axis there is, in the order of the leaf."""
    return {
        axis: math.prod(factor.size for factor in factors if factor.axis == axis)
        for axis in sorted({factor.axis for factor in factors})
    }
