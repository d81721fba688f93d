"""The storage form of a masked array: kept elements only, and where they belong."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.base import Field, Node, map_elementwise, node, show, static, summary
from nnopt_jax.arrays.bits import Bits, width_for


@node
class Gaps(Node):
    """A mask as relative indices: how many masked elements lie before each kept one.

    A gap of `2^width - 1` stands for that many masked elements and no kept one, so that long
    gaps are sums. Stands for a bool array.

    Args:
        codes: `Bits` (or an integer array) of the gaps, in flat order.
        shape: shape of the mask.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Gaps
        >>> gaps = Gaps.of(jnp.array([False, True, False, False, False, True]), width=2)
        >>> gaps.codes.materialize(), gaps.materialize()
        (Array([1, 3, 0], dtype=int32), Array([False,  True, False, False, False,  True], dtype=bool))

    References:
        Han et al. 2016, Deep Compression, section 2 (relative indices; they pad with zeros).
    """  # noqa: E501 - printed by the doctest

    codes: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    width: int = static(default=8)

    @classmethod
    def of(cls, mask: jax.Array, width: int) -> Gaps:
        """Encodes a concrete mask; the number of codes depends on it."""
        escape = 2**width - 1
        gaps = _gaps(np.asarray(mask))
        codes = np.full(int((gaps // escape + 1).sum()), escape, np.int32)
        codes[np.cumsum(gaps // escape + 1) - 1] = gaps % escape
        return cls(Bits.of(jnp.asarray(codes), width), tuple(mask.shape), width)

    @property
    def dtype(self) -> jnp.dtype:
        """Always bool."""
        return jnp.dtype(jnp.bool_)

    def materialize(self) -> jax.Array:
        """The bool mask."""
        codes = show(self.codes).astype(jnp.int32)
        kept = codes != 2**self.width - 1
        position = jnp.cumsum(codes + kept.astype(jnp.int32)) - 1
        size = math.prod(self.shape)
        flat = jnp.zeros(size, bool).at[jnp.where(kept, position, size)].set(True, mode="drop")
        return flat.reshape(self.shape)

    def store(self) -> Gaps:
        """Already in storage form."""
        return self

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The codes must be a flat run of integers."""
        codes = super().problems(shape)
        if self.codes.ndim != 1 or not 1 <= self.width <= 16:
            codes.append(f"has codes {self.codes!r} of width {self.width!r}")
        return codes

    def outline(self) -> str:
        """`gaps 5-bit[8000]`."""
        return f"gaps {summary(self.codes)}"


def _gaps(mask: np.ndarray) -> np.ndarray:
    """Masked elements before each kept one, in flat order."""
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


def _best_width(gaps: np.ndarray) -> tuple[int, int]:
    """The width of 1 to 8 bits that needs the fewest bits in all, and those bits."""
    costs = {width: int((gaps // (2**width - 1) + 1).sum()) * width for width in range(1, 9)}
    width = min(costs, key=costs.__getitem__)
    return width, costs[width]


def smallest_support(mask: jax.Array) -> Bits | Gaps:
    """Stores a mask as a bit for each element or as relative indices, whichever is smaller.

    Under `jax.jit` the mask is unknown and its bits, whose number is known, are taken.

    Args:
        mask: bool, any shape.

    Returns:
        `Bits` of width 1, or `Gaps`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.sparse import smallest_support
        >>> smallest_support(jnp.arange(1000) % 100 == 0), smallest_support(jnp.ones(8, bool))
        (gaps 7-bit[10], 1-bit[8])
    """
    if not isinstance(mask, Tracer) and mask.size:
        width, bits = _best_width(_gaps(np.asarray(mask)))
        if bits < mask.size:
            return Gaps.of(mask, width)
    return Bits.of(mask, width_for(2))


@node
class Sparse(Node):
    """Kept elements of an expression, and the support that says where they belong.

    Materializes as expand, inner formula, `where(support, ., 0)`: scales, zero points and tables
    stay those of the whole array, so any granularity survives a mask.

    Args:
        values: array or node whose elementwise fields hold the kept elements, in flat order.
        support: what stands for the bool mask: `Bits` of width 1, or `Gaps`.
        shape: logical shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Bits, Sparse
        >>> mask = jnp.array([[True, False], [False, True]])
        >>> Sparse(jnp.array([5.0, 7.0]), Bits.of(mask, 1), mask.shape).materialize()
        Array([[5., 0.],
               [0., 7.]], dtype=float32)
    """

    values: Field
    support: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def dtype(self) -> Any:
        """Dtype of the values."""
        return self.values.dtype

    def materialize(self) -> jax.Array:
        """Expands the kept elements, applies the inner formula, fills the rest with zero."""
        mask = show(self.support).astype(bool)
        position = jnp.cumsum(mask.ravel()) - 1

        def expand(kept: jax.Array) -> jax.Array:
            if not kept.size:
                return jnp.zeros(self.shape, kept.dtype)
            return jnp.take(kept, position, mode="clip").reshape(self.shape)

        values = show(map_elementwise(self.values, expand))
        return jnp.where(mask, values, jnp.zeros((), values.dtype))

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The support must have the logical shape, and be one of the two kinds."""
        found = super().problems(self.shape)
        if not isinstance(self.support, (Bits, Gaps)) or self.support.shape != self.shape:
            found.append(f"of shape {self.shape} has support {self.support!r}")
        return found

    def store(self) -> Sparse:
        """Already in storage form."""
        return self
