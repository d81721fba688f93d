"""Normal floats of 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Field
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.ops.block_formats import block_largest, stored_scale
from nnopt_jax.ops.grid import quantize
from nnopt_jax.ops.levels import NF4
from nnopt_jax.quantization.granularity import Granularity
from nnopt_jax.quantization.leveled import leveled
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "quantization.nf4"
_TOP = 255
_MOST = 256  # scales that share a second scale, as in QLoRA


def nf4(
    *,
    where: Where = matrices,
    granularity: Granularity = 64,
    axis: int = -1,
    scale_dtype: DTypeLike = jnp.float32,
    double: bool = False,
) -> Transform:
    r"""Rounds weights to 16 levels that are quantiles of the normal distribution.

    .. math:: \hat w = s\, l_c, \qquad s = \max_{block} |w|, \qquad c = \arg\min_k |w / s - l_k|

    The gradient passes straight through. Entries that a mask of an earlier link prunes have no say
    in the scales.

    Args:
        where: which leaves; default: those of two axes or more.
        granularity: which weights share a scale: `"tensor"`, `"channel"`, or a number for groups
            of so many along the axis before the last, which it must divide. Slots of one axis (a
            table that is quantized after sharing) take one scale.
        axis: the channel axis.
        scale_dtype: dtype the scales (or, where double, their scales) are stored and applied in.
        double: scales are quantized as well, to 8 bits with a scale for each run of at most 256
            of them along the last axis (the longest that divides it).

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where a group or an axis does not fit a leaf.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.nf4(granularity=2)
        >>> params = {"kernel": jnp.array([[2.0, -0.3], [1.0, 0.1]])}
        >>> print(tx.apply(params, tx.init(params))["kernel"])
        [[ 2.         -0.3       ]
         [ 0.88141966  0.10137457]]

    References:
        Dettmers et al. 2023, QLoRA, section 3 (they run blocks along the flattened leaf, and the
        second quantization is to 8-bit floats around the mean).
    """
    settings = Settings(_NAME)
    settings.flag("double", double)
    settings.floating("scale_dtype", scale_dtype)
    settings.done()

    def fit(x: jax.Array, block: Sequence[int], mask: jax.Array | None) -> Any:
        largest = block_largest(x, block, mask)
        if not double:
            return stored_scale(largest, scale_dtype)
        largest = stored_scale(largest)
        step = block_largest(largest, _runs(largest.shape)) * jnp.float32(1 / _TOP)
        step = stored_scale(jnp.where(step > 0, step, jnp.float32(1)), scale_dtype)
        return {"codes": quantize(largest, step, None, 0, _TOP), "step": step}

    def scale(fitted: Any) -> Field:
        if not double:
            return fitted
        return Quantized(fitted["codes"], fitted["step"], low=0, high=_TOP)

    return leveled(_NAME, NF4, where, granularity, axis, fit=fit, scale=scale)


def _runs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Blocks along the last axis, as long as they may be."""
    if not shape or not shape[-1]:
        return shape
    longest = max(n for n in range(1, min(_MOST, shape[-1]) + 1) if shape[-1] % n == 0)
    return (*(1 for _ in shape[:-1]), longest)
