"""Signs of weights times their mean magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.ops.block_formats import block_count, block_mean, stored_scale
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.levels import BINARY
from nnopt_jax.ops.straight_through import scale_gradient
from nnopt_jax.quantization.granularity import Granularity
from nnopt_jax.quantization.leveled import leveled
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike


def xnor(
    *,
    where: Where = matrices,
    granularity: Granularity = "channel",
    axis: int = -1,
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
        granularity: which weights share a scale: `"channel"` (the paper's filters), `"tensor"`, or
            a number for groups of so many along the axis before the last, which it must divide.
            Slots of one axis (a table that is made binary after sharing) take one scale.
        axis: the channel axis.
        scale_dtype: dtype the scales are stored and applied in.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where a group or an axis does not fit a leaf.
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

    def fit(x: jax.Array, block: Sequence[int], mask: jax.Array | None) -> Any:
        return {
            "scale": stored_scale(block_mean(x, block, mask), scale_dtype),
            "count": block_count(x.shape, block, mask),
        }

    def carry(x: jax.Array, fitted: Any) -> jax.Array:
        value = jax.lax.stop_gradient(x).astype(jnp.float32)
        alpha = expand(fitted["scale"].astype(jnp.float32), x.shape)
        slope = 1 / expand(fitted["count"], x.shape)
        slope += jnp.where(jnp.abs(value) <= 1, alpha, jnp.float32(0))
        return scale_gradient(x, slope)

    return leveled(
        "quantization.xnor",
        BINARY,
        where,
        granularity,
        axis,
        fit=fit,
        scale=lambda fitted: fitted["scale"],
        carry=carry,
        scale_dtype=scale_dtype,
        exact=False,
    )
