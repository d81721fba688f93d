"""Matrix products with packed leaves, without making them dense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.sum_ import Sum
from nnopt_jax.typing import Array

Axes = tuple[int, ...]


class Dense(Exception):
    """Says why a packed leaf is to be made dense; never leaves the trace."""


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A `dot_general` of an array with a weight, the weight on the right.

    Args:
        left: axes of the array that are summed over.
        right: those of the weight, in the same order.
        left_batch: axes of the array that go along with axes of the weight.
        right_batch: those of the weight.
        settings: precision, dtype and what else `dot_general` takes.
    """

    left: Axes
    right: Axes
    left_batch: Axes
    right_batch: Axes
    settings: dict[str, Any]

    def __call__(self, x: Array, weight: Array) -> Array:
        """The product: axes that go along, those of the array, those of the weight."""
        axes = (self.left, self.right), (self.left_batch, self.right_batch)
        return lax.dot_general(x, weight, axes, **self.settings)

    def free(self, ndim: int) -> Axes:
        """Axes of a weight of so many that are in the product."""
        gone = (*self.right, *self.right_batch)
        return tuple(axis for axis in range(ndim) if axis not in gone)


def contract(x: Array, weight: Field, how: Contraction) -> Array:
    """A product with an array or a node.

    Raises:
        Dense: there is no way but to make the node dense.
    """
    if not is_node(weight):
        return how(x, weight)
    rule = RULES.get(type(weight))
    if rule is None:
        raise Dense("no product of its parts is the product of the whole")
    return rule(x, weight, how)


def _quantized(x: Array, weight: Quantized, how: Contraction) -> Array:
    r"""`sum_i x_i s_j (q_ij - z_j) = s_j sum_i x_i (q_ij - z_j)`."""
    scale = show(weight.scale)
    if any(scale.shape[axis] != 1 for axis in how.right):
        raise Dense("its scales differ along the axis that is summed over")
    dtype = jnp.dtype(weight.dtype)
    codes = show(weight.codes).astype(dtype)
    if weight.zero is not None:
        codes = codes - lax.broadcast_in_dim(
            _spread(show(weight.zero).astype(dtype), weight.shape), weight.shape,
            tuple(range(weight.ndim)),
        )  # fmt: skip
    out = how(x, codes)
    free = how.free(weight.ndim)
    scale = _spread(scale, tuple(
        n if axis in (*how.right_batch, *free) and scale.shape[axis] != 1 else 1
        for axis, n in enumerate(weight.shape)
    ))  # fmt: skip
    scale = scale.transpose((*how.right_batch, *free, *how.right))
    batch, own = (
        scale.shape[: len(how.right_batch)],
        scale.shape[len(how.right_batch) :][: len(free)],
    )
    between = (1,) * (out.ndim - len(batch) - len(own))
    return (out.astype(jnp.float32) * scale.reshape(*batch, *between, *own)).astype(out.dtype)


def _spread(grid: Array, shape: Sequence[int]) -> Array:
    """One entry for each group along an axis becomes one for each of its elements."""
    for axis, size in enumerate(shape):
        if grid.shape[axis] not in (1, size):
            grid = jnp.repeat(grid, size // grid.shape[axis], axis)
    return grid


def _factored(x: Array, weight: Factored, how: Contraction) -> Array:
    """`x (u v) = (x u) v`, the factor first that has the axis that is summed over."""
    last = weight.ndim - 1
    lead = tuple(range(last - 1))
    if tuple(how.right_batch) != lead or len(how.right) != 1:
        raise Dense("it is summed over both axes of its product, or over others")
    settings = how.settings
    (axis,) = how.right
    first, second = (weight.u, weight.v) if axis == last - 1 else (weight.v, weight.u)
    inner = contract(x, first, how)  # (lead, free of x, rank)
    rank = last - 1 if first is weight.u else last
    along = tuple(range(len(lead)))
    inner = inner.astype(x.dtype)
    return contract(inner, second, Contraction((inner.ndim - 1,), (rank,), along, lead, settings))


def _sum(x: Array, weight: Sum, how: Contraction) -> Array:
    """`x (w + d) = x w + x d`."""
    base, delta = contract(x, weight.base, how), contract(x, weight.delta, how)
    return (base.astype(jnp.float32) + delta.astype(jnp.float32)).astype(base.dtype)


RULES: dict[type, Callable[[Array, Any, Contraction], Array]] = {
    Quantized: _quantized,
    Factored: _factored,
    Sum: _sum,
}
"""How each kind of node is multiplied; others are made dense."""
