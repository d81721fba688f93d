"""Where each kept element of a mask stands among the kept ones."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_BITS, _WORDS = 32, 128  # bits of a word; words of a block, counted by themselves


def mask_rank(mask: jax.Array) -> jax.Array:
    r"""How many elements are kept before each, in flat order.

    .. math:: r_i = \sum_{j < i} m_j

    One cumulative sum over all elements is slow on processors. Here sums run over blocks of 4,096
    elements and the words of a block; inside a word of 32 the bits below one's own are counted.

    Args:
        mask: bool, any shape, at most `2**31 - 1` elements.

    Returns:
        int32, `(mask.size,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> mask_rank(jnp.array([[True, False], [True, True]]))
        Array([0, 1, 1, 2], dtype=int32)

    References:
        Jacobson 1989, Space-efficient Static Trees and Graphs, section 2 (rank).
    """
    size = math.prod(mask.shape)
    blocks = -(-size // (_BITS * _WORDS))
    flat = jnp.pad(mask.ravel(), (0, blocks * _WORDS * _BITS - size))
    place = jnp.arange(_BITS, dtype=jnp.uint32).reshape(1, 1, _BITS)
    bits = flat.reshape(blocks, _WORDS, _BITS).astype(jnp.uint32) << place
    words = bits.sum(-1, dtype=jnp.uint32)
    counts = jax.lax.population_count(words).astype(jnp.int32)
    below = (jnp.uint32(1) << place) - 1
    inside = jax.lax.population_count(words[..., None] & below).astype(jnp.int32)
    before = _before(counts.sum(1))[:, None] + _before(counts)
    return (before[..., None] + inside).ravel()[:size]


def _before(counts: jax.Array) -> jax.Array:
    """Sums of what stands before each entry of the last axis."""
    return jnp.cumsum(counts, axis=-1) - counts
