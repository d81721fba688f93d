"""Weight sharing by k-means codebooks."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Slot
from nnopt_jax.arrays.codebook import Codebook
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.kmeans import assign, kmeans
from nnopt_jax.ops.rounding import round_clip
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Start, Update, matrices, refining, refresh_when
from nnopt_jax.tree.select import Where

_NAME = "compression.codebook"


def codebook(
    clusters: int = 16,
    *,
    where: Where = matrices,
    learned: bool = False,
    init: Literal["density", "linear", "quantile", "random"] = "density",
    iterations: int = 50,
    every: int = 100,
) -> Transform:
    r"""Lets the weights of a leaf share a few values.

    .. math:: \hat w_i = t_{a_i}, \qquad a_i = \arg\min_c |w_i - t_c|

    The model sees shared values; the weights behind them go on learning, straight through, and
    may change cluster. Entries that a mask of an earlier link prunes have no say in the table.

    Args:
        clusters: entries of the table, 1 to 65,536.
        where: which leaves; default: those of two axes or more.
        learned: whether an optimizer trains the table (its gradient is the sum over each
            cluster); otherwise k-means fits it anew from time to time.
        init: where k-means starts: `"density"` (entries as dense as the cube root of the
            weights' density, which is optimal for many clusters), `"linear"`, `"quantile"`, or
            `"random"` (needs `tx.init(..., key=)`; refits start by density).
        iterations: steps of Lloyd's algorithm for one fit.
        every: updates between two fits; not used where the table is learned.

    Returns:
        The transform. It refines: masks above it stay.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where `"random"` gets no key.
        ShapeError: at `init`, where a leaf has fewer entries than clusters.

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
    settings.flag("learned", learned)
    settings.choice("init", init, ("density", "linear", "quantile", "random"))
    settings.integer("iterations", iterations, 0)
    settings.integer("every", every, 1)
    settings.done()

    def fit(slot: Slot, key: jax.Array | None = None) -> jax.Array:
        values = jax.lax.stop_gradient(slot.array)
        start = "density" if init == "random" and key is None else init  # a refit draws no more
        return kmeans(values, clusters, mask=slot.mask, init=start, iterations=iterations, key=key)

    def init_(slot: Slot, start: Start) -> tuple[Any, Any]:
        if init == "random" and start.key is None:
            raise ValueRangeError(
                f"{_NAME}: init='random' draws; give tx.init(params, key=jax.random.key(0))."
            )
        table = fit(slot, start.key)
        return (table, None) if learned else (None, table)

    def encode(slot: Slot, table: Any, fitted: Any, train: bool) -> Codebook:
        del train
        # An optimizer may let two entries change places; `assign` wants them ascending.
        table = jnp.sort(table) if learned else fitted
        # Clusters of codes are codes: the grid below must survive.
        table = round_clip(table, -jnp.inf, jnp.inf) if slot.kind == "code" else table
        indices = assign(jax.lax.stop_gradient(slot.array), jax.lax.stop_gradient(table))
        return Codebook(indices, table, slot.array, str(slot.array.dtype))

    def refresh(slot: Slot, table: Any, fitted: Any, now: Update) -> tuple[Any, Any]:
        return table, refresh_when(now.count % every == 0, lambda: fit(slot), fitted)

    def check(slot: Slot) -> str | None:
        if slot.array.size >= clusters:
            return None
        return f"has {slot.array.size} entries for {clusters} clusters; give at most that many"

    return refining(
        _NAME,
        where,
        init=init_,
        encode=encode,
        refresh=None if learned else refresh,
        check=check,
        exact=False,
    )
