"""Integers on a uniform grid."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.nodes import show
from nnopt_jax.ops.gradient_estimators import gate
from nnopt_jax.ops.grid import expand, fit_grid, grid_of_range, integer_range, quantize
from nnopt_jax.ops.range_search import mse_range, percentile_range
from nnopt_jax.quantization.fitted import fitted
from nnopt_jax.quantization.granularity import Blocked, Granularity, Sharing, sharing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "quantization.uniform"

Range: TypeAlias = Literal["absmax", "percentile", "mse"]
"""How the range of a block is chosen."""


def uniform(
    bits: int = 8,
    *,
    where: Where = matrices,
    symmetric: bool = True,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
    range: Range = "absmax",
    percent: float = 99.9,
    scale_dtype: DTypeLike = jnp.float32,
    every: int = 1,
) -> Transform:
    r"""Rounds weights to a uniform grid, in training as in storage.

    .. math:: \hat w = s\,(q - z), \qquad
        q = \mathrm{clip}(\mathrm{round}(w / s) + z,\; lo,\; hi)

    The gradient passes straight through, except where the grid clips a weight by more than the
    rounding of its ends. Entries that a mask of an earlier link prunes have no say in a range. A
    block that holds nothing but zeros, or a NaN or an infinity, has scale 1: it makes no NaN.

    Args:
        bits: 2 to 16; 8 and 16 lie in integer arrays, fewer are packed.
        where: which leaves; default: those of two axes or more.
        symmetric: codes mirror at zero and there is no zero point; otherwise an integer zero
            point makes zero exact.
        granularity: `"tensor"` (the default): one scale for each weight; a leaf with batch axes
            holds several. `"channel"`: one for each index of the output axes. A number: see
            `group`. Slots of one axis (a table that is quantized after sharing) take one scale.
        group: entries of a group, in place of a number as `granularity`. Groups run along the
            contracted axes, flattened in the order of the product; the last one may be shorter.
        axis: the one axis that counts as channels, in place of the output axes.
        range: `"absmax"`: the extreme values of a block. `"percentile"`: without the share of
            outliers that `percent` leaves. `"mse"`: of 80 shares of the extreme values, the one
            of least squared error; that takes 80 passes over the weights, so raise `every`.
        percent: 50 to 100, the share of a block that its range holds; where not symmetric, each
            end leaves out as many. Used by `"percentile"` only.
        scale_dtype: dtype the scale is stored, and therefore applied, in.
        every: updates between two choices of the range.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
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
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 2.1; percentiles:
        McKinstry et al. 2018, section 3; squared error: Banner et al. 2019, section 3.
    """
    shared = _check(bits, symmetric, (granularity, group, axis), range, percent, every, scale_dtype)
    covers = range == "absmax" and every == 1  # then no weight is ever clipped
    low, high = integer_range(bits, symmetric=symmetric)

    def fit(part: Blocked) -> dict[str, Any]:
        x, block = part.array, part.block
        options: Any = {"symmetric": symmetric, "mask": part.mask}
        if range == "percentile":
            bottom, top = percentile_range(x, block, percent, **options)
        elif range == "mse":
            options["scale_dtype"] = scale_dtype
            bottom, top = mse_range(x, bits, block, **options)
        else:
            scale, zero = fit_grid(x, bits, block, **options, scale_dtype=scale_dtype)
            return {"scale": scale, "zero": zero}
        scale, zero = grid_of_range(bottom, top, bits, symmetric=symmetric, scale_dtype=scale_dtype)
        return {"scale": scale, "zero": zero}

    def encode(part: Blocked, grid: dict[str, Any]) -> Quantized:
        x, scale, zero = part.array, part.field(grid["scale"]), part.field(grid["zero"])
        codes = quantize(jax.lax.stop_gradient(x), show(scale), show(zero), low, high)
        carry = x if covers else _unclipped(x, show(scale), show(zero), low, high)
        return Quantized(codes, scale, zero, carry, low, high, str(x.dtype))

    exact = range != "mse"  # which compares sums
    return fitted(_NAME, where, shared, fit=fit, encode=encode, every=every, exact=exact)


def _unclipped(x: jax.Array, scale: jax.Array, zero: Any, low: int, high: int) -> jax.Array:
    """Stops the gradient of weights that lie beyond the range.

    The ends of a range need not lie within those of its grid: the zero point is rounded, by half
    a step, and so is the scale, in its dtype. What a range was fitted to must keep its gradient.
    """
    v = jax.lax.stop_gradient(x).astype(jnp.float32) / expand(scale, x.shape).astype(jnp.float32)
    v = v if zero is None else v + expand(zero, x.shape)
    slack = 0.5 + float(jnp.finfo(scale.dtype).eps) * (high - low)
    return gate(x, (low - slack <= v) & (v <= high + slack))


def _check(
    bits: int,
    symmetric: bool,
    given: tuple[Granularity | None, int | None, int | None],
    range: str,
    percent: float,
    every: int,
    scale_dtype: DTypeLike,
) -> Sharing:
    settings = Settings(_NAME)
    settings.integer("bits", bits, 2, 16)
    settings.flag("symmetric", symmetric)
    shared = sharing(settings, *given, default="tensor")
    settings.choice("range", range, ("absmax", "percentile", "mse"))
    settings.number("percent", percent, 50, 100)
    settings.integer("every", every, 1)
    settings.floating("scale_dtype", scale_dtype)
    settings.done()
    return shared
