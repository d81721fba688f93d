"""Signs of weights times their mean magnitude."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.ops.block_formats import block_count, block_mean, stored_scale
from nnopt_jax.ops.gradient_estimators import scale_gradient
from nnopt_jax.ops.lookup_tables import BINARY
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
from nnopt_jax.quantization.leveled import leveled
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "quantization.xnor"


def xnor(
    *,
    where: Where = matrices,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
    scale_dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Shows the signs of the weights times the mean magnitude of each block.

    .. math:: \hat w = \alpha\,\mathrm{sign}(w), \qquad
        \alpha = \frac{1}{n} \sum_{block} |w|, \qquad
        \frac{\partial L}{\partial w} = \frac{\partial L}{\partial \hat w}
        \left(\frac{1}{n} + \alpha\, [\,|w| \le 1\,]\right)

    The gradient is the paper's: it shrinks with the scale, which Adam makes good, but a learning
    rate of plain SGD must. The sign of zero is plus. Entries that a mask of an earlier link prunes
    have no say in the mean and are not counted. 1 bit a weight, and the scales.

    Args:
        where: which leaves; default: those of two axes or more.
        granularity: which weights share a scale: `"channel"` (the default, the paper's filters),
            one for each index of the output axes; `"tensor"`; or a number, see `group`. Slots of
            one axis (a table that is made binary after sharing) take one scale.
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
        >>> tx = nnopt.quantization.xnor()
        >>> params = {"kernel": jnp.array([[0.3, -2.0], [-0.1, -1.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0.2, -1.5],
               [-0.2, -1.5]], dtype=float32)

    References:
        Rastegari et al. 2016, XNOR-Net, section 3.1 (binary weights) and its gradient.
    """
    settings = Settings(_NAME)
    shared = sharing(settings, granularity, group, axis, default="channel")
    settings.floating("scale_dtype", scale_dtype)
    settings.done()

    def fit(part: Blocked) -> Any:
        mean = block_mean(part.array, part.block, part.mask)
        count = block_count(part.array.shape, part.block, part.mask)
        return {"scale": stored_scale(mean, scale_dtype), "count": count}

    def carry(part: Blocked, fitted: Any) -> jax.Array:
        value = jax.lax.stop_gradient(part.array).astype(jnp.float32)
        alpha = part.expand(fitted["scale"].astype(jnp.float32))
        slope = 1 / part.expand(fitted["count"])
        slope += jnp.where(jnp.abs(value) <= 1, alpha, jnp.float32(0))
        return scale_gradient(part.array, slope)

    return leveled(
        _NAME,
        BINARY,
        where,
        shared,
        fit=fit,
        scale=lambda fitted: fitted["scale"],
        carry=carry,
        exact=False,
    )
