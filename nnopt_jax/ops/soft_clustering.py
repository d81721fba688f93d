"""Differentiable k-means, in which each value belongs to all clusters by degrees."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

_CHUNK = 1 << 20
"""The greatest number of pairs of values and clusters in memory at a time."""


def soft_assign(values: ArrayLike, table: ArrayLike, width: ArrayLike) -> Array:
    r"""Replace each value by a mean of table entries, weighted by their closeness.

    $$ y_i = \sum_c a_{ic} t_c, \qquad
       a_{i\cdot} = \mathrm{softmax}_c\left(-\frac{(w_i - t_c)^2}{h^2}\right) $$

    Memory is proportional to the values, not to all pairs of values and clusters, also in the
    backward pass: chunks are computed one after another, and recomputed for the gradient.

    Args:
        values: float, any shape.
        table: `(clusters,)`, in any order.
        width: `h`, positive scalar, the root of the temperature; as it approaches 0, the result
            approaches the nearest entry.

    Returns:
        float32 of the shape of `values`; differentiable in all arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> print(soft_assign(jnp.array([0.0, 0.5, 0.9]), jnp.array([0.0, 1.0]), 0.3).round(2))
        [0.   0.5  1.  ]

    References:
        Cho et al. 2022, DKM: Differentiable K-Means Clustering Layer, section 3.
    """
    values, table, width = _floats(values, table, width)

    def show(chunk: Array) -> Array:
        return (_attention(_distances(chunk, table, width)) * table[None, :]).sum(1)

    shown = lax.map(jax.checkpoint(show), _chunks(values, table.size))
    return shown.reshape(-1)[: values.size].reshape(values.shape)


def soft_kmeans(
    values: ArrayLike,
    table: ArrayLike,
    width: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    iterations: int = 5,
) -> Array:
    r"""Move the entries of a table to the weighted means of the values, repeatedly.

    $$ t_c \leftarrow \frac{\sum_i a_{ic} w_i}{\sum_i a_{ic}} $$

    Memory is bounded as in `soft_assign`.

    Args:
        values: float, any shape; all finite.
        table: `(clusters,)`, the initial table.
        width: positive scalar, the root of the temperature.
        mask: bool of the shape of `values`, False for entries to ignore.
        iterations: the number of repetitions.

    Returns:
        float32 `(clusters,)`, differentiable in values, table and width. An entry without nearby
        values is unchanged.

    Example:
        >>> import jax.numpy as jnp
        >>> print(soft_kmeans(jnp.array([0.0, 0.2, 4.0]), jnp.array([0.0, 3.0]), 0.3).round(2))
        [0.1 4. ]

    References:
        Cho et al. 2022, DKM: Differentiable K-Means Clustering Layer, section 3.
    """
    values, table, width = _floats(values, table, width)
    counted = jnp.ones(values.shape) if mask is None else jnp.asarray(mask, bool).astype("float32")
    chunks = tuple(_chunks(x, table.size) for x in (values, counted))

    def move(_: int, table: Array) -> Array:
        @jax.checkpoint
        def sums(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
            distance = _distances(chunk[0], table, width)
            near = _attention(distance) * chunk[1][:, None]
            return near.sum(0), (distance * near).sum(0)

        weight, moment = (x.sum(0) for x in lax.map(sums, chunks))
        full = weight > 1e-12
        # Differences are summed, because sums of the largest values overflow.
        return table + width * jnp.where(full, moment / jnp.where(full, weight, 1.0), 0)

    for step in range(iterations):
        table = move(step, table)
    return table


def _floats(*arrays: ArrayLike) -> tuple[Array, ...]:
    return tuple(jnp.asarray(x).astype(jnp.float32) for x in arrays)


def _distances(chunk: Array, table: Array, width: Array) -> Array:
    """Return the distances between values and clusters in units of width, `(values, clusters)`."""
    return (chunk[:, None] - table[None, :]) / width


def _attention(distance: Array) -> Array:
    """Return the degree to which each value belongs to each cluster."""
    return jax.nn.softmax(-jnp.square(distance), axis=-1)


@functools.partial(jax.jit, static_argnums=1)
def _chunks(x: Array, clusters: int) -> Array:
    """Divide values into equal runs, the last one padded with zeros."""
    size = max(1, min(x.size, _CHUNK // clusters))
    return jnp.pad(x.ravel(), (0, -x.size % size)).reshape(-1, size)
