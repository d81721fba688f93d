"""Uniform quantization: integer codes times a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.hooks import CannotStayPacked, order_in_memory
from nnopt_jax.arrays.nodes import Field, Node, is_node, materialize, node, static, store_field
from nnopt_jax.arrays.packed_integers import Bits, pack_integers, store_codes
from nnopt_jax.arrays.products.integer_products import IntegerWeight, split_int8_product
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.arrays.reshaped import Reshaped, swapped_axes, transposed_in_memory
from nnopt_jax.arrays.scales import UnevenGroups
from nnopt_jax.ops.gradient_estimators import straight_through
from nnopt_jax.ops.grid import covers, dequantize, expand
from nnopt_jax.typing import Array, Shape


@node
class Quantized(Node):
    r"""Integer codes on a uniform grid.

    $$ w = s \, (q - z), \qquad q \in \{lo, \dots, hi\} $$

    Args:
        codes: `q`, of the logical shape: float32 holding integers in training, so that they can
            be refined; packed integers in storage.
        scale: `s`, in the dtype in which it is stored. Each of its axes divides that of the codes:
            one entry for a scale per tensor, as many entries for one per channel, a number between
            for groups. Groups that do not divide an axis are `UnevenGroups`.
        zero: `z`, codes of the shape of `scale`, held and stored like `codes`; None for a symmetric
            grid.
        carry: the straight-through residual, which only receives the gradient of the latent weight
            and is not stored.
        low: the least code.
        high: the greatest code.
        dtype: dtype of the array the node stands for.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> grid = Quantized(jnp.array([[-2.0, 3.0]]), scale=jnp.array([[0.5]]))
        >>> grid.materialize()
        Array([[-1. ,  1.5]], dtype=float32)
        >>> grid.store()
        Quantized(codes int8[1,2], scale float32[1,1], 24 bits/weight)
    """

    codes: Field
    scale: Field
    zero: Field = None
    carry: Field = None
    low: int = static(default=-127)
    high: int = static(default=127)
    dtype: Any = static(default="float32")  # pyright: ignore[reportIncompatibleMethodOverride]

    ELEMENTWISE = ("codes",)
    CODES = True
    SHARED = ()
    SLOTS = {"codes": "code"}  # noqa: RUF012 - a constant, as declared in Node

    def zero_code(self) -> int:
        """Return the mean of the zero points; 0 without zero points, and for packed ones."""
        if self.zero is None or is_node(self.zero) or not self.zero.size:
            return 0
        return round(float(np.asarray(self.zero, np.float64).mean()))

    def materialize(self) -> jax.Array:
        """Return `scale * (codes - zero)`, in float32 and cast once."""
        zero = None if self.zero is None else materialize(self.zero)
        dense = dequantize(
            materialize(self.codes), materialize(self.scale), zero, jnp.dtype(self.dtype)
        )
        return dense if self.carry is None else straight_through(dense, self.carry)

    def store(self) -> Quantized:
        """Pack the codes and drop the straight-through residual."""
        codes = store_codes(self.codes, self.low, self.high)
        zero = self._stored_zero(self.zero)
        return self.replace(codes=codes, scale=store_field(self.scale), zero=zero, carry=None)

    def _stored_zero(self, zero: Field) -> Field:
        if isinstance(zero, UnevenGroups):
            return zero.replace(values=self._stored_zero(zero.values))
        if zero is None or is_node(zero) or not jnp.issubdtype(zero.dtype, jnp.floating):
            return zero
        return pack_integers(zero, self.low, self.high)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that each axis of the scale and the zero point divides that of the codes."""
        found = super().problems(shape)
        for name in ("scale", "zero"):
            grid = getattr(self, name)
            if grid is not None and not covers(grid.shape, shape):
                found.append(f"has {name} {grid.shape}, which does not divide {shape}")
        if not -32768 <= self.low <= self.high <= 65535:
            found.append(f"has codes from {self.low!r} to {self.high!r}")
        return found

    def dot(self, x: Array, how: Product) -> Array:
        r"""Compute `sum_i x_i s_j (q_ij - z_j)` as `s_j sum_i x_i (q_ij - z_j)`."""
        x, scale = how.scales_to_inputs(x, materialize(self.scale), self.shape)
        found = split_int8_product(x, self.replace(scale=scale), how)
        if found is not None:
            return found
        return how.scaled(x, self._shifted_codes(), scale, self.scale)

    def _shifted_codes(self) -> Array:
        """Return `q - z` in the dtype of the weight, which represents these integers exactly."""
        dtype = jnp.dtype(self.dtype)
        codes = materialize(self.codes).astype(dtype)
        if self.zero is None:
            return codes
        return codes - expand(materialize(self.zero).astype(dtype), self.shape)

    def prepack(self, backend: str) -> Quantized:
        """Transpose the codes in memory, unless the scales differ along the last axis but one."""
        del backend
        codes = self.codes
        is_packed = isinstance(codes, Bits)
        known = is_packed or (not is_node(codes) and codes.dtype.itemsize == 1)
        if not known or self.ndim < 2 or self.scale.shape[-2] != 1:
            return self
        if not is_packed:
            return self.replace(codes=transposed_in_memory(codes))
        order = swapped_axes(self.ndim)
        packed = Bits.of(codes.materialize().transpose(order), codes.width, codes.low)
        return self.replace(codes=Reshaped.of(packed, order))

    @property
    def fits_int8(self) -> bool:
        """Whether all codes have eight bits or fewer."""
        return -128 <= self.low <= self.high <= 127

    def integers(self) -> IntegerWeight | None:
        """Return the codes as int8; None if they do not fit."""
        if not self.fits_int8:
            return None
        zero = None if self.zero is None else materialize(self.zero)
        return IntegerWeight(
            materialize(self.codes).astype(jnp.int8), materialize(self.scale), zero
        )

    def order_in_memory(self) -> Shape:
        """Return the axes of the codes in their order in memory."""
        return order_in_memory(self.codes)

    @property
    def fills_with_zeros(self) -> bool:
        """Whether a code of zero stands for zero: true without a zero point."""
        return self.zero is None

    def times(self, number: Array) -> Quantized:
        """Multiply the scale by the scalar."""
        return self.replace(scale=_scale_times(self.scale, number))

    def joined(self, fields: Sequence[Quantized], axis: int) -> Quantized:
        """Concatenate the codes; scales and zero points get one entry for each group."""
        return self.replace(
            codes=jax.lax.concatenate([materialize(field.codes) for field in fields], axis),
            scale=_side_by_side(fields, "scale", axis),
            zero=None if self.zero is None else _side_by_side(fields, "zero", axis),
        )


def _scale_times(scale: Field, number: Array) -> Field:
    if isinstance(scale, UnevenGroups):
        return scale.replace(values=_scale_times(scale.values, number))
    # In float32, because a product of two float16 numbers may underflow. Other forms have few
    # entries.
    return materialize(scale).astype(jnp.float32) * number


def _side_by_side(fields: Sequence[Quantized], name: str, axis: int) -> Array:
    """Concatenate scales or zero points, expanded to the smallest group of all weights."""
    grids = [materialize(getattr(field, name)) for field in fields]
    if len({grid.shape[:axis] + grid.shape[axis + 1 :] for grid in grids}) > 1:
        raise CannotStayPacked("it is concatenated with others of another grid")
    sizes = [field.shape[axis] for field in fields]
    blocks = [size // grid.shape[axis] for size, grid in zip(sizes, grids, strict=True)]
    block = math.gcd(*blocks)  # the number of elements that share an entry in every weight
    # A weight that was multiplied by a scalar has scales of a wider dtype, which represents the
    # others.
    return jnp.concatenate(
        [jnp.repeat(grid, own // block, axis) for grid, own in zip(grids, blocks, strict=True)],
        axis,
    )
