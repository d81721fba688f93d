"""Weight sharing by k-means, hard or differentiable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.codebooks import Codebook, SoftCodebook
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.ops.clustering import Init, assign, kmeans
from nnopt_jax.ops.gradient_estimators import round_clip
from nnopt_jax.ops.histogram import pool
from nnopt_jax.ops.soft_clustering import soft_kmeans
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Start, Update, matrices, refresh_when
from nnopt_jax.transform.presets import recorded
from nnopt_jax.transform.slotwise import refining, refining_together
from nnopt_jax.tree.select import Where

_NAME = "compression.codebook"


@recorded
def codebook(
    clusters: int = 16,
    *,
    where: Where = matrices,
    scope: Literal["channel", "leaf", "tree"] = "leaf",
    learned: bool = False,
    init: Init = "density",
    iterations: int = 50,
    every: int = 100,
) -> Transform:
    r"""Replace the weights of a leaf, or of all leaves, by a few shared values.

    $$ \hat w_i = t_{a_i}, \qquad a_i = \arg\min_c |w_i - t_c| $$

    The model uses the shared values. The latent weights are trained by straight-through gradients,
    and may change cluster. Masked entries do not count for the table.

    Args:
        clusters: entries of the table, 1 to 65,536.
        where: which leaves; by default those of two or more axes.
        scope: `"channel"`: each output (each index of the output and batch axes, see `nnopt.Axes`
            and `tx.bind`) has its own table. `"leaf"`: each leaf (or factor of a low-rank leaf) has
            a table. `"tree"`: one table for all chosen leaves, fitted to all of their values and
            stored once; quantized leaves share a table of codes. A later transform refines the
            table at each leaf separately.
        learned: whether the optimizer trains the table (its gradient is the sum over each cluster,
            in all leaves of the table); otherwise k-means fits it again every `every` updates.
        init: the initial table of k-means: `"density"` (spaced by the cube root of the weights'
            density, which is optimal for many clusters), `"linear"`, `"quantile"`, or `"random"`
            (`tx.init` then needs `key`; later fits start by density).
        iterations: the number of steps of Lloyd's algorithm in a fit.
        every: updates between two fits; not used if the table is learned.

    Returns:
        The transform. It refines: masks of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, `"random"` lacks a key.
        ShapeError: at `init`, there are fewer entries than clusters, or tables for channels are
            requested and the axes of a leaf are unknown.
        CompositionError: at `init`, one table would serve both codes and values.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.compression.codebook(2)
        >>> params = {"kernel": jnp.array([[0.9, -1.0], [1.1, -1.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"].round(3)
        Array([[ 1., -1.],
               [ 1., -1.]], dtype=float32)

    References:
        Han et al. 2016, Deep Compression, section 3; initialization: Panter and Dite 1951.
    """
    settings = Settings(_NAME)
    settings.integer("clusters", clusters, 1, 65536)
    settings.choice("scope", scope, ("channel", "leaf", "tree"))
    settings.flag("learned", learned)
    settings.choice("init", init, ("density", "linear", "quantile", "random"))
    settings.integer("iterations", iterations, 0)
    settings.integer("every", every, 1)
    settings.done()

    def fit(slots: Sequence[Slot], key: jax.Array | None = None) -> jax.Array:
        # A refit has no key, so it does not draw again.
        start = "density" if init == "random" and key is None else init
        if scope == "channel":
            return _channel_tables(slots[0], clusters, start, iterations, key)
        values, mask, weights = _joined(slots)
        how = {"init": start, "iterations": iterations, "key": key}
        return kmeans(values, clusters, mask=mask, weights=weights, **how)

    def begin(slots: Sequence[Slot], start: Start) -> tuple[Any, Any]:
        key = start.drawing_key("init='random' draws") if init == "random" else None
        table = fit(slots, key)
        return (table, None) if learned else (None, table)

    def encode(slot: Slot, table: Any, fitted: Any, train: bool) -> Codebook:
        del train
        # The optimizer may reorder entries, but `assign` needs them ascending.
        return _shared(slot, jnp.sort(table) if learned else fitted)

    def refresh(slots: Sequence[Slot], table: Any, fitted: Any, now: Update) -> tuple[Any, Any]:
        return table, refresh_when(now.count % every == 0, lambda: fit(slots), fitted)

    def check(slots: Sequence[Slot]) -> str | None:
        return _too_few(slots, clusters, in_channels=scope == "channel")

    later = None if learned else refresh
    if scope == "tree":
        return refining_together(
            _NAME, where, init=begin, encode=encode, refresh=later, check=check, exact=False
        )
    return refining(
        _NAME,
        where,
        init=lambda slot, start: begin([slot], start),
        encode=encode,
        refresh=later and (lambda slot, table, fitted, now: later([slot], table, fitted, now)),
        check=lambda slot: check([slot]),
        exact=False,
        needs_axes=lambda slot: scope == "channel",
    )


@recorded
def dkm(
    clusters: int = 16,
    *,
    where: Where = matrices,
    temperature: float = 0.01,
    iterations: int = 3,
) -> Transform:
    r"""Attract weights softly to a few shared values in training (DKM).

    In training, the model uses attention-weighted means of the table, which follows from the
    weights; gradients pass through the clustering, without a straight-through estimate. At
    inference and in storage, each weight is the nearest entry.

    $$ a_{i\cdot} = \mathrm{softmax}_c\left(-\frac{(w_i - t_c)^2}{\tau}\right), \qquad
       t_c \leftarrow \frac{\sum_i a_{ic} w_i}{\sum_i a_{ic}}, \qquad
       \tilde w_i = \sum_c a_{ic} t_c $$

    Each update starts from the previous table. Memory is proportional to the weights, not to
    weights times clusters, also in the backward pass. Masked entries do not count for the table.

    Args:
        clusters: entries of the table, 1 to 65,536.
        where: which leaves; by default those of two or more axes.
        temperature: `tau`, in units of the variance of the leaf's weights, so that one setting
            suits leaves of any scale; as it approaches 0, training uses the nearest entries.
        iterations: the number of steps of soft k-means at each update and in each forward pass.

    Returns:
        The transform. It refines: masks of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, a leaf has fewer entries than clusters.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.compression.dkm(2)
        >>> params = {"kernel": jnp.array([[0.9, -1.0], [1.1, -1.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"].round(3)
        Array([[ 1., -1.],
               [ 1., -1.]], dtype=float32)

    References:
        Cho et al. 2022, DKM: Differentiable K-Means Clustering Layer for Neural Network
        Compression, section 3.
    """
    settings = Settings("compression.dkm")
    settings.integer("clusters", clusters, 1, 65536)
    settings.number("temperature", temperature, 0, above=True)
    settings.integer("iterations", iterations, 1)
    settings.done()

    def init(slot: Slot, start: Start) -> tuple[Any, Any]:
        del start
        return None, kmeans(jax.lax.stop_gradient(slot.array), clusters, mask=slot.mask)

    def moved(slot: Slot, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the table after steps of soft k-means, and the root of the scaled temperature."""
        values = slot.array.astype(jnp.float32)
        mask = jnp.isfinite(values) if slot.mask is None else jnp.isfinite(values) & slot.mask
        values = jnp.where(mask, values, 0)
        width = jnp.sqrt(jnp.float32(temperature)) * _deviation(jax.lax.stop_gradient(values), mask)
        return soft_kmeans(values, table, width, mask=mask, iterations=iterations), width

    def encode(slot: Slot, learned: Any, table: jax.Array, train: bool) -> Codebook | SoftCodebook:
        del learned
        if not train:
            return _shared(slot, jnp.sort(table))
        soft, width = moved(slot, table)
        return SoftCodebook(slot.array, soft, width, str(slot.array.dtype))

    def refresh(slot: Slot, learned: Any, table: jax.Array, now: Update) -> tuple[Any, Any]:
        del now
        return learned, jax.lax.stop_gradient(moved(slot, table)[0])

    return refining(
        "compression.dkm",
        where,
        init=init,
        encode=encode,
        refresh=refresh,
        check=lambda slot: _too_few([slot], clusters),
        exact=False,
    )


def _deviation(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the standard deviation of the unmasked values; 1 if it is 0."""
    # Squares of the largest floats overflow, and reciprocals beyond these bounds are not floats.
    unit = jnp.clip(jnp.max(jnp.abs(values), initial=0), 2.0**-126, 2.0**126)
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1).astype(jnp.float32)
    mean = jnp.sum(values / unit) / count
    spread = jnp.sum(jnp.where(mask, jnp.square(values / unit - mean), 0)) / count
    return jnp.where(spread > 0, unit * jnp.sqrt(spread), 1.0)


def _joined(slots: Sequence[Slot]) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Return values, mask and weights for k-means; several slots are pooled to one vector."""
    arrays = [jax.lax.stop_gradient(slot.array) for slot in slots]
    if len(slots) == 1:
        return arrays[0], slots[0].mask, None
    values, weights = pool(arrays, [slot.mask for slot in slots])
    return values, None, weights


def _shared(slot: Slot, table: jax.Array) -> Codebook:
    """Return a node with the index of the nearest entry of an ascending table for each weight."""
    # Clusters of codes must be codes, so that they stay on the grid below.
    table = round_clip(table, -jnp.inf, jnp.inf) if slot.kind == "code" else table
    values, entries = jax.lax.stop_gradient((slot.array, table))
    indices = assign(values, entries) if table.ndim == 1 else _assign_channels(values, entries)
    return Codebook(indices, table, slot.array, str(slot.array.dtype))


def _too_few(slots: Sequence[Slot], clusters: int, *, in_channels: bool = False) -> str | None:
    """Return an error text if slots have fewer entries than clusters; else None."""
    shape = slots[0].array.shape
    size = sum(slot.array.size for slot in slots)
    if in_channels:
        size = math.prod(shape[axis] for axis in _contracted(slots[0]))
    if size >= clusters:
        return None
    have = "has" if len(slots) == 1 else "together have"
    where = " in a channel" if in_channels else ""
    return f"{have} {size} entries{where} for {clusters} clusters; give at most that many"


def _contracted(slot: Slot) -> tuple[int, ...]:
    assert slot.axes is not None
    return tuple(sorted(slot.axes.contracted))


def _channel_tables(
    slot: Slot, clusters: int, init: Init, iterations: int, key: jax.Array | None
) -> jax.Array:
    """Return a table for each output channel of a weight, fitted by k-means.

    The tables have the axes of the weight, with one entry along contracted axes, and a last axis.

    Example:
        >>> from nnopt_jax import Axes
        >>> slot = Slot("", jnp.array([[1.0, 8.0], [2.0, 9.0]]), "value", None, Axes(0, 1))
        >>> _channel_tables(slot, 2, "density", 5, None)
        Array([[[1., 2.],
                [8., 9.]]], dtype=float32)
    """
    shared = _contracted(slot)
    values = _rows(jax.lax.stop_gradient(slot.array), shared)
    count, size = values.shape
    mask = None if slot.mask is None else _rows(slot.mask, shared)
    keys = None if key is None else jax.random.split(key, count)
    bins = min(65536, 1024 * -(-size // 256))  # some bins for each value suffice

    def fit(row: tuple[jax.Array, jax.Array | None, jax.Array | None]) -> jax.Array:
        values, mask, key = row
        how = {"init": init, "iterations": iterations, "bins": bins, "key": key}
        return kmeans(values, clusters, mask=mask, **how)

    # One after another, because the histograms of all channels at once would not fit in memory.
    tables = jax.lax.map(fit, (values, mask, keys))
    shape = [1 if axis in shared else n for axis, n in enumerate(slot.array.shape)]
    return tables.reshape(*shape, clusters)


def _assign_channels(values: jax.Array, tables: jax.Array) -> jax.Array:
    """Return the index of the nearest entry in its channel's ascending table for each value.

    Example:
        >>> tables = jnp.array([[[0.0, 1.0], [0.0, 9.0]]])
        >>> _assign_channels(jnp.array([[1.0, 1.0], [2.0, 8.0]]), tables).tolist()
        [[1, 0], [1, 1]]
    """
    shared = tuple(axis for axis, n in enumerate(tables.shape[:-1]) if n != values.shape[axis])
    order = _channels_first(values, shared)
    rows = _rows(values, shared)
    flat = tables.reshape(len(rows), tables.shape[-1])
    found = jax.lax.map(lambda pair: assign(*pair), (rows, flat))
    sizes = [values.shape[axis] for axis in order]
    return found.reshape(sizes).transpose(np.argsort(order))


def _channels_first(x: jax.Array, shared: tuple[int, ...]) -> tuple[int, ...]:
    return (*(axis for axis in range(x.ndim) if axis not in shared), *shared)


def _rows(x: jax.Array, shared: tuple[int, ...]) -> jax.Array:
    """Reshape a weight to one row for each channel, in the order of the channels."""
    size = math.prod(x.shape[axis] for axis in shared)
    return x.transpose(_channels_first(x, shared)).reshape(x.size // max(size, 1), size)
