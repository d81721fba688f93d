"""Masks: N:M patterns, ranks of kept entries, and the number of kept entries."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.ops.lookup_tables import lookup

MOST_CHOICES = 2**31
"""The greatest number of choices of n of m that 32 bits can number."""


def group_axis(shape: tuple[int, ...]) -> int:
    """Return the contracted axis: the one before the last, or the only one.

    Example:
        >>> group_axis((3, 3, 64, 128)), group_axis((8,))
        (2, 0)
    """
    return max(len(shape) - 2, 0)


def split_groups(x: jax.Array, m: int) -> jax.Array:
    """Move the entries of each group to a new last axis.

    Args:
        x: `(..., a, b)` or `(a,)`, `a` a multiple of `m`.
        m: entries of a group.

    Returns:
        `(..., a // m, b, m)` or `(a // m, m)`.

    Example:
        >>> split_groups(jnp.arange(8).reshape(4, 2), 2)[0]
        Array([[0, 2],
               [1, 3]], dtype=int32)
    """
    axis = group_axis(x.shape)
    split = (*x.shape[:axis], x.shape[axis] // m, m, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(split), axis + 1, -1)


def join_groups(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Move the entries of groups back to their axis; the inverse of `split_groups`.

    Args:
        groups: the result of `split_groups`.
        shape: the shape of the original array.

    Returns:
        The array.

    Example:
        >>> join_groups(split_groups(jnp.arange(4), 2), (4,))
        Array([0, 1, 2, 3], dtype=int32)
    """
    return jnp.moveaxis(groups, -1, group_axis(shape) + 1).reshape(shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def keep_n_of_m(scores: jax.Array, n: int, m: int) -> jax.Array:
    """Mark the `n` greatest scores of each group; among equal ones, the earlier.

    Args:
        scores: `(..., a, b)` or `(a,)`, float of either sign, `a` a multiple of `m`; NaN counts
            as infinity.
        n: entries that are kept.
        m: entries of a group.

    Returns:
        bool, of the shape of `scores`.

    Example:
        >>> keep_n_of_m(jnp.array([1.0, 3.0, 2.0, 0.0]), 2, 4)
        Array([False,  True,  True, False], dtype=bool)
    """
    # NaN compares as false, so that more than `n` entries would stay.
    scores = jnp.where(jnp.isnan(scores), jnp.asarray(jnp.inf, scores.dtype), scores)
    group = split_groups(scores, m)
    mine, other = group[..., :, None], group[..., None, :]
    earlier = jnp.tri(m, k=-1, dtype=bool).reshape((1,) * (group.ndim - 1) + (m, m))
    beaten = (other > mine) | ((other == mine) & earlier)
    return join_groups(beaten.sum(-1) < n, scores.shape)


@functools.partial(jax.jit, static_argnums=1)
def subset_rank(kept: jax.Array, n: int) -> jax.Array:
    r"""Return the combinatorial rank of each subset of `n` of `m` entries.

    $$ \sum_{i=1}^{n} \binom{p_i}{i}, \qquad p_1 < \dots < p_n \text{ the places kept} $$

    Args:
        kept: bool, `(..., m)`, with `n` True in each row.
        n: the number of True entries in each row.

    Returns:
        uint32, `(...)`, below `math.comb(m, n)`.

    Example:
        >>> subset_rank(jnp.array([[True, True, False, False], [False, False, True, True]]), 2)
        Array([0, 5], dtype=uint32)

    References:
        Knuth, The Art of Computer Programming 4A, section 7.2.1.3 (the combinatorial number
        system).
    """
    m = kept.shape[-1]
    nth = jnp.minimum(jnp.cumsum(kept, axis=-1), n)
    terms = jnp.asarray(_choices(m, n))[jnp.arange(m).reshape((1,) * (kept.ndim - 1) + (m,)), nth]
    return jnp.where(kept, terms, jnp.uint32(0)).sum(-1, dtype=jnp.uint32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def subset_of_rank(rank: jax.Array, n: int, m: int) -> jax.Array:
    """Return the subset of `n` of `m` entries for each rank; the inverse of `subset_rank`.

    Args:
        rank: non-negative integers of any shape.
        n: the number of entries that each subset keeps.
        m: the number of entries in each group.

    Returns:
        bool, with a new last axis of `m`.

    Example:
        >>> subset_of_rank(jnp.array([0, 5]), 2, 4)
        Array([[ True,  True, False, False],
               [False, False,  True,  True]], dtype=bool)
    """

    def place(
        state: tuple[jax.Array, jax.Array], choices: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        rest, left = state
        term = lookup(choices, left)
        # If no entry is left to place, the term is 1, which no remaining rank reaches.
        here = (left > 0) & (rest >= term)
        return (jnp.where(here, rest - term, rest), left - here.astype(jnp.int32)), here

    rest = rank.astype(jnp.uint32)
    left = (rest & 0).astype(jnp.int32) + n  # sharded like the ranks
    # A loop rather than unrolled steps, which take minutes to compile for large groups.
    _, kept = lax.scan(place, (rest, left), jnp.asarray(_choices(m, n)), reverse=True)
    return jnp.moveaxis(kept, 0, -1)


def _choices(m: int, n: int) -> np.ndarray:
    """Return the binomial coefficients `comb(i, k)`, `(m, n + 1)`, clipped to 32 bits."""
    top = 2**32 - 1
    rows = [[min(math.comb(place, count), top) for count in range(n + 1)] for place in range(m)]
    return np.asarray(rows, np.uint32)


_BITS, _WORDS = 32, 128  # bits of a word, and words of a block


def mask_rank(mask: jax.Array) -> jax.Array:
    r"""Return the number of kept elements before each element, in flat order.

    $$ r_i = \sum_{j < i} m_j $$

    A single cumulative sum over all elements is slow on CPUs. Sums therefore run over blocks of
    4,096 elements and over the 32-bit words of a block; within a word, lower bits are counted.

    Args:
        mask: bool of any shape, with at most `2**31 - 1` elements.

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
    before = _exclusive_sum(counts.sum(1))[:, None] + _exclusive_sum(counts)
    return (before[..., None] + inside).ravel()[:size]


def _exclusive_sum(counts: jax.Array) -> jax.Array:
    """Return the exclusive cumulative sum along the last axis."""
    return jnp.cumsum(counts, axis=-1) - counts


_ONE = 1 << 30  # fractions are rounded to multiples of its inverse, exact in float32
_HALF, _LIMB = _ONE >> 1, 15


def count_kept(size: int, share: Any) -> Any:
    r"""Return how many of `size` entries are kept when a fraction is pruned.

    $$ n - \mathrm{round}(n\, s) $$

    The computation uses integers, because eager and compiled code round floats differently, and the
    capacity of storage must equal the number that a mask keeps. The fraction is read as float32;
    ties go to the even count.

    Args:
        size: `n`, less than `2**31`.
        share: the pruned fraction `s`, from 0 to 1: a Python number or a scalar array; NaN counts
            as 0.

    Returns:
        A Python int if the fraction is a Python number, else int32.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.ops.masks import count_kept
        >>> count_kept(10, 0.75), int(count_kept(10, jnp.float32(0.75)))
        (2, 2)
    """
    if isinstance(share, numbers.Real):
        parts = int(np.rint(np.float32(share) * np.float32(_ONE)))
        gone, rest = divmod(size * parts, _ONE)
        return size - gone - (rest > _HALF or (rest == _HALF and (size - gone) % 2))
    share = jnp.nan_to_num(jnp.asarray(share, jnp.float32), nan=0.0)
    parts = jnp.round(share * jnp.float32(_ONE)).astype(jnp.uint32)
    gone, rest = _divide(size, parts)
    left = jnp.uint32(size) - gone
    up = (rest > _HALF) | ((rest == _HALF) & (left % 2 == 1))
    return (left - up).astype(jnp.int32)


def _divide(size: int, parts: Any) -> tuple[Any, Any]:
    """Return quotient and remainder of `size * parts` by `2**30`, computed in 32-bit words."""
    low, high = jnp.uint32(size & 0xFFFF), jnp.uint32(size >> 16)
    below, above = parts & ((1 << _LIMB) - 1), parts >> _LIMB
    least = low * below
    # In units of 2**15; the sum stays below 2**32, because sizes are below 2**31.
    middle = 2 * (high * below) + low * above + (least >> _LIMB)
    rest = ((middle & ((1 << _LIMB) - 1)) << _LIMB) + (least & ((1 << _LIMB) - 1))
    return 2 * (high * above) + (middle >> _LIMB), rest
