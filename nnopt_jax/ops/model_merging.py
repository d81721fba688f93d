"""Arithmetic for merging the weights of several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from nnopt_jax.ops.block_formats import exponent
from nnopt_jax.ops.threshold import top_k_mask
from nnopt_jax.typing import Array, ArrayLike

Elect = Literal["weighted", "unweighted"]

# Beyond these cosines, interpolation is linear. Directions above the first are equal to the
# precision of float32. Opposite directions are connected by many arcs, and near them rounding would
# choose one.
_SAME, _OPPOSITE = 1 - 5e-7, -0.9995


def slerp(a: ArrayLike, b: ArrayLike, t: ArrayLike) -> Array:
    r"""Interpolate between two arrays along the arc between their directions.

    $$ \frac{\sin((1 - t)\,\theta)}{\sin\theta}\, a + \frac{\sin(t\,\theta)}{\sin\theta}\, b,
       \qquad \cos\theta = \frac{\langle a, b \rangle}{\lVert a \rVert \lVert b \rVert} $$

    If the directions are nearly equal or opposite, the interpolation is linear.

    Args:
        a: float array of any shape, taken as one vector.
        b: float array of the same shape.
        t: 0 for `a`, 1 for `b`.

    Returns:
        A float32 array of that shape.

    Example:
        >>> import numpy as np
        >>> slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5).round(4)
        Array([0.7071, 0.7071], dtype=float32)

    References:
        Shoemake 1985, Animating Rotation with Quaternion Curves, section 3.3.
    """
    a, b = (jnp.asarray(x, jnp.float32) for x in (a, b))
    near, far = arc([a], [b], t)
    return near * a + far * b


def arc(a: Sequence[Array], b: Sequence[Array], t: ArrayLike) -> tuple[Array, Array]:
    """Return the two factors of `slerp` for lists of arrays, each list taken as one vector.

    Args:
        a: float32 arrays.
        b: float32 arrays of the same shapes.
        t: 0 for `a`, 1 for `b`.

    Returns:
        The factors of `a` and of `b`.

    Example:
        >>> x, y = jnp.array([1e30, 0.0]), jnp.array([0.0, 1e-30])
        >>> [round(float(factor), 4) for factor in arc([x], [y], 0.5)]
        [0.7071, 0.7071]
    """
    a, b, t = _near_one(a), _near_one(b), jnp.asarray(t, jnp.float32)
    aa, bb, ab = _product(a, a), _product(b, b), _product(a, b)
    some = (aa > 0) & (bb > 0)  # guarded inside the root, whose derivative at zero is infinite
    size = jnp.sqrt(jnp.where(some, aa, 1.0)) * jnp.sqrt(jnp.where(some, bb, 1.0))
    cosine = ab / size
    line = ~some | (cosine > _SAME) | (cosine < _OPPOSITE)
    angle = jnp.arccos(jnp.where(line, 0.0, cosine))
    near, far = (jnp.sin(part * angle) / jnp.sin(angle) for part in (1 - t, t))
    return jnp.where(line, 1 - t, near), jnp.where(line, t, far)


def _near_one(arrays: Sequence[Array]) -> list[Array]:
    """Scale arrays by one power of two, which leaves directions unchanged."""
    power = jnp.max(jnp.stack([exponent(x).ravel() for x in arrays])) if arrays else 0
    return [jnp.ldexp(x, -power) for x in arrays]


def _product(a: Sequence[Array], b: Sequence[Array]) -> Array:
    return sum(((x * y).sum() for x, y in zip(a, b, strict=True)), jnp.float32(0))


def trim(delta: ArrayLike, density: float) -> Array:
    r"""Keep the greatest entries of a difference, and set the others to zero.

    Args:
        delta: float array.
        density: the fraction to keep, from 0 to 1: `floor(density * n)` values of greatest
            magnitude, and among equal ones the first.

    Returns:
        An array of the same shape and dtype.

    Example:
        >>> import numpy as np
        >>> trim(np.array([0.1, -3.0, 0.2, 1.0], np.float32), 0.5)
        Array([ 0., -3.,  0.,  1.], dtype=float32)

    References:
        Yadav et al. 2023, TIES-Merging, section 4 (trim).
    """
    delta = jnp.asarray(delta)
    return jnp.where(top_k_mask(delta, int(density * delta.size)), delta, 0)


def elect(deltas: ArrayLike, weights: ArrayLike, vote: Elect = "weighted") -> Array:
    r"""Average the differences whose sign has the majority, entry by entry.

    $$ \gamma = \mathrm{sgn}\Big(\sum_k \delta_k\Big), \qquad
       \tau = \frac{\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} w_k\, \delta_k}
       {\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} n_k} $$

    Two variants exist, which differ for unequal weights: `"weighted"` (mergekit) elects among $w_k
    \delta_k$ and divides by the sum of weights, $n_k = w_k$; `"unweighted"` (PEFT) elects among
    $\delta_k$ and divides by their number, $n_k = 1$. If the sum is zero, the sign is positive.

    Args:
        deltas: (models, ...) float.
        weights: (models,).
        vote: the variant.

    Returns:
        A float32 array of the shape of one difference; 0 where no difference has the elected sign.

    Example:
        >>> import numpy as np
        >>> elect(np.array([[1.0, -1.0], [3.0, 2.0], [-1.0, 0.0]]), np.ones(3))
        Array([2., 2.], dtype=float32)

    References:
        Yadav et al. 2023, TIES-Merging, section 4 (elect, disjoint merge).
    """
    deltas = jnp.asarray(deltas, jnp.float32)
    weights = jnp.asarray(weights, jnp.float32).reshape(-1, *(1,) * (deltas.ndim - 1))
    weighted = weights * deltas
    votes = weighted if vote == "weighted" else deltas
    majority = jnp.where(votes.sum(0, keepdims=True) >= 0, 1.0, -1.0)
    agrees = jnp.sign(votes) == majority
    count = jnp.where(agrees, weights if vote == "weighted" else 1.0, 0.0).sum(0)
    return jnp.where(agrees, weighted, 0.0).sum(0) / jnp.where(count == 0, 1.0, count)
