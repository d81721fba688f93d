"""A mask over an array or a node, the training form of pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.hooks import integers, join
from nnopt_jax.arrays.mask_format import NAMES, Format, Roles, n_of_m, support_of
from nnopt_jax.arrays.nodes import (
    Field,
    Node,
    compactable,
    is_node,
    kept,
    map_elementwise,
    materialize,
    node,
    static,
    store_field,
)
from nnopt_jax.arrays.packed_integers import Bits
from nnopt_jax.arrays.products.integer_products import IntegerWeight, under_mask
from nnopt_jax.arrays.sparse_array import Sparse
from nnopt_jax.ops.eager import count_true, kept_places, take_flat
from nnopt_jax.ops.gradient_estimators import straight_through


@node
class Masked(Node):
    """A masked weight, `where(mask, values, 0)`; only the mask decides which entries are zero.

    The values under the mask are ignored, even if they are infinite or NaN. In products, a masked
    weight is an ordinary zero, so an infinite or NaN input times it is NaN.

    Args:
        values: float array or node, of the logical shape.
        mask: bool array of the logical shape, True where a value is kept, or a sparse layout of it.
        capacity: the number of kept values, if it is known without looking at the mask; storage
            under `jax.jit` needs it.
        mode: the gradient of masked values. `"select"`: they get none. `"straight_through"`: they
            get the gradient at the masked weight, so that they may return. `"applied"`: the values
            are zero under the mask already, and the mask is not applied again.
        format: the storage format of the mask: `"smallest"`, `"bitmask"`, `"gaps"`, `"csr"`, or the
            pattern that the mask is known to have, such as `"2:4"` or block sizes `(4, 4)`.
        roles: the contracted, output and batch axes if the groups of `"n:m"` run along the
            flattened contracted axes; empty if they run along the axis before the last.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked
        >>> pruned = Masked(jnp.array([3.0, 1.0]), jnp.array([True, False]))
        >>> pruned.materialize()
        Array([3., 0.], dtype=float32)
        >>> pruned.store()
        Sparse(values float32[1], support 1-bit[2], 20 bits/weight)
    """

    values: Field
    mask: Field
    capacity: int | None = static(default=None)
    mode: str = static(default="select")
    format: Format = static(default="smallest")
    roles: Roles = static(default=(), late=True)

    ELEMENTWISE = ("values",)
    COMPACTABLE = False
    SHARED = ()
    LINEAR = ("values",)
    TYPED = ("values",)
    SLOTS = {"values": "value"}  # noqa: RUF012 - a constant, as declared in Node

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the mask."""
        return self.mask.shape

    def slot_mask(self, name: str, outer: jax.Array | None) -> jax.Array | None:
        """Return the entries that both this mask and the outer mask, if there is one, keep."""
        del name
        return self._kept_mask(outer)

    def kept(self) -> Field:
        """Return the mask, combined with that of the values if they have one."""
        below = kept(self.values)
        return self.mask if below is None else self._kept_mask(materialize(below).astype(bool))

    def _kept_mask(self, outer: jax.Array | None) -> jax.Array:
        own = materialize(self.mask).astype(bool)
        return own if outer is None else own & outer

    def materialize(self) -> jax.Array:
        """Return `where(mask, values, 0)`."""
        values = materialize(self.values)
        if self.mode == "applied" and not is_node(self.values):
            return values
        kept = jnp.where(materialize(self.mask).astype(bool), values, jnp.zeros((), values.dtype))
        if self.mode != "straight_through":
            return kept
        return straight_through(jax.lax.stop_gradient(kept), values)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that mask and values have the same shape."""
        found = super().problems(shape)
        if self.values.shape != self.mask.shape:
            found.append(f"has values {self.values.shape} and mask {self.mask.shape}")
        return found

    def integers(self) -> IntegerWeight | None:
        """Return the codes of the values, with codes of zero under the mask."""
        return under_mask(integers(self.values), materialize(self.mask).astype(bool))

    def join_key(self) -> Any:
        """Return the key without the capacity, since concatenation drops it."""
        return Node.join_key(self.replace(capacity=None))

    def joined(self, fields: Sequence[Masked], axis: int) -> Masked:
        """Concatenate the values and the masks."""
        values = join([field.values for field in fields], axis)
        masks = [materialize(field.mask).astype(bool) for field in fields]
        return self.replace(values=values, mask=jax.lax.concatenate(masks, axis), capacity=None)

    @property
    def fills_with_zeros(self) -> bool:
        """Whether padding with zeros pads the weight: always, since the padded mask is False."""
        return True

    def store(self) -> Node:
        """Return `Sparse` with the kept elements; if they cannot be compacted, pack the mask."""
        below = raise_mask(self.values)
        if isinstance(below, Masked):
            return self._merge(below).store()
        mask = materialize(self.mask).astype(bool)
        if not compactable(self.values):
            # A mask that is packed already, such as that of a stored base, stays as it is.
            return Masked(
                store_field(self.values), self.mask if is_node(self.mask) else Bits.of(mask, 1)
            )
        count = self._count(mask)
        kept = kept_places(mask, count)
        values = map_elementwise(without_carry(self.values), lambda x: take_flat(x, kept))
        return Sparse(store_field(values), support_of(mask, self.format, self.roles), mask.shape)

    def _count(self, mask: jax.Array) -> int:
        """Return the number of values that storage has room for."""
        if self.capacity is not None:
            return min(self.capacity, mask.size)
        pair = n_of_m(self.format)
        return mask.size // pair[1] * pair[0] if pair else count_true(mask)

    def _merge(self, inner: Masked) -> Masked:
        """Return one mask, the intersection of this one and a mask inside its values."""
        known = [count for count in (self.capacity, inner.capacity) if count is not None]
        capacity = min(known) if known else None
        mask = self._kept_mask(materialize(inner.mask).astype(bool))
        # The intersection need not have the pattern of either mask.
        format = self.format if self.format in NAMES else "smallest"
        return Masked(inner.values, mask, capacity, format=format)


def map_under_mask(field: Field, change: Callable[[Field], Field]) -> Field:
    """Apply a function to the node below the outer masks of a field, and keep the masks.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked
        >>> map_under_mask(Masked(jnp.ones(2), jnp.array([True, False])), lambda x: 2 * x).values
        Array([2., 2.], dtype=float32)
    """
    if not isinstance(field, Masked):
        return change(field)
    return field.replace(values=map_under_mask(field.values, change))


def zero_outside(field: Node, mask: Callable[[], jax.Array]) -> Node:
    """Mask the entries that padding has added, unless they are zeros already.

    Args:
        field: the node.
        mask: a function that returns the mask, False at padding; called only if it is needed.
    """
    return field if field.fills_with_zeros else Masked(field, mask())


def raise_mask(field: Field) -> Field:
    """Swap a mask with the zero-preserving nodes above it, so that masks can be merged.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, SoftThresholded
        >>> raise_mask(
        ...     SoftThresholded(Masked(jnp.ones(2), jnp.ones(2, bool)), jnp.float32(0.5))
        ... ).outline()
        'Masked(values SoftThresholded(values float32[2], threshold float32[]), mask bool[2])'
    """
    if not is_node(field) or not field.KEEPS_ZERO:
        return field
    (name,) = field.ELEMENTWISE
    below = raise_mask(getattr(field, name))
    if not isinstance(below, Masked):
        return field
    return below.replace(values=field.replace(**{name: below.values}))


def without_carry(field: Field) -> Field:
    """Drop straight-through residuals at any depth, so that they are neither cut nor stored.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, Quantized
        >>> grid = Quantized(jnp.ones(2), jnp.ones(1), carry=jnp.ones(2))
        >>> without_carry(Masked(grid, jnp.ones(2, bool))).outline()
        'Masked(values Quantized(codes float32[2], scale float32[1]), mask bool[2])'
    """
    if not is_node(field):
        return field
    dropped = {name: without_carry(inner) for name, inner in field.fields() if is_node(inner)}
    if "carry" in field.names():
        dropped["carry"] = None
    return field.replace(**dropped)
