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
from nnopt_jax.trace.statistics.leaf_part import REPEATED, LeafFactor, LeafPart, leaf_order
from nnopt_jax.trace.statistics.product_use import Factors, ProductUse
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class LeafLayout:
    """Which part of a leaf each axis of a state belongs to.

    States have the axes (batch, then groups and channels, or outs, or others of their own).

    Args:
        shape: of the leaf.
        part: the leaf where it is used.
        product: what it is multiplied with there.
        is_folded: whether states have lost their batch.
    """

    shape: Shape
    part: LeafPart
    product: ProductUse
    is_folded: bool = False

    @property
    def batch(self) -> Factors:
        """What scans go along, from the outermost, then what products have of their own."""
        return () if self.is_folded else (*self.part.scanned, *self.product.batch)

    def unscanned(self, state: Any) -> Any:
        """Give a state one axis for each factor of scans, in place of one for each scan."""
        for at, level in reversed([*enumerate(self.part.scans)]):
            state = jax.tree.map(lambda x, at=at, axis=level.axis: spread(x, at, axis), state)
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
        return self._like_leaf(x, (*self.batch, *self.product.groups, *self.product.channels))

    def out(self, x: Array) -> Array:
        """Numbers for each channel of outputs; they broadcast to the leaf."""
        return self._like_leaf(x, (*self.batch, *self.product.outs))

    def apart(self, x: Array) -> Array:
        """Anything, behind a batch in the order of the leaf."""
        order, rest = leaf_order(self.batch), x.shape[len(self.batch) :]
        x = x.transpose((*order, *range(len(order), x.ndim)))
        return x.reshape(*_sizes(self.batch).values(), *rest)

    def _like_leaf(self, x: Array, factors: Factors) -> Array:
        """Join the factors of each axis; one that lacks is repeated beside another."""
        x = x.reshape([factor.size for factor in factors]).transpose(leaf_order(factors))
        there = {_name(factor) for factor in factors}
        axes = {axis for axis, _ in there if axis != REPEATED}
        every = [f for f in (*self.part.scanned, *self.product.factors) if f.axis in axes]
        wide = [every[i] for i in leaf_order(every)]
        x = x.reshape([f.size if _name(f) in there else 1 for f in wide])
        x = jnp.broadcast_to(x, [factor.size for factor in wide])
        sizes = _sizes(wide)
        return x.reshape([sizes.get(axis, 1) for axis in range(len(self.shape))])

    def folded(self) -> LeafLayout:
        """The layout of a state that has lost its batch."""
        return dataclasses.replace(self, is_folded=True)

    def marks(self, labels: tuple[str, ...]) -> Any:
        """What two layouts have in common whose states may be added.

        Args:
            labels: names of properties of the product, or its batch.
        """
        named = [
            self.batch if label == "batch" else getattr(self.product, label) for label in labels
        ]
        axes = {f.axis for each in named for f in each if isinstance(f, LeafFactor)}
        # A start that is not known is not that of another use.
        least = self.part.least
        starts = tuple(object() if least[axis] is None else least[axis] for axis in sorted(axes))
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


def _sizes(factors: Factors | list) -> dict[int, int]:
    """How much of each axis there is, in the order of the leaf."""
    return {
        axis: math.prod(factor.size for factor in factors if factor.axis == axis)
        for axis in sorted({factor.axis for factor in factors})
    }
