"""Fake quantization: rounding activations to a uniform grid with straight-through gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.ops.gradient_estimators import gate, straight_through
from nnopt_jax.ops.grid import dequantize, expand, fit_grid, integer_range, quantize
from nnopt_jax.quantization.activations.activation_checks import floats
from nnopt_jax.settings import Settings
from nnopt_jax.typing import Array, ArrayLike


def fake_quant(
    x: ArrayLike, scale: ArrayLike, zero: ArrayLike | None = None, *, bits: int = 8
) -> Array:
    r"""Round activations to a given grid.

    $$ \hat x = s \, (q - z), \qquad
       q = \mathrm{clip}(\mathrm{round}(x / s) + z, \; lo, \; hi) $$

    The gradient is 1 where `lo <= x / s + z <= hi` before rounding, and 0 elsewhere. (PyTorch
    decides after rounding, and so passes gradients up to half a step beyond the ends.) Scale and
    zero point get no gradient; see `lsq_activation` and `pact` for learned ranges.

    Args:
        x: float array of any shape; NaN stays NaN.
        scale: `s > 0`, a scalar, or an array of the rank of `x` whose sizes divide those of `x`.
        zero: `z`, integers of the shape of `scale`; None for a symmetric grid.
        bits: 2 to 16.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueRangeError: `bits` is out of range, or `x` or the scale are not floats; outside of
            `jax.jit` also if a scale is not positive, or a zero point is not a code of the grid.
        ShapeError: the scale does not fit `x`.

    Example:
        A function of the parameters with 8-bit weights and 8-bit activations, in training and
        after it:

        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> def loss(params, x):
        ...     x = fake_quant(x, 0.5)
        ...     return (x @ params["kernel"]).sum()
        >>> tx = nnopt.quantization.uniform(8, granularity="channel")
        >>> params = {"kernel": jnp.array([[1.27], [0.013]])}
        >>> x = jnp.array([[0.6, 1.0]])
        >>> value, grads = nnopt.value_and_grad(loss, tx)(params, tx.init(params), x)
        >>> print(value.round(3), grads.train.params["kernel"].ravel())
        0.645 [0.5 1. ]

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 3.
    """
    _check("quantization.fake_quant", bits)
    x = floats("fake_quant", x)
    scale = floats("fake_quant", scale, "scale")
    low, high = integer_range(bits, symmetric=zero is None)
    _check_grid(scale, zero, low, high)
    scale = jax.lax.stop_gradient(_with_rank(scale, x.ndim).astype(jnp.float32))
    zero = None if zero is None else jax.lax.stop_gradient(_with_rank(zero, x.ndim))
    fixed = jax.lax.stop_gradient(x)
    v = fixed.astype(jnp.float32) * expand(1 / scale, x.shape)
    v = v if zero is None else v + expand(zero.astype(jnp.float32), x.shape)
    shown = dequantize(quantize(fixed, scale, zero, low, high), scale, zero, x.dtype)
    return straight_through(shown, gate(x, (low <= v) & (v <= high)))


def dynamic(
    x: ArrayLike, bits: int = 8, axis: int | tuple[int, ...] | None = None, symmetric: bool = True
) -> Array:
    """Round activations to the grid that their own extreme values span.

    This is `fake_quant` with the range of `x` itself, so that nothing is clipped and the whole
    gradient passes. A row of zeros, or with NaN or infinity, gets scale 1.

    Args:
        x: float array of any shape.
        bits: 2 to 16.
        axis: the axes that share a range. None: one range for the whole array. -1: one for each
            row, as is usual for the tokens of a language model.
        symmetric: whether codes are symmetric about zero, without a zero point.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueRangeError: a setting is out of range, `x` does not have the axis, or `x` is not an
            array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.26], [100.0, 26.0]])
        >>> print((3 * dynamic(x, bits=3, axis=-1)).round())
        [[  3.   1.]
         [300. 100.]]

    References:
        Yao et al. 2022, ZeroQuant, section 4.1 (a range for each token).
    """
    x = floats("dynamic", x)
    spanned = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    _check("quantization.dynamic", bits, x.ndim, spanned, symmetric)
    spanned = {one % x.ndim for one in spanned}
    block = tuple(n if i in spanned else 1 for i, n in enumerate(x.shape))
    low, high = integer_range(bits, symmetric=symmetric)
    fixed = jax.lax.stop_gradient(x)
    scale, zero = fit_grid(fixed, bits, block, symmetric=symmetric)
    shown = dequantize(quantize(fixed, scale, zero, low, high), scale, zero, x.dtype)
    return straight_through(shown, x)


def _with_rank(grid: ArrayLike, ndim: int) -> Array:
    """Reshape a scalar to the rank of the array that it belongs to."""
    grid = jnp.asarray(grid)
    return grid.reshape((1,) * ndim) if grid.ndim == 0 else grid


def _check_grid(scale: Array, zero: ArrayLike | None, low: int, high: int) -> None:
    """Raise if scales are not positive or zero points are not codes; skip traced values."""
    settings = Settings("quantization.fake_quant")
    if not isinstance(scale, Tracer) and not bool(jnp.all(scale > 0)):
        settings.wrong("scale", scale.tolist(), "is not above 0 throughout.")
    if zero is not None and not isinstance(zero, Tracer):
        known = np.asarray(zero)
        real = known.dtype.kind in "iuf"
        if not real or not ((known == np.round(known)) & (low <= known) & (known <= high)).all():
            settings.wrong("zero", known.tolist(), f"is not a whole number from {low} to {high}.")
    settings.done()


def _check(
    who: str, bits: int, ndim: int = 0, axes: tuple[int, ...] = (), symmetric: bool = True
) -> None:
    settings = Settings(who)
    settings.integer("bits", bits, 2, 16)
    settings.flag("symmetric", symmetric)
    for axis in axes:
        if ndim:
            settings.integer("axis", axis, -ndim, ndim - 1)
        else:
            settings.wrong("axis", axis, "of a scalar, which has no axes; give None.")
    settings.done()
