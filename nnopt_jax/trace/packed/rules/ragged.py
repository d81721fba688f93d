"""Products of groups of rows with packed experts, `jax.lax.ragged_dot`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.input_quantized import InputQuantized, inputs_above
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.ops.levels import level_values
from nnopt_jax.trace.jaxpr import Equation, bind
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense, whole_codes
from nnopt_jax.trace.packed.rules.rounded import below, rounded
from nnopt_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of an array, group after group, each multiplied with the matrix of its group.

    Args:
        equation: the step.
        rows: the axis of the array that holds the groups.
        left: the axis of the array that is summed over.
        groups: the axis of the weight that numbers its matrices.
        right: the axis of the weight that is summed over.
    """

    equation: Equation
    rows: int
    left: int
    groups: int
    right: int

    @classmethod
    def of(cls, equation: Equation) -> Ragged:
        """Return the axes of a `ragged_dot` equation.

        Raises:
            Dense: the groups lie along what is summed over, or there are batches.
        """
        numbers = equation.params["ragged_dot_dimension_numbers"]
        (left, right), (batch, _) = numbers.dot_dimension_numbers
        (rows,), groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
        if batch or len(left) != 1 or rows in left or len(groups) != 1:
            raise Dense("its groups are not those of rows")
        return cls(equation, rows, left[0], groups[0], right[0])

    def product(self, x: Array, weight: Array, sizes: Array) -> Array:
        """The product with the matrices themselves."""
        return bind(self.equation, [x, weight, sizes])[0]

    def per_row(self, scale: Array, x: Array, sizes: Array) -> Array:
        """Scales of groups and outputs, one for each entry of the product.

        Args:
            scale: of the weight's rank, one entry along what is summed over.
            x: the array.
            sizes: how many rows each group has.
        """
        outs = [a for a in range(scale.ndim) if a not in (self.groups, self.right)]
        scale = scale.transpose((self.groups, *outs, self.right))[..., 0]
        if scale.shape[0] != 1:
            ends = jnp.cumsum(sizes)
            group = jnp.searchsorted(ends, jnp.arange(x.shape[self.rows]), side="right")
            # Rows beyond the last group are zero in the product, whatever their scale.
            scale = jnp.take(scale, group, 0, mode="clip")
        free = [a for a in range(x.ndim) if a != self.left]
        shape = [scale.shape[0] if a == self.rows else 1 for a in free]
        return scale.reshape(*shape, *scale.shape[1:])


def ragged_product(x: Array, weight: Field, sizes: Array, how: Ragged) -> Array:
    r"""Multiply by codes: `y_r = s_{g(r)} \sum_i x_{ri} q_{g(r),i}`.

    Args:
        x: the array.
        weight: the experts, an array or a node.
        sizes: how many rows each of them takes.
        how: the product.

    Raises:
        Dense: there is no way but to materialize the weight.
    """
    weight = inputs_above(weight)
    if not is_node(weight):
        return how.product(x, weight, sizes)
    if isinstance(weight, InputQuantized):
        inputs = rounded(x, weight, Contraction((how.left,), (how.right,), (), ()))
        return below(
            weight,
            lambda w: how.product(inputs, w, sizes),
            lambda w: ragged_product(inputs, w, sizes, how),
        )
    if isinstance(weight, Factored):
        return _factors(x, weight, sizes, how)
    if isinstance(weight, Levels) and weight.below is None:
        values = level_values(show(weight.codes), weight.levels).astype(x.dtype)
        return _scaled(x, values, show(weight.scale), sizes, how)
    if isinstance(weight, Quantized):
        return _scaled(x, whole_codes(weight), show(weight.scale), sizes, how)
    raise Dense("no product of its parts is the product of the whole")


def _scaled(x: Array, values: Array, scale: Array, sizes: Array, how: Ragged) -> Array:
    if scale.shape[how.right] != 1:
        raise Dense("its scales differ along axes that are summed over")
    if any(n not in (1, m) for n, m in zip(scale.shape, values.shape, strict=True)):
        raise Dense("its scales are those of groups of outputs")
    out = how.product(x, values, sizes)
    scales = how.per_row(scale, x, sizes)
    return (out.astype(jnp.float32) * scales).astype(out.dtype)


def _factors(x: Array, weight: Factored, sizes: Array, how: Ragged) -> Array:
    """`x (u v) = (x u) v`, group by group."""
    if (x.ndim, weight.ndim, how.groups, how.right, how.left) != (2, 3, 0, 1, 1):
        raise Dense("its factors lie along other axes")
    inner = lax.ragged_dot(x, show(weight.u).astype(x.dtype), sizes)
    return lax.ragged_dot(inner, show(weight.v).astype(x.dtype), sizes)
