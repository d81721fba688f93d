"""What was measured at one use, laid out as the leaf itself lies."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.trace.statistics.meeting import Factors
from nnopt_jax.trace.statistics.view import in_order
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which part of a leaf each axis of a state belongs to.

    States have the axes (stack, then groups and channels, or outs, or others of their own).

    Args:
        shape: of the leaf.
        factors: all of the leaf that the use saw, groups apart from the rest of their axis.
        stack: of scans, from the outermost, then of what goes along.
        axes: how many axes of a state the stack has: a scan's is one, of whatever factors.
        along: axes of the leaf that are summed over.
        groups: of a grouped convolution.
        channels: of inputs.
        outs: of outputs.
    """

    shape: Shape
    factors: Factors
    stack: Factors
    axes: int
    along: tuple[int, ...]
    groups: Factors
    channels: Factors
    outs: Factors

    def leaf(self, x: Array) -> Array:
        """Numbers for the whole leaf, or for each of its layers.

        They broadcast to the leaf once axes of one entry are put behind them.
        """
        last = max((factor.axis for factor in self.stack), default=-1) + 1
        found = self._like_leaf(x, self.stack)
        return found.reshape(found.shape[:last])

    def channel(self, x: Array) -> Array:
        """Numbers for each channel of inputs; they broadcast to the leaf."""
        return self._like_leaf(x, (*self.stack, *self.groups, *self.channels))

    def out(self, x: Array) -> Array:
        """Numbers for each channel of outputs; they broadcast to the leaf."""
        return self._like_leaf(x, (*self.stack, *self.outs))

    def apart(self, x: Array) -> Array:
        """Anything, behind a stack in the order of the leaf."""
        rest = x.shape[self.axes :]
        x = x.reshape(*(factor.size for factor in self.stack), *rest)
        order = in_order(self.stack)
        x = x.transpose((*order, *range(len(order), x.ndim)))
        return x.reshape(*_sizes(self.stack).values(), *rest)

    def _like_leaf(self, x: Array, factors: Factors) -> Array:
        """Of one axis for each factor: those of an axis joined, where one lacks repeated."""
        x = x.reshape([factor.size for factor in factors]).transpose(in_order(factors))
        there = {(factor.axis, factor.stride) for factor in factors}
        axes = {axis for axis, _ in there}
        wide = [self.factors[i] for i in in_order(self.factors) if self.factors[i].axis in axes]
        x = x.reshape([f.size if (f.axis, f.stride) in there else 1 for f in wide])
        x = jnp.broadcast_to(x, [factor.size for factor in wide])
        sizes = _sizes(wide)
        return x.reshape([sizes.get(axis, 1) for axis in range(len(self.shape))])

    def folded(self) -> Layout:
        """The layout of what has lost its stack."""
        return dataclasses.replace(self, stack=(), axes=0)


def _sizes(factors: Factors | list) -> dict[int, int]:
    """How much of each axis there is, in the order of the leaf."""
    return {
        axis: math.prod(factor.size for factor in factors if factor.axis == axis)
        for axis in sorted({factor.axis for factor in factors})
    }


def folded(state: Any, axes: int, add: Callable[[Any, Any], Any]) -> Any:
    """A state for all of a stack, of states for each entry of its first axes."""
    for _ in range(axes):
        count = jax.tree.leaves(state)[0].shape[0]
        state = functools.reduce(
            add, [jax.tree.map(lambda x, at=at: x[at], state) for at in range(count)]
        )
    return state
