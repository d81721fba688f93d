"""Straight-through estimators, and other functions that change only gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nnopt_jax.errors import ShapeError


@jax.custom_jvp
def _through(y: Array, x: Array) -> Array:
    return y


@_through.defjvp
def _through_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (y, x), (dy, dx) = primals, tangents
    if not all(jnp.issubdtype(a.dtype, jnp.inexact) for a in (y, x)):
        return y, dy  # integers have no tangent to pass on
    return y, dy + dx.astype(y.dtype)


def straight_through(y: ArrayLike, x: ArrayLike) -> Array:
    """Return `y`, and pass its gradient to `x` as if `x` had been returned.

    The value is `y`, bit for bit (`x + stop_gradient(y - x)` would round, and would turn infinities
    into NaN). The tangent is `dy + dx`.

    Args:
        y: the value to use, of any shape and dtype.
        x: the value that it replaces, of the same shape.

    Returns:
        `y`.

    Raises:
        ShapeError: if the shapes differ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([0.3, 1.6])
        >>> print(straight_through(jnp.round(x), x))
        [0. 2.]
        >>> print(jax.grad(lambda x: straight_through(jnp.round(x), x).sum())(x))
        [1. 1.]

    References:
        Bengio, Leonard, Courville, https://arxiv.org/abs/1308.3432, section 4.
    """
    y, x = jnp.asarray(y), jnp.asarray(x)
    if y.shape != x.shape:
        raise ShapeError(
            f"straight_through: y has shape {y.shape} and x {x.shape}; both must be equal"
        )
    return _through(y, x)


def gate(x: ArrayLike, inside: ArrayLike) -> Array:
    """Return `x`, and pass the gradient only where `inside` is True.

    The value is `x`, bit for bit; the tangent is `where(inside, dx, 0)`.

    Args:
        x: array of any shape and dtype.
        inside: bool, of a shape that broadcasts to that of `x`.

    Returns:
        `x`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([0.5, 3.0])
        >>> print(jax.grad(lambda x: (2 * gate(x, x < 1)).sum())(x))
        [2. 0.]
    """
    x = jnp.asarray(x)
    inside = jnp.broadcast_to(jnp.asarray(inside), x.shape)
    return jnp.where(inside, x, jax.lax.stop_gradient(x))


@jax.custom_jvp
def _scaled(x: Array, factor: Array) -> Array:
    return x


@_scaled.defjvp
def _scaled_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (x, factor), (dx, _) = primals, tangents
    return x, dx * factor.astype(dx.dtype)


def scale_gradient(x: ArrayLike, factor: ArrayLike) -> Array:
    """Return `x`, and multiply its gradient by a factor.

    The value is `x`, bit for bit; the tangent is `factor * dx`.

    Args:
        x: float array.
        factor: float, a scalar or of the shape of `x`; it gets no gradient.

    Returns:
        `x`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> print(jax.grad(lambda x: scale_gradient(x, 0.1) ** 2)(3.0).round(2))
        0.6
    """
    return _scaled(jnp.asarray(x), jnp.asarray(factor))


def round_clip(v: ArrayLike, lo: ArrayLike, hi: ArrayLike) -> Array:
    """Round half to even, then clip, with a straight-through gradient inside the range.

    The value is `clip(round(v), lo, hi)`, never -0; the tangent is `dv` where `lo <= v <= hi`, else
    0. The gradient of a plain clip would be 1/2 at both ends, where many codes lie.

    Args:
        v: float array, any shape; NaN stays NaN, so that a broken weight is not hidden.
        lo: least integer, a scalar or an array that broadcasts to `v`; it gets no gradient.
        hi: greatest integer, likewise.

    Returns:
        Integers held in the dtype of `v`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> v = jnp.array([-9.0, -0.2, 2.5, 7.0])
        >>> print(round_clip(v, -7, 7))
        [-7.  0.  2.  7.]
        >>> print(jax.grad(lambda v: round_clip(v, -7, 7).sum())(v))
        [0. 1. 1. 1.]

    References:
        Esser et al., https://arxiv.org/abs/1902.08153, section 2.1 (the same mask).
    """
    v = jnp.asarray(v)
    lo, hi = (jax.lax.stop_gradient(jnp.asarray(bound, v.dtype)) for bound in (lo, hi))
    code = jnp.clip(jnp.round(jax.lax.stop_gradient(v)), lo, hi)
    # `code + 0.0` would remove -0 too, but compilers may drop it.
    code = jnp.where(code == 0, jnp.zeros((), v.dtype), code)
    return straight_through(code, gate(v, (lo <= v) & (v <= hi)))
