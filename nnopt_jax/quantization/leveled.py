"""What all quantizers to fixed levels share: scales of blocks, nearest levels, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, show
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.ops.block_formats import in_units
from nnopt_jax.ops.levels import nearest_level
from nnopt_jax.quantization.fitted import Fit, fitted
from nnopt_jax.quantization.granularity import Granularity, check_granularity
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike


def leveled(
    name: str,
    levels: tuple[float, ...],
    where: Where,
    granularity: Granularity,
    axis: int,
    *,
    fit: Fit,
    scale: Callable[[Any], Field] = lambda state: state,
    codes: Callable[[jax.Array, Any], jax.Array] | None = None,
    carry: Callable[[jax.Array, Any], jax.Array] = lambda x, state: x,
    scale_dtype: DTypeLike = jnp.float32,
    exact: bool = True,
) -> Transform:
    """Makes a transform that brings weights to fixed levels times a scale for each block.

    Args:
        name: the method's public name.
        levels: ascending.
        where: which leaves; see `nnopt_jax.tree.selector`.
        granularity: which weights share a scale; see `Granularity`.
        axis: the channel axis.
        fit: `(array, block, mask) -> state`; anew after each update.
        scale: `state -> scale`, as it is stored.
        codes: `(array, state) -> indices of levels`; default: the nearest level in units of the
            scale.
        carry: `(array, state) -> array` that takes the gradient.
        scale_dtype: the setting of that name, to be checked with the others; `fit` obeys it.
        exact: see `Transform`.

    Returns:
        The transform.

    Raises:
        ValueRangeError: the granularity, the axis or the dtype is out of range.
    """
    settings = Settings(name)
    check_granularity(settings, granularity, axis)
    settings.floating("scale_dtype", scale_dtype)
    settings.done()

    def encode(x: jax.Array, state: Any) -> Levels:
        scales = scale(state)
        if codes is None:
            indices = nearest_level(in_units(x, show(scales)), levels)
        else:
            indices = codes(x, state)
        return Levels(indices, scales, None, carry(x, state), levels, str(x.dtype))

    return fitted(name, where, granularity, axis, fit=fit, encode=encode, exact=exact)
