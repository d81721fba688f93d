"""The definition of a statistic by pure functions, and the layout of its states."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.columns import Tabular
from nnopt_jax.trace.statistics.leaf_part import REPEATED, LeafFactor, LeafPart, leaf_order, unfold
from nnopt_jax.trace.statistics.product_use import Factors, ProductUse
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class LeafLayout:
    """The axes of a statistic's state, and how they correspond to the axes of the leaf.

    A state has the batch axes first, then groups and channels, or outs, or other axes.

    Args:
        shape: the shape of the leaf.
        part: the part of the leaf that is used.
        product: the product that it is used in.
        is_folded: whether the batch axes of states are already reduced.
    """

    shape: Shape
    part: LeafPart
    product: ProductUse
    is_folded: bool = False

    @property
    def batch(self) -> Factors:
        """The batch factors: those of scans, outermost first, then those of the product."""
        return () if self.is_folded else (*self.part.scan_factors, *self.product.batch)

    def split_scans(self, state: Any) -> Any:
        """Split each scan axis of a state into one axis for each factor of the leaf."""
        for at, level in reversed([*enumerate(self.part.scans)]):
            state = jax.tree.map(lambda x, at=at, axis=level.axis: unfold(x, at, axis), state)
        return state

    def leaf(self, x: Array) -> Array:
        """Arrange one number for the leaf, or one for each batch entry, such as a layer.

        The result broadcasts to the leaf once axes of size 1 are appended.
        """
        last = max((factor.axis for factor in self.batch), default=-1) + 1
        found = self._like_leaf(x, self.batch)
        return found.reshape(found.shape[:last])

    def channel(self, x: Array) -> Array:
        """Arrange numbers for each input channel so that they broadcast to the leaf."""
        return self._like_leaf(x, (*self.batch, *self.product.groups, *self.product.channels))

    def out(self, x: Array) -> Array:
        """Arrange numbers for each output channel so that they broadcast to the leaf."""
        return self._like_leaf(x, (*self.batch, *self.product.outs))

    def order_batch(self, x: Array) -> Array:
        """Put the batch axes of an array in the order of the leaf, and keep its other axes."""
        order, rest = leaf_order(self.batch), x.shape[len(self.batch) :]
        x = x.transpose((*order, *range(len(order), x.ndim)))
        return x.reshape(*_sizes(self.batch).values(), *rest)

    def _like_leaf(self, x: Array, factors: Factors) -> Array:
        """Reshape an array with one axis a factor to the axes of the leaf, with broadcasting."""
        x = x.reshape([factor.size for factor in factors]).transpose(leaf_order(factors))
        there = {_name(factor) for factor in factors}
        axes = {axis for axis, _ in there if axis != REPEATED}
        every = [f for f in (*self.part.scan_factors, *self.product.factors) if f.axis in axes]
        # Factors that the numbers do not have get size 1, and then broadcast.
        wide = [every[i] for i in leaf_order(every)]
        x = x.reshape([f.size if _name(f) in there else 1 for f in wide])
        x = jnp.broadcast_to(x, [factor.size for factor in wide])
        sizes = _sizes(wide)
        return x.reshape([sizes.get(axis, 1) for axis in range(len(self.shape))])

    def folded(self) -> LeafLayout:
        """Return the layout of states whose batch axes are already reduced."""
        return dataclasses.replace(self, is_folded=True)

    def sum_key(self, labels: tuple[str, ...]) -> Any:
        """Return a key that is equal for layouts whose states may be added.

        Args:
            labels: names of properties of the product, or `"batch"`.
        """
        named = [
            self.batch if label == "batch" else getattr(self.product, label) for label in labels
        ]
        axes = {f.axis for each in named for f in each if isinstance(f, LeafFactor)}
        # An unknown start equals no other.
        least = self.part.least_indices
        starts = tuple(object() if least[axis] is None else least[axis] for axis in sorted(axes))
        plain = tuple(
            tuple((*_name(f), f.size) if isinstance(f, LeafFactor) else f for f in each)
            for each in named
        )
        return plain, starts


def fold(state: Any, axes: int, add: Callable[[Any, Any], Any]) -> Any:
    """Reduce the first axes of a state, by adding the states of their entries."""
    for _ in range(axes):
        count = jax.tree.leaves(state)[0].shape[0]
        state = functools.reduce(
            add, [jax.tree.map(lambda x, at=at: x[at], state) for at in range(count)]
        )
    return state


def _name(factor: LeafFactor) -> tuple[int, int]:
    return factor.axis, abs(factor.stride)


def _sizes(factors: Factors | list) -> dict[int, int]:
    """Return the number of entries on each axis of the leaf, in order."""
    return {
        axis: math.prod(factor.size for factor in factors if factor.axis == axis)
        for axis in sorted({factor.axis for factor in factors})
    }


def filled(shapes: Any, value: float) -> Any:
    """Return arrays of the given shapes and dtypes, filled with a number."""
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)


def zeros(shapes: Any) -> Any:
    """Return arrays of the given shapes and dtypes, filled with zeros."""
    return filled(shapes, 0.0)


@dataclasses.dataclass(frozen=True, repr=False)
class Statistic(Tabular):
    """A statistic, as pure functions of states; a state is a pytree of arrays.

    Args:
        name: the name.
        measure: a function `measure(use, x)` that returns the state of one use, with arrays of the
            axes (batch, ...).
        finish: a function `finish(layout, state)` that returns the result of a state, in the order
            of the leaf.
        read: a function that returns `x` from a use; None if the use does not have this statistic.
        start: a function of shapes that returns the initial state, which is neutral when added.
        add: a function that adds two states.
        labels: the names of properties that two products must share, in addition to the batch, so
            that the states of their uses can be added.
        check: a function that returns an error text if the shapes of states do not fit, else an
            empty string.
        settings: the settings, for `repr`.

    Example:
        >>> from nnopt_jax.trace import input_gram
        >>> input_gram(block=64)
        Statistic(input_gram, block=64)
    """

    name: str
    measure: Callable[[ProductUse, Any], Any]
    finish: Callable[[LeafLayout, Any], Any]
    read: Callable[[ProductUse], Any] = ProductUse.inputs
    start: Callable[[Any], Any] = zeros
    add: Callable[[Any, Any], Any] = jnp.add
    labels: tuple[str, ...] = ()
    check: Callable[[Any], str] = lambda state: ""
    settings: tuple[tuple[str, Any], ...] = ()

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        return ", ".join([self.name, *(f"{name}={value!r}" for name, value in self.settings)])

    @property
    def of_inputs(self) -> bool:
        """Whether the statistic depends only on inputs, so that equal inputs share its state."""
        return self.read is not ProductUse.outputs

    def state(self, use: ProductUse) -> Any:
        """Return the state of one use; None if the use does not have this statistic."""
        x = self.read(use)
        return None if x is None else self.measure(use, x)


Names = str | Statistic | Iterable[str | Statistic]
"""The statistics to measure, by name or as values."""
