"""Weight sharing by differentiable k-means."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.codebooks import Codebook, SoftCodebook
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.compression.shared_values import shared, too_few
from nnopt_jax.ops.clustering import kmeans
from nnopt_jax.ops.soft_clustering import soft_kmeans
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Start, Update, matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.transform.slotwise import refining
from nnopt_jax.tree.select import Where

_NAME = "compression.dkm"


@recorded
def dkm(
    clusters: int = 16,
    *,
    where: Where = matrices,
    temperature: float = 0.01,
    iterations: int = 3,
) -> Transform:
    r"""Lets weights share a few values, to which training draws them softly.

    In training the model sees attention-weighed means of the table, which the weights themselves
    set; gradients pass through the clustering, without a straight-through estimate. Stored, and
    shown outside of training, are the nearest entries.

    $$ a_{i\cdot} = \mathrm{softmax}_c\left(-\frac{(w_i - t_c)^2}{\tau}\right), \qquad
       t_c \leftarrow \frac{\sum_i a_{ic} w_i}{\sum_i a_{ic}}, \qquad
       \tilde w_i = \sum_c a_{ic} t_c $$

    Each update starts from the table of the one before. Memory grows with the weights and not
    with weights times clusters, in the backward pass as well. Entries that a mask of an earlier
    transform prunes do not count for the table.

    Args:
        clusters: entries of the table, 1 to 65,536.
        where: which leaves; default: those of two axes or more.
        temperature: `tau`, in units of the variance of the leaf's weights, so that one setting
            serves leaves of any scale; toward 0 training sees the nearest entries.
        iterations: steps of soft k-means at each update, and in each forward pass.

    Returns:
        The transform. It refines: masks above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where a leaf has fewer entries than clusters.

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
    settings = Settings(_NAME)
    settings.integer("clusters", clusters, 1, 65536)
    settings.number("temperature", temperature, 0, above=True)
    settings.integer("iterations", iterations, 1)
    settings.done()

    def init(slot: Slot, start: Start) -> tuple[Any, Any]:
        del start
        return None, kmeans(jax.lax.stop_gradient(slot.array), clusters, mask=slot.mask)

    def moved(slot: Slot, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The table after some steps, and the root of the temperature."""
        values, mask = _counted(slot)
        width = jnp.sqrt(jnp.float32(temperature)) * _deviation(jax.lax.stop_gradient(values), mask)
        return soft_kmeans(values, table, width, mask=mask, iterations=iterations), width

    def encode(slot: Slot, learned: Any, table: jax.Array, train: bool) -> Codebook | SoftCodebook:
        del learned
        if not train:
            return shared(slot, jnp.sort(table))
        soft, width = moved(slot, table)
        return SoftCodebook(slot.array, soft, width, str(slot.array.dtype))

    def refresh(slot: Slot, learned: Any, table: jax.Array, now: Update) -> tuple[Any, Any]:
        del now
        return learned, jax.lax.stop_gradient(moved(slot, table)[0])

    return refining(
        _NAME,
        where,
        init=init,
        encode=encode,
        refresh=refresh,
        check=lambda slot: too_few([slot], clusters),
        exact=False,
    )


def _counted(slot: Slot) -> tuple[jax.Array, jax.Array]:
    """The values of a slot, finite, and which of them count."""
    values = slot.array.astype(jnp.float32)
    mask = jnp.isfinite(values) if slot.mask is None else jnp.isfinite(values) & slot.mask
    return jnp.where(mask, values, 0), mask


def _deviation(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The standard deviation of what counts; 1 where there is none."""
    # Squares of the largest floats overflow, and reciprocals beyond these bounds are no floats.
    unit = jnp.clip(jnp.max(jnp.abs(values), initial=0), 2.0**-126, 2.0**126)
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1).astype(jnp.float32)
    mean = jnp.sum(values / unit) / count
    spread = jnp.sum(jnp.where(mask, jnp.square(values / unit - mean), 0)) / count
    return jnp.where(spread > 0, unit * jnp.sqrt(spread), 1.0)
