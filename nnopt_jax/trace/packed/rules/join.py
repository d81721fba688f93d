"""Packed leaves of one kind put side by side stay packed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.trace.packed.rules.contraction import Dense
from nnopt_jax.typing import Array


def joined(fields: Sequence[Field], axis: int) -> Field:
    """Arrays or nodes, one after another along an axis.

    Codes of grids alike are joined, and so are their scales, an entry for each group of all.

    Args:
        fields: of one shape but for the axis.
        axis: along which.

    Raises:
        Dense: they are of different kinds, or their grids differ along other axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.trace.packed.rules.join import joined
        >>> one = Quantized(jnp.ones((4, 3), jnp.int8), jnp.ones((1, 3)))
        >>> joined([one, one], 1)
        Quantized(codes int8[4,6], scale float32[1,6], 16 bits/weight)
    """
    first = fields[0]
    if not any(is_node(field) for field in fields):
        return lax.concatenate(list(fields), axis)
    if any(type(field) is not type(first) or _kind(field) != _kind(first) for field in fields):
        raise Dense("it is put beside leaves of another form")
    if isinstance(first, Masked):
        values = joined([field.values for field in fields], axis)
        return first.replace(
            values=values,
            mask=lax.concatenate([show(field.mask).astype(bool) for field in fields], axis),
            capacity=None,
        )
    if not isinstance(first, Quantized):
        raise Dense("it is put beside others, and has parts that cannot be")
    return first.replace(
        codes=lax.concatenate([show(field.codes) for field in fields], axis),
        scale=_side_by_side(fields, "scale", axis),
        zero=None if first.zero is None else _side_by_side(fields, "zero", axis),
    )


def _kind(field: Field) -> Any:
    """All that nodes must have in common: their settings, and which fields are there."""
    settings = [getattr(field, name) for name in field.names(is_static=True) if name != "capacity"]
    return settings, [name for name, _ in field.fields()]


def _side_by_side(fields: Sequence[Quantized], name: str, axis: int) -> Array:
    """Scales or zero points; each axis of theirs is one entry, or one for each group."""
    grids = [show(getattr(field, name)) for field in fields]
    if len({grid.shape[:axis] + grid.shape[axis + 1 :] for grid in grids}) > 1:
        raise Dense("it is put beside others of another grid")
    sizes = [field.shape[axis] for field in fields]
    blocks = [size // grid.shape[axis] for size, grid in zip(sizes, grids, strict=True)]
    block = math.gcd(*blocks)  # of all of them an entry is for so many elements
    # One that was multiplied by a number has scales of a wider dtype, which holds the others.
    return jnp.concatenate(
        [jnp.repeat(grid, own // block, axis) for grid, own in zip(grids, blocks, strict=True)],
        axis,
    )
