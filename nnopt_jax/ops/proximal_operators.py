"""Proximal operators of sparsity penalties."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nnopt_jax.ops.blockwise import reduce_blocks
from nnopt_jax.ops.gradient_estimators import straight_through
from nnopt_jax.ops.grid import expand


def soft_threshold(x: ArrayLike, threshold: ArrayLike) -> Array:
    r"""Move every entry towards zero by a threshold; smaller entries become zero.

    $$ \operatorname{sign}(x) \max(|x| - t, 0)
       = \arg\min_y \tfrac12 (y - x)^2 + t \, |y| $$

    Args:
        x: float array.
        threshold: `t`, a non-negative scalar.

    Returns:
        An array of the shape and dtype of `x`, computed in float32, without -0; NaN where `x` is
        NaN. The gradient is that of the formula: beyond the threshold 1 for `x` and `-sign(x)` for
        `t`, and 0 below it.

    Example:
        >>> import jax.numpy as jnp
        >>> print(soft_threshold(jnp.array([3.0, -0.5, -2.0]), 1.0))
        [ 2.  0. -1.]

    References:
        Donoho, De-noising by soft-thresholding, https://doi.org/10.1109/18.382009, section I.
    """
    x = jnp.asarray(x)
    wide = x.astype(jnp.float32)
    left = jnp.abs(wide) - jnp.asarray(threshold, jnp.float32)
    # NaN compares as false, and so stays NaN.
    return jnp.where(left <= 0, jnp.float32(0), jnp.sign(wide) * left).astype(x.dtype)


def shrink(x: ArrayLike, threshold: ArrayLike) -> Array:
    r"""Return the soft threshold of `x`, with a straight-through gradient for `x`.

    The value is `soft_threshold(x, t)`. The tangent is `dx - sign(x) dt`, also below the threshold,
    so that a value that became zero may grow again.

    Args:
        x: float array.
        threshold: `t`, a non-negative scalar.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> print(jax.grad(lambda x: shrink(x, 1.0).sum())(jnp.array([3.0, -0.5])))
        [1. 1.]
    """
    x = jnp.asarray(x)
    wide = x.astype(jnp.float32)
    moved = wide - jnp.sign(wide) * jnp.asarray(threshold, jnp.float32)
    shown = jax.lax.stop_gradient(soft_threshold(x, threshold))
    return straight_through(shown, moved.astype(x.dtype))


def block_rms(x: ArrayLike, block: Sequence[int]) -> Array:
    r"""Return the root mean square of each block, without overflow.

    $$ \sqrt{\tfrac1n \textstyle\sum_{i \in g} x_i^2} $$

    Args:
        x: float array.
        block: size of a block along each axis, which it divides.

    Returns:
        float32, one for each block.

    Example:
        >>> import jax.numpy as jnp
        >>> print(block_rms(jnp.array([[3.0, 0.0], [4.0, 0.0]]), (2, 1)))
        [[3.535534 0.      ]]
    """
    wide = jnp.asarray(x).astype(jnp.float32)
    top = jnp.max(jnp.abs(wide), initial=0)
    # Scale by powers of two, which is exact; a quotient by the greatest entry may be flushed to
    # zero.
    shift = jnp.where(top > 2.0**50, -80, jnp.where(top < 2.0**-50, 80, 0))
    mean = reduce_blocks("block_rms", _mean_square, jnp.ldexp(wide, shift), block)
    return jnp.ldexp(jnp.sqrt(mean), -shift)


def _mean_square(x: Array, axes: tuple[int, ...]) -> Array:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return jnp.sum(jnp.square(x), axes) / max(count, 1)


def block_soft_threshold(x: ArrayLike, threshold: ArrayLike, block: Sequence[int]) -> Array:
    r"""Shrink blocks by their norm; blocks of small norm become zero.

    $$ x_g \max\Bigl(1 - \frac{t \sqrt{n_g}}{\lVert x_g \rVert_2}, 0\Bigr)
       = \arg\min_y \tfrac12 \lVert y - x \rVert_2^2
       + t \sum_g \sqrt{n_g} \, \lVert y_g \rVert_2 $$

    Args:
        x: float array.
        threshold: `t`, a non-negative scalar; blocks whose root mean square is at most `t` become
            zero.
        block: size of a block along each axis, which it divides.

    Returns:
        An array of the shape and dtype of `x`, computed in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[3.0, 0.1], [4.0, 0.1]])
        >>> print(block_soft_threshold(x, 0.5 * 0.5**0.5, (2, 1)))
        [[2.7 0. ]
         [3.6 0. ]]

    References:
        Yuan and Lin, Model selection and estimation in regression with grouped variables,
    https://doi.org/10.1111/j.1467-9868.2005.00532.x, section 2.
    """
    x = jnp.asarray(x)
    wide = x.astype(jnp.float32)
    rms = block_rms(wide, block)
    threshold = jnp.asarray(threshold, jnp.float32)
    factor = jnp.where(rms <= threshold, jnp.float32(0), 1 - threshold / jnp.where(rms > 0, rms, 1))
    return (wide * expand(factor, x.shape)).astype(x.dtype)


def hoyer_scale(x: ArrayLike, threshold: ArrayLike) -> Array:
    r"""Return the factor that restores the norm of a soft-thresholded array.

    Soft threshold and rescaling together are the proximal step of Hoyer's square measure, which
    does not depend on scale, among arrays of equal norm:

    $$ \frac{\lVert x \rVert_2}{\lVert S_t(x) \rVert_2} S_t(x)
       = \arg\min_{\lVert y \rVert_2 = \lVert x \rVert_2} \tfrac12 \lVert y - x \rVert_2^2
       + \lambda \frac{\lVert y \rVert_1^2}{\lVert y \rVert_2^2},
       \qquad t = 2 \lambda \frac{\lVert y \rVert_1}{\lVert x \rVert_2^2} $$

    (On the sphere, `y` is stationary where `|x| - t` is a multiple of `|y|` for all nonzero `y`.)

    Args:
        x: float array.
        threshold: `t`, a non-negative scalar.

    Returns:
        A float32 scalar; 1 if all entries become zero.

    Example:
        >>> import jax.numpy as jnp
        >>> print(hoyer_scale(jnp.array([4.0, -3.0]), 3.0))
        5.0

    References:
        the measure: Yang, Wen, Li, DeepHoyer, https://arxiv.org/abs/1908.09979, section 3; the
    projection: Hoyer, Non-negative Matrix Factorization with Sparseness Constraints,
    https://arxiv.org/abs/cs/0408058, section 3.
    """
    x = jnp.asarray(x).astype(jnp.float32)
    before, after = (block_rms(y, y.shape).sum() for y in (x, soft_threshold(x, threshold)))
    return jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1)
