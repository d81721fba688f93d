"""Matrix products with packed leaves, without making them dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.gathered import Gathered, GatheredBlocks
from nnopt_jax.arrays.input_quantized import InputQuantized, inputs_above
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.sum_ import Sum
from nnopt_jax.arrays.uneven_groups import UnevenGroups
from nnopt_jax.ops.levels import level_values
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense, after, whole_codes
from nnopt_jax.trace.packed.rules.gathers import gathered, gathered_blocks
from nnopt_jax.trace.packed.rules.grouped import filled_up, grouped
from nnopt_jax.trace.packed.rules.planes import planes_product
from nnopt_jax.trace.packed.rules.rounded import below, rounded, rounded_product
from nnopt_jax.trace.packed.rules.through import through
from nnopt_jax.typing import Array


def contract(x: Array, weight: Field, how: Contraction) -> Array:
    """A product with an array or a node.

    Raises:
        Dense: there is no way but to make the node dense.
    """
    weight = inputs_above(weight)
    if not is_node(weight):
        return how(x, weight)
    rule = RULES.get(type(weight))
    if rule is None:
        raise Dense("no product of its parts is the product of the whole")
    return rule(x, weight, how)


def _quantized(x: Array, weight: Quantized, how: Contraction) -> Array:
    r"""`sum_i x_i s_j (q_ij - z_j) = s_j sum_i x_i (q_ij - z_j)`."""
    x, scale = _to_inputs(x, show(weight.scale), weight.shape, how)
    coarse = (scale,) if weight.zero is None else (scale, weight.zero)
    if all(grid.shape[axis] == 1 for grid in coarse for axis in how.right):
        found = planes_product(x, weight.replace(scale=scale), how)
        if found is not None:
            return found
    return _scaled(x, whole_codes(weight), scale, how, weight.scale)


def _levels(x: Array, weight: Levels, how: Contraction) -> Array:
    """As of integers; levels are of float32, and so is the product."""
    if weight.below is not None:
        raise Dense("values below zero have a scale of their own")
    wide, scale = _to_inputs(x.astype(jnp.float32), show(weight.scale), weight.shape, how)
    values = level_values(show(weight.codes), weight.levels)
    return _scaled(wide, values, scale, how, weight.scale).astype(how.dtype(x))


def _to_inputs(
    x: Array, scale: Array, shape: tuple[int, ...], how: Contraction
) -> tuple[Array, Array]:
    """Scales of what is summed over alone are those of the inputs: `sum_i (x_i s_i) q_ij`."""
    if all(scale.shape[axis] == 1 for axis in how.right):
        return x, scale
    if any(n != 1 for axis, n in enumerate(scale.shape) if axis not in how.right):
        return x, scale
    wide = x.astype(jnp.float32) * how.over_inputs(scale, shape, x.ndim)
    return wide.astype(x.dtype), jnp.ones((1,) * len(shape), jnp.float32)


def _scaled(x: Array, values: Array, scale: Array, how: Contraction, field: Field) -> Array:
    """A product with values, each output scaled; by groups where scales are those of groups.

    Args:
        x: the array.
        values: of the weight, before they are scaled.
        scale: of the weight's rank.
        how: the product.
        field: the node of the scales, if they are in one.
    """
    if any(scale.shape[axis] != 1 for axis in how.right):
        if isinstance(field, UnevenGroups):
            return grouped(*filled_up(x, values, field, how), how)
        return grouped(x, values, scale, how)
    out = how.wide(x, values)
    return (out * how.over_weight(scale, values.shape, out.ndim)).astype(how.dtype(x))


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


def _reshaped(x: Array, weight: Reshaped, how: Contraction) -> Array:
    """The base, read in its own axes; what comes out is brought in those of the view."""
    if not weight.axes:
        return contract(x, weight.base, how)
    seen = through(weight.runs(), weight.shape, x.ndim, how)
    if seen is None:
        raise Dense("it is a view of another shape")
    inputs, there, outputs = seen
    return after(lambda: contract(inputs(x), weight.base, there), outputs)


def _rounded(x: Array, weight: InputQuantized, how: Contraction) -> Array:
    """The array is rounded first; the rounding stays where the weight is made dense."""
    found = rounded_product(x, weight, how)
    if found is not None:
        return found
    x = rounded(x, weight, how)
    return below(weight, lambda w: how(x, w), lambda w: contract(x, w, how))


RULES: dict[type, Callable[[Array, Any, Contraction], Array]] = {
    Quantized: _quantized,
    Levels: _levels,
    Factored: _factored,
    Sum: _sum,
    Reshaped: _reshaped,
    InputQuantized: _rounded,
    Gathered: gathered,
    GatheredBlocks: gathered_blocks,
}
"""How each kind of node is multiplied; others are made dense."""
