"""Ternary weights with two learned scales."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.lookup_quantized import LookupQuantized
from nnopt_jax.arrays.nodes import Node
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.ops.block_formats import block_largest, block_mean, stored_scale
from nnopt_jax.ops.gradient_estimators import scale_gradient
from nnopt_jax.ops.lookup_tables import TERNARY
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Update, matrices
from nnopt_jax.transform.refining import refining
from nnopt_jax.tree.select import Where

_NAME = "quantization.ttq"


def ttq(
    threshold: float = 0.05,
    *,
    where: Where = matrices,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
) -> Transform:
    r"""Brings weights to zero, a learned positive value or a learned negative one.

    .. math:: \hat w = \begin{cases} W_p & w > \Delta \\ 0 & |w| \le \Delta \\
        -W_n & w < -\Delta \end{cases} \qquad \Delta = t \cdot \max |w|

    An optimizer trains both scales: the gradient of each is the sum over its weights (that of
    `W_n` with the sign that the chain rule gives it). The weights behind them get the gradient
    times `W_p`, 1 or `W_n`. Both scales start at the mean magnitude of their weights. Entries that
    a mask of an earlier link prunes have no say in thresholds and starts. 1.6 bits a weight, and
    the scales.

    Args:
        threshold: `t`, 0 to 1, of the greatest magnitude.
        where: which leaves; default: those of two axes or more.
        granularity: which weights share threshold and scales: `"tensor"` (the default);
            `"channel"`, those of one index of the output axes; or a number, see `group`. Slots of
            one axis (a table that is made ternary after sharing) take one.
        group: entries of a group, in place of a number as `granularity`. Groups run along the
            contracted axes, flattened in the order of the product; the last one may be shorter.
        axis: the one axis that counts as channels, in place of the output axes.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.ttq(0.5)
        >>> params = {"kernel": jnp.array([[1.0, -2.0], [-0.1, 3.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0., -2.],
               [ 0.,  3.]], dtype=float32)

    References:
        Zhu et al. 2017, Trained Ternary Quantization, sections 3.1 and 3.2.
    """
    settings = Settings(_NAME)
    settings.number("threshold", threshold, 0, 1)
    shared = sharing(settings, granularity, group, axis, default="tensor")
    settings.done()

    def limit(part: Blocked) -> jax.Array:
        largest = block_largest(part.array, part.block, part.mask)
        return stored_scale(jnp.float32(threshold) * largest)

    def init(slot: Slot) -> tuple[Any, Any]:
        part = shared.blocked(slot)
        x, found = jax.lax.stop_gradient(part.array).astype(jnp.float32), limit(part)
        beyond = part.expand(found)
        kept = jnp.ones(x.shape, bool) if part.mask is None else part.mask
        learned = {
            "positive": stored_scale(block_mean(x, part.block, kept & (x > beyond))),
            "negative": stored_scale(block_mean(x, part.block, kept & (x < -beyond))),
        }
        return learned, found

    def encode(slot: Slot, learned: Any, found: jax.Array, train: bool) -> Node:
        del train
        part = shared.blocked(slot)
        x = part.array
        codes = _codes(x, part.expand(found))
        carry = scale_gradient(x, _slope(codes, learned, part))
        above, below = (part.field(learned[name]) for name in ("positive", "negative"))
        return part.in_place(LookupQuantized(codes, above, below, carry, TERNARY, str(x.dtype)))

    def refresh(slot: Slot, learned: Any, found: Any, now: Update) -> tuple[Any, Any]:
        del found, now
        return learned, limit(shared.blocked(slot))

    return refining(
        _NAME,
        where,
        init=lambda slot, start: init(slot),
        encode=encode,
        refresh=refresh,
        check=shared.misfit,
        kinds=("value",),
        exact=False,
        needs_axes=shared.needs_axes,
    )


def _codes(x: jax.Array, beyond: jax.Array) -> jax.Array:
    """Indices of the levels, held in float32; NaN where `x` is NaN."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    code = jnp.where(x > beyond, jnp.float32(2), jnp.float32(1))
    return jnp.where(jnp.isnan(x), x, jnp.where(x < -beyond, jnp.float32(0), code))


def _slope(codes: jax.Array, learned: Any, part: Blocked) -> jax.Array:
    """What the gradient of each weight is multiplied with."""
    positive, negative = (
        part.expand(jax.lax.stop_gradient(learned[name])) for name in ("positive", "negative")
    )
    return jnp.where(codes == 2, positive, jnp.where(codes == 0, negative, jnp.float32(1)))
