"""Weights on grids whose steps are learned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.nodes import Node, show
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.ops.blockwise import reduce_blocks
from nnopt_jax.ops.gradient_estimators import gate, straight_through
from nnopt_jax.ops.grid import integer_range, quantize
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Start, Update, matrices
from nnopt_jax.transform.refining import refining
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "quantization.lsq"


def lsq(
    bits: int = 4,
    *,
    where: Where = matrices,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
    scale_dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Rounds weights to a grid whose step the optimizer learns beside them (LSQ).

    .. math:: \hat w = s\,\mathrm{clip}(\mathrm{round}(v),\,-Q_N,\,Q_P), \quad v = w / s, \qquad
        \frac{\partial \hat w}{\partial s} = g \cdot \begin{cases}
        \mathrm{round}(v) - v & -Q_N < v < Q_P \\ -Q_N & v \le -Q_N \\ Q_P & v \ge Q_P
        \end{cases}

    where :math:`Q_N = 2^{b-1}`, :math:`Q_P = 2^{b-1} - 1`, and :math:`g = 1 / \sqrt{N Q_P}` for the
    `N` weights that share a step. Weights get the gradient inside the range and none outside. A
    step starts at :math:`2\,\mathrm{mean}|w| / \sqrt{Q_P}`. Entries that a mask of an earlier link
    prunes have no say: neither in that mean, nor in `N`, nor in the gradient.

    A step stays positive and finite: one that an update has made otherwise is fitted anew from
    the weights, as at the start; it is 1 for weights that are all zero, or NaN or infinite.

    Args:
        bits: `b`, 2 to 8.
        where: which leaves; default: those of two axes or more.
        granularity: which weights share a step: `"tensor"` (the default, as in the paper);
            `"channel"`, those of one index of the output axes; or a number, see `group`. Slots of
            one axis (a table that is quantized after sharing) take one step.
        group: entries of a group, in place of a number as `granularity`. Groups run along the
            contracted axes, flattened in the order of the product; the last one may be shorter.
        axis: the one axis that counts as channels, in place of the output axes.
        scale_dtype: dtype the step is stored, and therefore applied, in; it is learned in float32.

    Returns:
        The transform. It refines: masks and tables above it stay. Its steps are part of
        `nnopt.trainable(...).learned`.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.lsq(2)
        >>> params = {"kernel": jnp.array([[0.5, -0.6], [0.1, 2.0]])}
        >>> state = tx.init(params)
        >>> print(state.learned["kernel"][0].ravel(), tx.apply(params, state)["kernel"].ravel())
        [1.6] [0.  0.  0.  1.6]

    References:
        Esser et al. 2020, Learned Step Size Quantization, section 2.
    """
    settings = Settings(_NAME)
    settings.integer("bits", bits, 2, 8)
    shared = sharing(settings, granularity, group, axis, default="tensor")
    settings.floating("scale_dtype", scale_dtype)
    settings.done()
    low, high = integer_range(bits, symmetric=False)

    def fit(slot: Slot) -> jax.Array:
        mean = _mean_magnitude(shared.blocked(slot))
        return _positive(2 * mean / jnp.sqrt(jnp.float32(high)), jnp.float32(1), scale_dtype)

    def encode(slot: Slot, step: Any, rest: Any, train: bool) -> Node:
        del rest, train
        part = shared.blocked(slot)
        scale = lax.stop_gradient(step).astype(scale_dtype)
        stored = part.field(scale)
        codes = quantize(lax.stop_gradient(part.array), show(stored), None, low, high)
        carry = _carry(part, step, codes, scale, low, high)
        grid = Quantized(codes, stored, None, carry, low, high, str(part.array.dtype))
        return part.in_place(grid)

    def init(slot: Slot, start: Start) -> tuple[Any, Any]:
        del start
        return fit(slot), None

    def refresh(slot: Slot, step: Any, rest: Any, now: Update) -> tuple[Any, Any]:
        del now
        return _positive(step, fit(slot), scale_dtype), rest

    return refining(
        _NAME,
        where,
        init=init,
        encode=encode,
        refresh=refresh,
        check=shared.misfit,
        kinds=("value",),
        exact=False,  # means are sums
        needs_axes=shared.needs_axes,
    )


def _carry(
    part: Blocked,
    step: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    low: int,
    high: int,
) -> jax.Array:
    """The weights, with the gradients of weights and step: what the codes stand for has none."""
    x = lax.stop_gradient(part.array)
    v = x.astype(jnp.float32) * part.expand(1 / scale.astype(jnp.float32))
    inside = (low <= v) & (v <= high)
    slope = jnp.where((low < v) & (v < high), codes - v, codes)
    slope *= part.expand(lax.rsqrt(jnp.maximum(_count(part), 1.0) * high))
    slope = slope if part.mask is None else jnp.where(part.mask, slope, 0.0)
    way = gate(part.array, inside).astype(jnp.float32) + slope * part.expand(step)
    return straight_through(x, way)


def _count(part: Blocked) -> jax.Array:
    """How many weights share each step."""
    kept = jnp.ones(part.array.shape, jnp.float32)
    kept = kept if part.mask is None else part.mask.astype(jnp.float32)
    return reduce_blocks(_NAME, lambda x, axes: jnp.sum(x, axis=axes), kept, part.block)


def _mean_magnitude(part: Blocked) -> jax.Array:
    size = jnp.abs(lax.stop_gradient(part.array)).astype(jnp.float32)
    size = size if part.mask is None else jnp.where(part.mask, size, 0.0)
    # Divided first: the sum of the largest floats would overflow.
    shares = size / part.expand(jnp.maximum(_count(part), 1.0))
    return reduce_blocks(_NAME, lambda x, axes: jnp.sum(x, axis=axes), shares, part.block)


def _positive(step: jax.Array, other: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Keeps a step that is a positive number where it is stored, and puts another for one not."""
    limits = jnp.finfo(dtype)
    # Half floats below their normal ones are none such in float32, which computes with them.
    least = max(float(limits.smallest_subnormal), float(jnp.finfo(jnp.float32).tiny))
    good = (step >= least) & (step <= float(limits.max))
    return jnp.where(good, step, other).astype(jnp.float32)
