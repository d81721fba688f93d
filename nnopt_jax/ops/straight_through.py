"""Gradients that pass through functions which have none."""

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
    """Shows `y`, and lets `x` receive the gradient as if it had been shown.

    Value `y`, bit for bit (`x + stop_gradient(y - x)` would round, and would turn infinities into
    NaN); tangent `dy + dx`.

    Args:
        y: what the model sees, any shape and dtype.
        x: what was replaced, the same shape.

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

    Source: Bengio, Leonard, Courville, https://arxiv.org/abs/1308.3432, section 4.
    """
    y, x = jnp.asarray(y), jnp.asarray(x)
    if y.shape != x.shape:
        raise ShapeError(
            f"straight_through: y has shape {y.shape} and x {x.shape}; both must be equal"
        )
    return _through(y, x)


def gate(x: ArrayLike, inside: ArrayLike) -> Array:
    """Shows `x`, and lets the gradient pass only where `inside` holds.

    Value `x`, bit for bit; tangent `where(inside, dx, 0)`.

    Args:
        x: any shape and dtype.
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
    """Shows `x`, and multiplies its gradient.

    Value `x`, bit for bit; tangent `factor * dx`.

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
