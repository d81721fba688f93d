"""Packed leaves times one number stay packed: the number goes to the scale."""

from __future__ import annotations

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.codebook import Codebook
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.gathered import Gathered, GatheredBlocks
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.sparse import Sparse
from nnopt_jax.arrays.sum_ import Sum
from nnopt_jax.arrays.uneven_groups import UnevenGroups
from nnopt_jax.trace.packed.rules.contraction import Dense
from nnopt_jax.typing import Array

_LINEAR = {
    Quantized: (),
    Codebook: ("table",),
    Factored: ("u",),
    Sum: ("base", "delta"),
    Masked: ("values",),
    Sparse: ("values",),
    Gathered: ("values",),
    GatheredBlocks: ("values",),
    Reshaped: ("base",),
}
"""Fields that the whole is linear in, by kind of node."""


def times(field: Field, number: Array) -> Field:
    """A field or node times a number.

    Args:
        field: an array or a node.
        number: a scalar.

    Raises:
        Dense: the node is of a kind that has no place for it.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.trace.packed.rules.times import times
        >>> node = Quantized(jnp.array([[1, 2]], jnp.int8), jnp.ones((1, 1)))
        >>> times(node, jnp.float32(0.5)).materialize()
        Array([[0.5, 1. ]], dtype=float32)
    """
    if not is_node(field):
        return (field * number).astype(field.dtype)
    if type(field) not in _LINEAR:
        raise Dense("it is scaled, and has no scale of its own")
    if isinstance(field, Quantized):
        return field.replace(scale=_times_scale(field.scale, number))
    return field.replace(
        **{name: times(getattr(field, name), number) for name in _LINEAR[type(field)]}
    )


def _times_scale(scale: Field, number: Array) -> Field:
    if isinstance(scale, UnevenGroups):
        return scale.replace(values=_times_scale(scale.values, number))
    return show(scale) * number  # of other forms there are few entries
