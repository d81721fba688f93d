"""Groups of m entries along the axis before the last, and which n of them are kept."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.ops.lookup import lookup

MOST_CHOICES = 2**31
"""Ways to choose n of m that a number of 32 bits tells apart with ease."""


def group_axis(shape: tuple[int, ...]) -> int:
    """The axis a contraction runs over: the one before the last, or the only one.

    Example:
        >>> group_axis((3, 3, 64, 128)), group_axis((8,))
        (2, 0)
    """
    return max(len(shape) - 2, 0)


def split_groups(x: jax.Array, m: int) -> jax.Array:
    """Lays the entries of each group along a new last axis.

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
    """Undoes `split_groups`.

    Args:
        groups: what it returned.
        shape: that of the array it was given.

    Returns:
        The array.

    Example:
        >>> join_groups(split_groups(jnp.arange(4), 2), (4,))
        Array([0, 1, 2, 3], dtype=int32)
    """
    return jnp.moveaxis(groups, -1, group_axis(shape) + 1).reshape(shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def keep_n_of_m(scores: jax.Array, n: int, m: int) -> jax.Array:
    """Marks the `n` greatest scores of each group; of equal ones the earlier.

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
    # NaN compares as less than nothing, and more than `n` would stay.
    scores = jnp.where(jnp.isnan(scores), jnp.asarray(jnp.inf, scores.dtype), scores)
    group = split_groups(scores, m)
    mine, other = group[..., :, None], group[..., None, :]
    earlier = jnp.tri(m, k=-1, dtype=bool).reshape((1,) * (group.ndim - 1) + (m, m))
    beaten = (other > mine) | ((other == mine) & earlier)
    return join_groups(beaten.sum(-1) < n, scores.shape)


@functools.partial(jax.jit, static_argnums=1)
def subset_rank(kept: jax.Array, n: int) -> jax.Array:
    r"""Numbers the ways to keep `n` of `m`, without gaps.

    .. math:: \sum_{i=1}^{n} \binom{p_i}{i}, \qquad p_1 < \dots < p_n \text{ the places kept}

    Args:
        kept: bool, `(..., m)`, with `n` True in each row.
        n: how many are kept.

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
    """Undoes `subset_rank`.

    Args:
        rank: unsigned or positive integers, any shape.
        n: how many are kept.
        m: of how many.

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
        # Where nothing is left to place, the term is 1 and no rank reaches it.
        here = (left > 0) & (rest >= term)
        return (jnp.where(here, rest - term, rest), left - here.astype(jnp.int32)), here

    rest = rank.astype(jnp.uint32)
    left = (rest & 0).astype(jnp.int32) + n  # lies over a mesh as the ranks do
    # As one loop: written out, large groups take the compiler minutes.
    _, kept = lax.scan(place, (rest, left), jnp.asarray(_choices(m, n)), reverse=True)
    return jnp.moveaxis(kept, 0, -1)


def _choices(m: int, n: int) -> np.ndarray:
    """`comb(place, count)`, `(m, n + 1)`; no sum of them that is needed exceeds 32 bits."""
    top = 2**32 - 1
    rows = [[min(math.comb(place, count), top) for count in range(n + 1)] for place in range(m)]
    return np.asarray(rows, np.uint32)
