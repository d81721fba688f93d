"""Tables of shared values for each channel of a weight."""

from __future__ import annotations

import math
from typing import Literal

import jax

from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.clustering import assign, kmeans

Init = Literal["density", "linear", "quantile", "random"]


def channel_tables(
    slot: Slot, clusters: int, init: Init, iterations: int, key: jax.Array | None
) -> jax.Array:
    """Fit a table to the values of each output of a weight.

    Args:
        slot: the weight, with its axes.
        clusters: entries of each table.
        init: see `kmeans`.
        iterations: see `kmeans`.
        key: for `init="random"`; each channel draws its own numbers.

    Returns:
        float32 of the weight's axes and `clusters`, with one entry along contracted axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.refinement import Slot
        >>> from nnopt_jax.ops.axis_roles import Axes
        >>> slot = Slot("", jnp.array([[1.0, 8.0], [2.0, 9.0]]), "value", None, Axes(0, 1))
        >>> channel_tables(slot, 2, "density", 5, None)
        Array([[[1., 2.],
                [8., 9.]]], dtype=float32)
    """
    axes = _axes(slot)
    values = _rows(jax.lax.stop_gradient(slot.array), axes)
    count, size = values.shape
    mask = None if slot.mask is None else _rows(slot.mask, axes)
    keys = None if key is None else jax.random.split(key, count)
    bins = min(65536, 1024 * -(-size // 256))  # some bins for each value are enough

    def fit(row: tuple[jax.Array, jax.Array | None, jax.Array | None]) -> jax.Array:
        values, mask, key = row
        return kmeans(
            values, clusters, mask=mask, init=init, iterations=iterations, bins=bins, key=key
        )

    # One after another: the histograms of all channels at once would not fit in memory.
    tables = jax.lax.map(fit, (values, mask, keys))
    shape = [1 if axis in axes.contracted else n for axis, n in enumerate(slot.array.shape)]
    return tables.reshape(*shape, clusters)


def assign_channels(values: jax.Array, tables: jax.Array) -> jax.Array:
    """Find the nearest entry of its channel's table for each value.

    Args:
        values: of a weight.
        tables: as `channel_tables` returns them, ascending.

    Example:
        >>> import jax.numpy as jnp
        >>> tables = jnp.array([[[0.0, 1.0], [0.0, 9.0]]])
        >>> assign_channels(jnp.array([[1.0, 1.0], [2.0, 8.0]]), tables).tolist()
        [[1, 0], [1, 1]]
    """
    shared = tuple(axis for axis, n in enumerate(tables.shape[:-1]) if n != values.shape[axis])
    own = tuple(axis for axis in range(values.ndim) if axis not in shared)
    axes = Axes(shared, own)
    rows = _rows(values, axes)
    flat = tables.reshape(len(rows), tables.shape[-1])
    found = jax.lax.map(lambda pair: assign(*pair), (rows, flat))
    sizes = [values.shape[axis] for axis in (*own, *shared)]
    order = (*own, *shared)
    return found.reshape(sizes).transpose([order.index(axis) for axis in range(values.ndim)])


def too_few_in_channels(slot: Slot, clusters: int) -> str | None:
    """Say so where a channel has fewer entries than clusters."""
    size = math.prod(slot.array.shape[axis] for axis in _axes(slot).contracted)
    if size >= clusters:
        return None
    return f"has {size} entries in a channel for {clusters} clusters; give at most that many"


def _axes(slot: Slot) -> Axes:
    assert slot.axes is not None
    return slot.axes


def _rows(x: jax.Array, axes: Axes) -> jax.Array:
    """One row for each channel, in the order in which channels lie."""
    shared = tuple(sorted(axes.contracted))
    own = tuple(axis for axis in range(x.ndim) if axis not in shared)
    count = math.prod(x.shape[axis] for axis in own)
    size = math.prod(x.shape[axis] for axis in shared)
    return x.transpose((*own, *shared)).reshape(count, size)
