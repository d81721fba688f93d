"""Ternary weights with a scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.ops.block_formats import block_mean, stored_scale
from nnopt_jax.quantization.fitted import fitted
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "quantization.twn"


def twn(
    threshold: float = 0.7,
    *,
    where: Where = matrices,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
    scale_dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Brings weights to zero or one magnitude of either sign.

    .. math:: \hat w = \alpha\,\mathrm{sign}(w)\,[\,|w| > \Delta\,], \qquad
        \Delta = t \cdot \mathrm{mean}\,|w|, \qquad
        \alpha = \mathrm{mean}\,\{|w| : |w| > \Delta\}

    The gradient passes straight through. Entries that a mask of an earlier link prunes have no say
    in the means. 1.6 bits a weight, and the scales.

    Args:
        threshold: `t`, 0 or more; 0.7 is near the optimum for normal and uniform weights.
        where: which leaves; default: those of two axes or more.
        granularity: which weights share threshold and scale: `"tensor"` (the default);
            `"channel"`, those of one index of the output axes; or a number, see `group`. Slots of
            one axis (a table that is made ternary after sharing) take one.
        group: entries of a group, in place of a number as `granularity`. Groups run along the
            contracted axes, flattened in the order of the product; the last one may be shorter.
        axis: the one axis that counts as channels, in place of the output axes.
        scale_dtype: dtype the scales are stored and applied in.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.twn()
        >>> params = {"kernel": jnp.array([[1.0, -2.0], [-0.1, 0.1]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 1.5, -1.5],
               [ 0. ,  0. ]], dtype=float32)

    References:
        Li et al. 2016, Ternary Weight Networks, section 2.2.
    """
    settings = Settings(_NAME)
    settings.number("threshold", threshold, 0)
    shared = sharing(settings, granularity, group, axis, default="tensor")
    settings.floating("scale_dtype", scale_dtype)
    settings.done()

    def fit(part: Blocked) -> dict[str, jax.Array]:
        x, block, mask = part.array, part.block, part.mask
        limit = stored_scale(jnp.float32(threshold) * block_mean(x, block, mask))
        above = jnp.abs(x.astype(jnp.float32)) > part.expand(limit)
        above = above if mask is None else above & mask
        scale = stored_scale(block_mean(x, block, above), scale_dtype)
        dead = scale <= 0  # nothing lies above: show zeros, and have no scale of 0
        return {
            "threshold": jnp.where(dead, jnp.float32(jnp.inf), limit),
            "scale": jnp.where(dead, jnp.ones((), scale.dtype), scale),
        }

    def encode(part: Blocked, state: dict[str, jax.Array]) -> Quantized:
        x, scale = part.array, part.field(state["scale"])
        codes = _codes(x, part.expand(state["threshold"]))
        return Quantized(codes, scale, None, x, -1, 1, str(x.dtype))

    return fitted(_NAME, where, shared, fit=fit, encode=encode, exact=False)


def _codes(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Signs beyond the threshold, held in float32; NaN where `x` is NaN."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    inside = jnp.abs(x) <= threshold
    return jnp.where(inside, jnp.float32(0), jnp.sign(x))
