"""Normal floats of 4 bits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.nodes import Field
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.block_formats import block_largest, stored_scale
from nnopt_jax.ops.grid import quantize
from nnopt_jax.ops.lookup_tables import NF4
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
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
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
    scale_dtype: DTypeLike = jnp.float32,
    double: bool = False,
) -> Transform:
    r"""Rounds weights to 16 levels that are quantiles of the normal distribution.

    .. math:: \hat w = s\, l_c, \qquad s = \max_{block} |w|, \qquad c = \arg\min_k |w / s - l_k|

    The gradient passes straight through. Entries that a mask of an earlier link prunes have no say
    in the scales.

    Args:
        where: which leaves; default: those of two axes or more.
        granularity: which weights share a scale: `"tensor"`; `"channel"`, one for each index of
            the output axes; or a number, see `group`. Slots of one axis (a table that is quantized
            after sharing) take one scale. Default: groups of 64.
        group: entries of a group, in place of a number as `granularity`. Groups run along the
            contracted axes, flattened in the order of the product; the last one may be shorter.
        axis: the one axis that counts as channels, in place of the output axes.
        scale_dtype: dtype the scales (or, where double, their scales) are stored and applied in.
        double: scales are quantized as well, to 8 bits with a scale for each run of at most 256
            of them along the output axes (whole inner axes, and of the next one the longest part
            that divides it).

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
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
    shared = sharing(settings, granularity, group, axis, default=64)
    settings.flag("double", double)
    settings.floating("scale_dtype", scale_dtype)
    settings.done()

    def fit(part: Blocked) -> Any:
        largest = block_largest(part.array, part.block, part.mask)
        if not double:
            return stored_scale(largest, scale_dtype)
        largest = stored_scale(largest)
        step = block_largest(largest, _runs(largest.shape, part.axes)) * jnp.float32(1 / _TOP)
        step = stored_scale(jnp.where(step > 0, step, jnp.float32(1)), scale_dtype)
        return {"codes": quantize(largest, step, None, 0, _TOP), "step": step}

    def scale(fitted: Any) -> Field:
        if not double:
            return fitted
        return Quantized(fitted["codes"], fitted["step"], low=0, high=_TOP)

    return leveled(_NAME, NF4, where, shared, fit=fit, scale=scale)


def _runs(shape: tuple[int, ...], axes: Axes | None) -> tuple[int, ...]:
    """Return blocks of scales along the output axes, as long as they may be.

    Where all scales are of one output they run along the others; batch axes they never cross, so
    that each layer of a stack keeps its own.
    """
    if 0 in shape:
        return shape
    along = tuple(range(len(shape)))
    if axes is not None:
        several = any(shape[axis] > 1 for axis in axes.output)
        along = axes.output if several else axes.contracted
    block, room = [1] * len(shape), _MOST
    for axis in reversed(along):
        size = shape[axis]
        block[axis] = max(n for n in range(1, min(room, size) + 1) if size % n == 0)
        if block[axis] < size:
            break
        room //= size
    return tuple(block)
