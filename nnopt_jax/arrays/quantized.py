"""Codes on a uniform grid."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, Node, is_node, node, show, static, store_field
from nnopt_jax.arrays.bits import pack_integers
from nnopt_jax.arrays.uneven_groups import UnevenGroups
from nnopt_jax.ops.grid import covers, dequantize
from nnopt_jax.ops.straight_through import straight_through


@node
class Quantized(Node):
    r"""Integers on a uniform grid.

    .. math:: w = s \, (q - z), \qquad q \in \{lo, \dots, hi\}

    Args:
        codes: `q`, of the logical shape: float32 holding integers in training, so that they can
            be refined; packed integers in storage.
        scale: `s`, already in the dtype it is stored in; each of its axes divides that of the
            codes (one entry: per tensor; as many entries: per channel; between: groups). Groups
            that do not divide an axis are `UnevenGroups`.
        zero: `z`, codes of the shape of `scale`, held and stored as `codes` are; None for a
            symmetric grid.
        carry: the float array the codes replaced; it only takes the gradient, and is not stored.
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
    SLOTS = {"codes": "code"}  # noqa: RUF012 - a constant, as declared in Node

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    def materialize(self) -> jax.Array:
        """`scale * (codes - zero)`, in float32, cast once."""
        zero = None if self.zero is None else show(self.zero)
        dense = dequantize(show(self.codes), show(self.scale), zero, jnp.dtype(self.dtype))
        return dense if self.carry is None else straight_through(dense, self.carry)

    def store(self) -> Quantized:
        """Packs the codes and drops the carry."""
        codes = (
            store_field(self.codes)
            if is_node(self.codes)
            else pack_integers(self.codes, self.low, self.high)
        )
        zero = self._stored_zero(self.zero)
        return self.replace(codes=codes, scale=store_field(self.scale), zero=zero, carry=None)

    def _stored_zero(self, zero: Field) -> Field:
        if isinstance(zero, UnevenGroups):
            return zero.replace(values=self._stored_zero(zero.values))
        if zero is None or is_node(zero) or not jnp.issubdtype(zero.dtype, jnp.floating):
            return zero
        return pack_integers(zero, self.low, self.high)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Every axis of the scale (and of the zero point) must divide that of the codes."""
        found = super().problems(shape)
        for name in ("scale", "zero"):
            grid = getattr(self, name)
            if grid is not None and not covers(grid.shape, shape):
                found.append(f"has {name} {grid.shape}, which does not divide {shape}")
        if not -32768 <= self.low <= self.high <= 65535:
            found.append(f"has codes from {self.low!r} to {self.high!r}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Quantized:
        """Scales and zero points follow the weight along the axes where they have entries."""
        return self.specs_alike(spec, mesh)
