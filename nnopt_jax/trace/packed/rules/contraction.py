"""What a product with a weight sums over, and how what belongs to its operands lies in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.base import show
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.ops.grid import expand
from nnopt_jax.typing import Array

Axes = tuple[int, ...]


class Dense(Exception):
    """Says why a packed leaf is to be made dense; never leaves the trace.

    Args:
        reason: in a few words.
        instead: what the step gives, where that is more than the step on the dense array: an array,
            or a leaf that is no longer packed.
    """

    def __init__(self, reason: str, instead: Any = None):
        super().__init__(reason)
        self.instead = instead


def after(find: Callable[[], Array], change: Callable[[Array], Array]) -> Array:
    """What is found, changed; also where that comes instead of the step on a dense array."""
    try:
        found = find()
    except Dense as reason:
        instead = None if reason.instead is None else change(reason.instead)
        raise Dense(str(reason), instead) from reason
    return change(found)


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A `dot_general` of an array with a weight, the weight on the right.

    Args:
        left: axes of the array that are summed over.
        right: those of the weight, in the same order.
        left_batch: axes of the array that go along with axes of the weight.
        right_batch: those of the weight.
        settings: precision, dtype and what else `dot_general` takes, by name.
    """

    left: Axes
    right: Axes
    left_batch: Axes
    right_batch: Axes
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Array, weight: Array) -> Array:
        """The product: axes that go along, those of the array, those of the weight."""
        axes = (self.left, self.right), (self.left_batch, self.right_batch)
        return lax.dot_general(x, weight, axes, **dict(self.settings))

    def wide(self, x: Array, weight: Array) -> Array:
        """The product in float32, to be scaled before it is rounded once."""
        settings = dict(self.settings) | {"preferred_element_type": jnp.float32}
        return dataclasses.replace(self, settings=tuple(settings.items()))(x, weight)

    def dtype(self, x: Array) -> Any:
        """Of the product."""
        return dict(self.settings).get("preferred_element_type") or x.dtype

    def free(self, ndim: int) -> Axes:
        """Axes of a weight of so many that are in the product."""
        return _others(ndim, self.right, self.right_batch)

    def left_free(self, ndim: int) -> Axes:
        """Axes of an array of so many that are in the product."""
        return _others(ndim, self.left, self.left_batch)

    def over_weight(self, grid: Array, shape: Sequence[int], ndim: int) -> Array:
        """Lays factors of a weight so that they broadcast over the product.

        Args:
            grid: of the weight's rank: one entry, one for each group or one for each index along
                axes that are in the product, one along those that are summed over.
            shape: of the weight.
            ndim: of the product.
        """
        free = self.free(len(shape))
        grid = spread(grid, [
            n if axis in (*self.right_batch, *free) and grid.shape[axis] != 1 else 1
            for axis, n in enumerate(shape)
        ])  # fmt: skip
        grid = grid.transpose((*self.right_batch, *free, *self.right))
        batch = grid.shape[: len(self.right_batch)]
        own = grid.shape[len(batch) : len(batch) + len(free)]
        return grid.reshape(*batch, *(1,) * (ndim - len(batch) - len(own)), *own)

    def over_inputs(self, grid: Array, shape: Sequence[int], ndim: int) -> Array:
        """Lays factors of what is summed over so that they broadcast over the array.

        Args:
            grid: of the weight's rank, one entry along axes that are not summed over.
            shape: of the weight.
            ndim: of the array.
        """
        grid = spread(grid, [n if axis in self.right else 1 for axis, n in enumerate(shape)])
        sizes = [grid.shape[axis] for axis in self.right]
        grid = grid.transpose((*self.right, *_others(len(shape), self.right))).reshape(sizes)
        order = sorted(range(len(sizes)), key=self.left.__getitem__)
        others = [axis for axis in range(ndim) if axis not in self.left]
        return lax.expand_dims(grid.transpose(order), others)

    def over_rows(self, grid: Array, ndim: int) -> Array:
        """Lays factors of the array, one along axes that are summed over, over the product."""
        free = self.left_free(grid.ndim)
        grid = grid.transpose((*self.left_batch, *free, *self.left))
        kept = grid.shape[: len(self.left_batch) + len(free)]
        return grid.reshape(*kept, *(1,) * (ndim - len(kept)))


def _others(ndim: int, *gone: Axes) -> Axes:
    return tuple(axis for axis in range(ndim) if axis not in sum(gone, ()))


def spread(grid: Array, shape: Sequence[int]) -> Array:
    """One entry for each group along an axis becomes one for each of its elements."""
    for axis, size in enumerate(shape):
        if grid.shape[axis] not in (1, size):
            grid = jnp.repeat(grid, size // grid.shape[axis], axis)
    return grid


def whole_codes(weight: Quantized) -> Array:
    """`q - z`, in the dtype of the weight, which holds such integers."""
    dtype = jnp.dtype(weight.dtype)
    codes = show(weight.codes).astype(dtype)
    if weight.zero is None:
        return codes
    return codes - expand(show(weight.zero).astype(dtype), weight.shape)
