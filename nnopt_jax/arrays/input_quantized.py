"""Weights whose products quantize their activations."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.hooks import (
    CannotStayPacked,
    dot,
    inputs_above,
    integers,
    order_in_memory,
)
from nnopt_jax.arrays.masked import without_carry
from nnopt_jax.arrays.nodes import Field, Node, is_node, materialize, node, static, store_field
from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.arrays.products.dispatch import use_int8
from nnopt_jax.arrays.products.integer_products import (
    in_rows,
    integer_product,
    product_sizes,
    weighed,
)
from nnopt_jax.arrays.products.product import Product, differentiated_as
from nnopt_jax.ops.gradient_estimators import gate, straight_through
from nnopt_jax.ops.grid import dequantize, fit_grid, integer_range, quantize
from nnopt_jax.typing import Array


@node
class InputQuantized(Node):
    r"""A weight whose products first quantize the other operand, the activations.

    $$ x \cdot W \;\to\; \hat x \cdot W, \qquad
       \hat x = s \, \mathrm{clip}(\mathrm{round}(x / s), -hi, hi) $$

    The node materializes as the weight alone; `nnopt_jax.on_packed` rounds the activations when it
    multiplies.

    Args:
        values: array or node, the weight.
        scale: `s`, float32, of the rank of the weight, with one entry along all axes but batch axes
            (layers or experts); None to scale each row of activations by its greatest magnitude.
        dense: the weight as an array, at which products compute their gradients; in training only.
        input_bits: bits of the codes of the activations, 2 to 8.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized
        >>> node = InputQuantized(jnp.array([[1.0], [2.0]]), jnp.array([[0.5]]))
        >>> node, node.materialize().shape
        (InputQuantized(values float32[2,1], scale float32[1,1], 48 bits/weight), (2, 1))
    """

    values: Field
    scale: Field = None
    dense: Field = None
    input_bits: int = static(default=8)

    ELEMENTWISE = ("values",)
    KEEPS_ZERO = True
    SHARED = ()
    TYPED = ("values", "dense")
    FACTORS = ("values",)
    ROUNDS_INPUTS = True
    SLOTS = {"values": "inherit"}  # noqa: RUF012 - a constant, as declared in Node

    def materialize(self) -> jax.Array:
        """Return the dense weight."""
        return materialize(self.values if self.dense is None else self.dense)

    def store(self) -> InputQuantized:
        """Return the storage form, without the array that only gradients need."""
        return self.replace(values=store_field(self.values), dense=None)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the scale has the weight's rank, and on each axis its size or 1."""
        found = super().problems(shape)
        sizes = () if self.scale is None else self.scale.shape
        fits = len(sizes) == len(shape) and all(
            one in (1, size) for one, size in zip(sizes, shape, strict=True)
        )
        if self.scale is not None and not fits:
            found.append(f"has scale {sizes}, which does not fit {shape}")
        return found

    def loosened(self) -> InputQuantized:
        """Materialize the weight, and keep rounding the inputs of its products."""
        return self.replace(values=self.materialize(), dense=None)

    def dot(self, x: Array, how: Product) -> Array:
        """Round the array first, then multiply, even if the weight must be materialized."""
        found = _int8_product(x, self, how)
        if found is not None:
            return found
        x = _round_inputs(x, self, how.inputs)
        if self.dense is not None:
            return how(x, self.dense)
        try:
            return dot(x, self.values, how)
        except CannotStayPacked as reason:
            raise CannotStayPacked(str(reason), how(x, self.materialize())) from reason


class _QuantizedRows(NamedTuple):
    """Activations quantized with one scale for each row.

    Args:
        codes: integers held in float32, NaN where the array is NaN.
        scale: the scales, with one entry along contracted axes.
    """

    codes: Array
    scale: Array


def rounds_inputs(field: Field) -> bool:
    """Return whether a node holds a weight whose products round their inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized, Sum
        >>> from nnopt_jax.arrays.input_quantized import rounds_inputs
        >>> rounds_inputs(Sum(InputQuantized(jnp.ones(2)), jnp.ones(2))), rounds_inputs(jnp.ones(2))
        (True, False)
    """
    if not is_node(field) or isinstance(field, InputQuantized):
        return is_node(field)
    return any(rounds_inputs(inner) for _, inner in field.fields())


