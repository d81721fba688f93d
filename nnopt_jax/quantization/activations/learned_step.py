"""Activation grids with learned steps (LSQ)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.gradient_estimators import gate, round_clip, straight_through
from nnopt_jax.quantization.activations.activation_checks import floats
from nnopt_jax.settings import Settings
from nnopt_jax.typing import Array, ArrayLike


def lsq_activation(x: ArrayLike, step: ArrayLike, bits: int = 8, signed: bool = False) -> Array:
    r"""Round activations to a grid whose step is a parameter of the model (LSQ).

    $$ \hat x = s\,\mathrm{clip}(\mathrm{round}(v),\,-Q_N,\,Q_P), \quad v = x / s, \qquad
       \frac{\partial \hat x}{\partial s} = g \cdot \begin{cases}
       \mathrm{round}(v) - v & -Q_N < v < Q_P \\ -Q_N & v \le -Q_N \\ Q_P & v \ge Q_P
       \end{cases} $$

    with $Q_N = 0$, $Q_P = 2^b - 1$ for activations after a ReLU, or as for weights if signed, and
    $g = 1 / \sqrt{N Q_P}$ for the `N` values of one example. The gradient of `x` is 1 inside the
    range, ends included, and 0 outside. Only the magnitude of the step is used, so an optimizer may
    move it through zero.

    Args:
        x: float array, whose first axis is the batch.
        step: `s`, a scalar to train with the parameters; initialize it by `lsq_step`.
        bits: `b`, 2 to 8.
        signed: whether `x` may be negative.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.2, 0.9, 7.0, -1.0]])
        >>> print(lsq_activation(x, 0.5, bits=2))
        [[0.  1.  1.5 0. ]]

    References:
        Esser et al. 2020, Learned Step Size Quantization, section 2.
    """
    low, high = _ends("lsq_activation", bits, signed)
    x, step = floats("lsq_activation", x), floats("lsq_activation", step, "step")
    step = jnp.maximum(jnp.abs(step.astype(jnp.float32)), jnp.finfo(jnp.float32).tiny)
    fixed, scale = lax.stop_gradient(x), lax.stop_gradient(step)
    v = fixed.astype(jnp.float32) * (1 / scale)
    codes = round_clip(v, low, high)
    count = max(x.size // max(x.shape[0], 1), 1) if x.ndim else 1
    slope = jnp.where((low < v) & (v < high), codes - v, codes)
    slope *= jnp.float32((count * high) ** -0.5)
    way = gate(x, (low <= v) & (v <= high)).astype(jnp.float32) + slope * step
    return straight_through((codes * scale).astype(x.dtype), way)


def lsq_step(x: ArrayLike, bits: int = 8, signed: bool = False) -> Array:
    r"""Return the initial step for a first batch of activations.

    $$ s = 2\,\mathrm{mean}|x| / \sqrt{Q_P} $$

    Args:
        x: float array.
        bits: see `lsq_activation`.
        signed: see `lsq_activation`.

    Returns:
        A float32 scalar; 1 if `x` holds only zeros, or NaN or infinity.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> print(lsq_step(jnp.array([[1.0, 2.0]]), bits=2).round(3))
        1.732

    References:
        Esser et al. 2020, Learned Step Size Quantization, section 2.1.
    """
    _, high = _ends("lsq_step", bits, signed)
    size = jnp.abs(lax.stop_gradient(floats("lsq_step", x))).astype(jnp.float32)
    step = 2 * jnp.sum(size / max(size.size, 1)) * jnp.float32(high**-0.5)
    good = (step >= jnp.finfo(jnp.float32).tiny) & jnp.isfinite(step)
    return jnp.where(good, step, 1.0)


def _ends(who: str, bits: int, signed: bool) -> tuple[int, int]:
    settings = Settings(f"quantization.{who}")
    settings.integer("bits", bits, 2, 8)
    settings.flag("signed", signed)
    settings.done()
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
