"""Weight sharing by k-means codebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.codebooks import Codebook
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.compression.tables_of_channels import (
    assign_channels,
    channel_tables,
    too_few_in_channels,
)
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.clustering import assign, kmeans
from nnopt_jax.ops.gradient_estimators import round_clip
from nnopt_jax.ops.histogram import pool
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
    init: Literal["density", "linear", "quantile", "random"] = "density",
    iterations: int = 50,
    every: int = 100,
) -> Transform:
    r"""Lets the weights of a leaf, or of all leaves, share a few values.

    $$ \hat w_i = t_{a_i}, \qquad a_i = \arg\min_c |w_i - t_c| $$

    The model sees shared values; the weights behind them go on learning, straight through, and
    may change cluster. Entries that a mask of an earlier transform prunes do not count for the
    table.

    Args:
        clusters: entries of the table, 1 to 65,536.
        where: which leaves; default: those of two axes or more.
        scope: `"channel"`: each output (each index of the output and batch axes, see `nnopt.Axes`
            and `tx.bind`) has a table of its own. `"leaf"`: each leaf (each factor of a leaf of low
            rank) has one.
            `"tree"`: one table serves all chosen leaves, fitted on all their values and stored
            once; leaves on a grid share a table of codes. A later transform refines the table at
            each leaf by itself.
        learned: whether an optimizer trains the table (its gradient is the sum over each
            cluster, in all leaves it serves); otherwise k-means fits it anew from time to time.
        init: where k-means starts: `"density"` (entries as dense as the cube root of the
            weights' density, which is optimal for many clusters), `"linear"`, `"quantile"`, or
            `"random"` (needs `tx.init(..., key=)`; refits start by density).
        iterations: steps of Lloyd's algorithm for one fit.
        every: updates between two fits; not used where the table is learned.

    Returns:
        The transform. It refines: masks above it stay.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where `"random"` gets no key.
        ShapeError: at `init`, where there are fewer entries than clusters, or tables of channels
            are asked for and the axes of a leaf are not known.
        CompositionError: at `init`, where one table would serve both codes of a grid and values.

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
        start = "density" if init == "random" and key is None else init  # a refit draws no more
        if scope == "channel":
            return channel_tables(slots[0], clusters, start, iterations, key)
        values, mask, weights = _joined(slots)
        return kmeans(
            values,
            clusters,
            mask=mask,
            weights=weights,
            init=start,
            iterations=iterations,
            key=key,
        )

    def begin(slots: Sequence[Slot], start: Start) -> tuple[Any, Any]:
        if init == "random" and start.key is None:
            raise ValueRangeError(
                f"{_NAME}: init='random' draws; give tx.init(params, key=jax.random.key(0))."
            )
        table = fit(slots, start.key)
        return (table, None) if learned else (None, table)

    def encode(slot: Slot, table: Any, fitted: Any, train: bool) -> Codebook:
        del train
        # An optimizer may let two entries change places; `assign` wants them ascending.
        return shared(slot, jnp.sort(table) if learned else fitted)

    def refresh(slots: Sequence[Slot], table: Any, fitted: Any, now: Update) -> tuple[Any, Any]:
        return table, refresh_when(now.count % every == 0, lambda: fit(slots), fitted)

    def check(slots: Sequence[Slot]) -> str | None:
        if scope == "channel":
            return too_few_in_channels(slots[0], clusters)
        return too_few(slots, clusters)

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


def _joined(slots: Sequence[Slot]) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Values, mask and weights of one slot, or of some together."""
    arrays = [jax.lax.stop_gradient(slot.array) for slot in slots]
    if len(slots) == 1:
        return arrays[0], slots[0].mask, None
    values, weights = pool(arrays, [slot.mask for slot in slots])
    return values, None, weights


def shared(slot: Slot, table: jax.Array) -> Codebook:
    """A slot whose entries are the nearest of an ascending table; the gradient passes through."""
    # Clusters of codes are codes: the grid below must survive.
    table = round_clip(table, -jnp.inf, jnp.inf) if slot.kind == "code" else table
    values, entries = jax.lax.stop_gradient((slot.array, table))
    indices = assign(values, entries) if table.ndim == 1 else assign_channels(values, entries)
    return Codebook(indices, table, slot.array, str(slot.array.dtype))


def too_few(slots: Sequence[Slot], clusters: int) -> str | None:
    """Says so where there are fewer entries than clusters."""
    size = sum(slot.array.size for slot in slots)
    if size >= clusters:
        return None
    have = "has" if len(slots) == 1 else "together have"
    return f"{have} {size} entries for {clusters} clusters; give at most that many"
