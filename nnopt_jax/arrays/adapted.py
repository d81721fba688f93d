"""Nodes of adapters: a base plus a correction (LoRA), and a magnitude times a direction (DoRA)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, dot
from nnopt_jax.arrays.nodes import Field, Node, field_specs, kept, materialize, node
from nnopt_jax.arrays.products.product import Product
from nnopt_jax.ops.block_formats import exponent


@node
class Sum(Node):
    r"""The sum of a base weight and a correction.

    $$ W = W_0 + \Delta $$

    Args:
        base: array or node.
        delta: array or node of the same logical shape, such as the factors of an adapter.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Factored, Sum
        >>> Sum(jnp.ones((1, 2)), Factored(jnp.ones((1, 1)), jnp.array([[1.0, 2.0]]))).materialize()
        Array([[2., 3.]], dtype=float32)
    """

    base: Field
    delta: Field

    SHARED = ()
    LINEAR = ("base", "delta")
    FACTORS = ("base", "delta")
    SLOTS = {"base": "value"}  # noqa: RUF012 - a constant, as declared in Node

    def materialize(self) -> jax.Array:
        """Return `base + delta`, in float32 and cast once to the dtype of the base."""
        base, delta = (materialize(term).astype(jnp.float32) for term in (self.base, self.delta))
        return (base + delta).astype(self.dtype)

    def slot_mask(self, name: str, outer: jax.Array | None) -> jax.Array | None:
        """Return the outer mask unchanged, since the base has the axes of the weight."""
        del name
        return outer

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that both terms have one shape."""
        found = super().problems(shape)
        if self.base.shape != self.delta.shape:
            found.append(f"has terms {self.base.shape} and {self.delta.shape}")
        return found

    def dot(self, x: jax.Array, how: Product) -> jax.Array:
        """Multiply by both terms, `x (w + d) = x w + x d`; the base may be materialized."""
        how = how.as_contraction()
        delta = dot(x, self.delta, how)
        try:
            base = dot(x, self.base, how)
        except CannotStayPacked:
            base = how(x, materialize(self.base))
        return (base.astype(jnp.float32) + delta.astype(jnp.float32)).astype(base.dtype)


@node
class Normalized(Node):
    r"""A weight decomposed into a magnitude for each column and a direction.

    $$ W = m \, \frac{V}{\lVert V \rVert} $$

    The norm is taken over all entries that share one value of `m`. It passes no gradient, as in
    DoRA, section 4.3. Where the norm is zero, the weight is zero.

    Args:
        base: `V`, array or node.
        magnitude: `m`, of the same rank as `V`; each axis has the size of `V` or 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Normalized
        >>> Normalized(jnp.array([[3.0, 0.0], [4.0, 0.0]]), jnp.array([[10.0, 1.0]])).materialize()
        Array([[6., 0.],
               [8., 0.]], dtype=float32)
    """

    base: Field
    magnitude: Field

    SLOTS = {"base": "value"}  # noqa: RUF012 - a constant, as declared in Node

    def materialize(self) -> jax.Array:
        """Return `magnitude * base / norm`, in float32 and cast once to the dtype of the base."""
        base, length = (materialize(x).astype(jnp.float32) for x in (self.base, self.magnitude))
        norm = norm_like(base, length.shape)
        share = jnp.where(norm > 0, length / jnp.where(norm > 0, norm, 1.0), 0.0)
        return (base * share).astype(self.dtype)

    def kept(self) -> Field:
        """Return the mask of the base; a masked entry of the base is zero in the weight, too."""
        return kept(self.base)

    def slot_mask(self, name: str, outer: jax.Array | None) -> jax.Array | None:
        """Return the outer mask unchanged, since the base has the axes of the weight."""
        del name
        return outer

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that each axis of the magnitude has the size of the base or 1."""
        found = super().problems(shape)
        sizes = self.magnitude.shape
        fits = len(sizes) == self.base.ndim and all(
            one in (1, size) for one, size in zip(sizes, self.base.shape, strict=True)
        )
        if not fits:
            found.append(f"has a base {self.base.shape} and a magnitude {sizes}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Normalized:
        """Shard the base like the weight, and the magnitude on axes of several values."""
        fields = {name: field_specs(field, spec, mesh) for name, field in self.fields()}
        return self.replace(**fields)


def norm_like(base: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return Euclidean norms over the axes on which `shape` has one entry, without gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.adapted import norm_like
        >>> norm_like(jnp.array([[3.0, 1.0], [4.0, 0.0]]), (1, 2))
        Array([[5., 1.]], dtype=float32)
    """
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    base = jax.lax.stop_gradient(base).astype(jnp.float32)
    power = exponent(base, axes)
    square = jnp.square(jnp.ldexp(base, -power)).sum(axes, keepdims=True)
    return jnp.ldexp(jnp.sqrt(square), power)