def for_products(field: Field) -> InputQuantized | None:
    """Return the codes of a weight for products in training; the codes get no gradient.

    Replace `dense` of the result by the dense weight at which gradients are computed. The result is
    None where only a part of the weight is rounded, such as the base below adapters.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized, Quantized
        >>> from nnopt_jax.arrays.input_quantized import for_products
        >>> grid = Quantized(jnp.ones((2, 2)), jnp.ones((1, 1)), carry=jnp.ones((2, 2)))
        >>> print(for_products(InputQuantized(grid)).values.carry)
        None
    """
    above = inputs_above(field)
    if not isinstance(above, InputQuantized):
        return None
    return jax.tree.map(jax.lax.stop_gradient, without_carry(above))


def _rows_of(x: Array, weight: InputQuantized, how: Contraction) -> _QuantizedRows:
    """Quantize the activations to the grid that the node of the weight specifies."""
    low, high = integer_range(weight.input_bits)
    x = lax.stop_gradient(x)
    if weight.scale is None:
        block = tuple(max(n, 1) if axis in how.left else 1 for axis, n in enumerate(x.shape))
        scale, _ = fit_grid(x, weight.input_bits, block)
    else:
        scale = _scale_of_rows(materialize(weight.scale), x.ndim, how)
    return _QuantizedRows(quantize(x, scale, None, low, high), scale)


def _scale_of_rows(scale: Array, ndim: int, how: Contraction) -> Array:
    """Return the input scale of each batch index, at the rank of the array.

    Where a batch axis of the weight is contracted or free in this product, one grid has to serve
    all its indices.
    """
    others = tuple(axis for axis in range(scale.ndim) if axis not in how.right_batch)
    batch = scale.max(others)  # in the order of the weight's axes
    own = sorted(how.right_batch)
    left = [how.left_batch[how.right_batch.index(axis)] for axis in own]
    batch = batch.transpose(sorted(range(len(own)), key=left.__getitem__))
    return lax.expand_dims(batch, [axis for axis in range(ndim) if axis not in how.left_batch])


def _round_inputs(x: Array, weight: InputQuantized, how: Contraction) -> Array:
    """Round the activations as the node specifies, with straight-through gradients.

    Activations beyond a static range get no gradient.
    """
    codes, scale = _rows_of(x, weight, how)
    rounded = dequantize(codes, scale, None, x.dtype)
    if weight.scale is None:
        return straight_through(rounded, x)
    _, high = integer_range(weight.input_bits)
    size = jnp.abs(lax.stop_gradient(x).astype(jnp.float32))
    return straight_through(rounded, gate(x, size * (1 / scale) <= high))


def _int8_product(x: Array, weight: InputQuantized, how: Product) -> Array | None:
    """Multiply codes in 32-bit integers; return None without codes, or where floats are faster.

    `sum_i s_r a_ri s_j (q_ij - z_j) = s_r s_j (sum_i a_ri q_ij - z_j sum_i a_ri)`. Gradients are
    those of the product of the dequantized arrays.
    """
    if not isinstance(how, Contraction):
        return None
    rows, inner, outer = product_sizes(weight.shape, x.shape, how)
    most = 2 ** (weight.input_bits - 1) * 256 * inner
    if most >= 2**31 or not use_int8(rows, inner, outer):
        return None
    grid = jax.eval_shape(integers, weight.values)
    if grid is None or any(grid.scale.shape[axis] != 1 for axis in how.right):
        return None
    return differentiated_as(_floats, _exact, how, x, weight)


def _floats(how: Contraction, x: Array, weight: InputQuantized) -> Array:
    return how(_round_inputs(x, weight, how), weight.materialize())


def _exact(how: Contraction, x: Array, weight: InputQuantized) -> Array:
    grid = integers(weight.values)  # inside of `jit`, where transposes cancel
    assert grid is not None
    codes, scale = _rows_of(x, weight, how)
    known = ~jnp.isnan(codes).any(how.left, keepdims=True)
    codes = in_rows(codes.astype(jnp.int8), how)
    summed = integer_product(codes, grid.codes, how, order_in_memory(weight.values))
    totals = None if grid.zero is None else codes.sum(-1, keepdims=True, dtype=jnp.int32)
    out = weighed(summed, totals, grid, x.shape, how)
    out = out * how.over_rows(jnp.where(known, scale, jnp.nan), out.ndim)
    return out.astype(how.dtype(x))
