"""Integers on a uniform grid."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Slot
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.ops.grid import expand, fit_grid, integer_range, quantize
from nnopt_jax.ops.straight_through import gate
from nnopt_jax.quantization.granularity import (
    Granularity,
    block_of,
    check_granularity,
    misfit,
)
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Update, matrices, refining, refresh_when
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "quantization.uniform"


def uniform(
    bits: int = 8,
    *,
    where: Where = matrices,
    symmetric: bool = True,
    granularity: Granularity = "tensor",
    axis: int = -1,
    scale_dtype: DTypeLike = jnp.float32,
    every: int = 1,
) -> Transform:
    r"""Rounds weights to a uniform grid, in training as in storage.

    .. math:: \hat w = s\,(q - z), \qquad
        q = \mathrm{clip}(\mathrm{round}(w / s) + z,\; lo,\; hi)

    The gradient passes straight through. Ranges are the extreme values of a block; entries that a
    mask of an earlier link prunes have no say in them.

    Args:
        bits: 2 to 16; 8 and 16 lie in integer arrays, fewer are packed.
        where: which leaves; default: those of two axes or more.
        symmetric: codes mirror at zero and there is no zero point; otherwise an integer zero
            point makes zero exact.
        granularity: `"tensor"`: one scale. `"channel"`: one for each index of `axis`. A number
            `g`: one for each group of `g` entries along the axis before the last, which it must
            divide. Slots of one axis (a table that is quantized after sharing) take one scale.
        axis: the channel axis.
        scale_dtype: dtype the scale is stored, and therefore applied, in.
        every: updates between two choices of the range.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where a group or an axis does not fit a leaf.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.uniform(8, granularity="channel")
        >>> params = {"kernel": jnp.array([[127.0, 63.5], [33.3, -10.2]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[127. ,  63.5],
               [ 33. , -10. ]], dtype=float32)

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 2.1.
    """
    _check(bits, symmetric, granularity, axis, every)
    low, high = integer_range(bits, symmetric=symmetric)

    def fit(slot: Slot) -> dict[str, jax.Array | None]:
        block = block_of(slot.array.shape, granularity, axis)
        scale, zero = fit_grid(
            slot.array, bits, block, symmetric=symmetric, mask=slot.mask, scale_dtype=scale_dtype
        )
        return {"scale": scale, "zero": zero}

    def encode(slot: Slot, learned: Any, grid: Any, train: bool) -> Quantized:
        del learned, train
        x, scale, zero = slot.array, grid["scale"], grid["zero"]
        codes = quantize(jax.lax.stop_gradient(x), scale, zero, low, high)
        carry = x if every == 1 else _inside(x, scale, zero, low, high)
        return Quantized(codes, scale, zero, carry, low, high, str(x.dtype))

    def refresh(slot: Slot, learned: Any, grid: Any, now: Update) -> tuple[Any, Any]:
        return learned, refresh_when(every == 1 or now.count % every == 0, lambda: fit(slot), grid)

    def check(slot: Slot) -> str | None:
        return misfit(slot.array.shape, granularity, axis)

    return refining(
        _NAME,
        where,
        init=lambda slot, start: (None, fit(slot)),
        encode=encode,
        refresh=refresh,
        check=check,
        kinds=("value",),
    )


def _inside(x: jax.Array, scale: Any, zero: Any, low: int, high: int) -> jax.Array:
    """Stops the gradient of weights that have left a range chosen some updates ago."""
    v = jax.lax.stop_gradient(x).astype(jnp.float32) / expand(scale, x.shape).astype(jnp.float32)
    v = v if zero is None else v + expand(zero, x.shape)
    return gate(x, (low <= v) & (v <= high))


def _check(bits: int, symmetric: bool, granularity: Granularity, axis: int, every: int) -> None:
    settings = Settings(_NAME)
    settings.integer("bits", bits, 2, 16)
    settings.flag("symmetric", symmetric)
    check_granularity(settings, granularity, axis)
    settings.integer("every", every, 1)
    settings.done()
