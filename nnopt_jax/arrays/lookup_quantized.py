"""Lookup-table quantization: indices into a small fixed table of levels, times a scale."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.hooks import CannotStayPacked
from nnopt_jax.arrays.nodes import Field, Node, is_node, materialize, node, static, store_field
from nnopt_jax.arrays.packed_integers import store_codes
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.ops.gradient_estimators import straight_through
from nnopt_jax.ops.grid import covers, expand
from nnopt_jax.ops.lookup_tables import level_values

_MOST = 256


@node
class LookupQuantized(Node):
    r"""Indices into a small fixed table of levels, times a scale for each block of weights.

    $$ w = s \, l_c $$

    Binary signs, NF4 and small floats are tables of levels. A scale of 0 stands for a block of
    zeros.

    Args:
        codes: `c`, indices into the levels, of the logical shape: float32 holding integers in
            training, so that they can be refined; packed integers in storage.
        scale: `s`, array or node, as it is stored. Each of its axes divides that of the codes: one
            entry for a scale per tensor, as many entries for one per channel, a number between for
            groups. Groups that do not divide an axis are `UnevenGroups`.
        below: a scale of its own for levels below zero, of the shape of `scale`; None to use
            `scale`.
        carry: the straight-through residual, which only receives the gradient of the latent weight
            and is not stored.
        levels: `l`, the table, ascending.
        dtype: dtype of the array the node stands for.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import LookupQuantized
        >>> signs = LookupQuantized(jnp.array([[0.0, 1.0]]), jnp.array([[0.5]]), levels=(-1.0, 1.0))
        >>> signs.materialize()
        Array([[-0.5,  0.5]], dtype=float32)
        >>> signs.store()
        LookupQuantized(codes 1-bit[1,2], scale float32[1,1], 20 bits/weight)
    """

    codes: Field
    scale: Field
    below: Field = None
    carry: Field = None
    levels: tuple[float, ...] = static(default=(-1.0, 1.0))
    dtype: Any = static(default="float32")  # pyright: ignore[reportIncompatibleMethodOverride]

    ELEMENTWISE = ("codes",)
    CODES = True
    SHARED = ()
    SLOTS = {"codes": "code"}  # noqa: RUF012 - a constant, as declared in Node

    def zero_code(self) -> int:
        """Return the number of levels below zero."""
        return sum(level < 0 for level in self.levels)

    def materialize(self) -> jax.Array:
        """Return `scale * levels[codes]`, computed in float32 and cast once, without -0."""
        values = self._values()
        scale = expand(materialize(self.scale).astype(jnp.float32), self.shape)
        if self.below is not None:
            below = expand(materialize(self.below).astype(jnp.float32), self.shape)
            scale = jnp.where(values < 0, below, scale)
        dense = (values * scale).astype(self.dtype)
        dense = jnp.where(dense == 0, jnp.zeros((), dense.dtype), dense)
        return dense if self.carry is None else straight_through(dense, self.carry)

    def _values(self) -> jax.Array:
        codes = materialize(self.codes)
        values = level_values(codes, self.levels)
        if not is_node(self.codes) or not jnp.issubdtype(codes.dtype, jnp.floating):
            return values
        # A later transform may refine the codes by gradients, for which one code counts as the mean
        # step of the levels.
        step = (self.levels[-1] - self.levels[0]) / max(len(self.levels) - 1, 1)
        return straight_through(values, codes.astype(jnp.float32) * jnp.float32(step))

    def store(self) -> LookupQuantized:
        """Pack the codes and drop the straight-through residual."""
        codes = store_codes(self.codes, 0, len(self.levels) - 1)
        below = None if self.below is None else store_field(self.below)
        return self.replace(codes=codes, scale=store_field(self.scale), below=below, carry=None)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that levels ascend, and that each axis of a scale divides that of the codes."""
        found = self.codes.problems(shape) if is_node(self.codes) else []
        for name in ("scale", "below"):
            scale = getattr(self, name)
            if scale is None:
                continue
            found += scale.problems(scale.shape) if is_node(scale) else []
            if not covers(scale.shape, shape):
                found.append(f"has {name} {scale.shape}, which does not divide {shape}")
        numbers = all(isinstance(level, int | float) for level in self.levels)
        if not numbers or not 1 <= len(self.levels) <= _MOST:
            found.append(f"has levels {self.levels!r}")
        elif list(self.levels) != sorted(set(self.levels)):
            found.append(f"has levels {self.levels!r}, which do not ascend")
        return found

    def dot(self, x: jax.Array, how: Product) -> jax.Array:
        """Multiply by the levels in float32, then by the scales."""
        if self.below is not None:
            raise CannotStayPacked("values below zero have a scale of their own")
        wide, values = how.in_float32(x, level_values(materialize(self.codes), self.levels))
        wide, scale = how.scales_to_inputs(wide, materialize(self.scale), self.shape)
        return how.scaled(wide, values, scale, self.scale).astype(how.dtype(x))
