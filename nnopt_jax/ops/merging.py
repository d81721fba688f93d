"""Arithmetic of arrays that are to become one."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from nnopt_jax.ops.threshold import top_k_mask
from nnopt_jax.typing import Array, ArrayLike

Elect = Literal["weighted", "unweighted"]

_PARALLEL = 0.9995  # beyond this cosine the arc is a line, to the precision of float32


def slerp(a: ArrayLike, b: ArrayLike, t: ArrayLike) -> Array:
    r"""Goes from one array to another along the arc between their directions.

    .. math:: \frac{\sin((1 - t)\,\theta)}{\sin\theta}\, a + \frac{\sin(t\,\theta)}{\sin\theta}\, b,
        \qquad \cos\theta = \frac{\langle a, b \rangle}{\lVert a \rVert \lVert b \rVert}

    Where the directions are nearly the same or opposite, along the line between the arrays.

    Args:
        a: float array of any shape, taken as one vector.
        b: of the same shape.
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
    a, b, t = (jnp.asarray(x, jnp.float32) for x in (a, b, t))
    near, far = arc(jnp.vdot(a, a), jnp.vdot(b, b), jnp.vdot(a, b), t)
    return near * a + far * b


def arc(aa: ArrayLike, bb: ArrayLike, ab: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
    """The two factors of `slerp`, from scalar products, which may be summed over many arrays.

    Args:
        aa: `<a, a>`.
        bb: `<b, b>`.
        ab: `<a, b>`.
        t: 0 for `a`, 1 for `b`.

    Returns:
        What `a` and `b` are multiplied with.

    Example:
        >>> [round(float(factor), 4) for factor in arc(1.0, 1.0, 0.0, 0.5)]
        [0.7071, 0.7071]
    """
    aa, bb, ab, t = (jnp.asarray(x, jnp.float32) for x in (aa, bb, ab, t))
    size = jnp.sqrt(aa) * jnp.sqrt(bb)
    cosine = jnp.clip(ab / jnp.where(size > 0, size, 1.0), -1.0, 1.0)
    line = (jnp.abs(cosine) > _PARALLEL) | (size == 0)
    angle = jnp.arccos(jnp.where(line, 0.0, cosine))
    near, far = (jnp.sin(part * angle) / jnp.sin(angle) for part in (1 - t, t))
    return jnp.where(line, 1 - t, near), jnp.where(line, t, far)


def trim(delta: ArrayLike, density: float) -> Array:
    r"""Keeps the greatest part of a difference, and sets the rest to zero.

    Args:
        delta: float array.
        density: the share that is kept, from 0 to 1: `floor(density * n)` values of greatest
            magnitude; of equal ones, those that come first.

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
    r"""Averages, entry by entry, the differences whose sign has the majority.

    .. math:: \gamma = \mathrm{sgn}\Big(\sum_k \delta_k\Big), \qquad
        \tau = \frac{\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} w_k\, \delta_k}
        {\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} n_k}

    The two readings that are in use differ where weights do: `"weighted"` (mergekit) elects among
    :math:`w_k \delta_k` and divides by the sum of weights, :math:`n_k = w_k`; `"unweighted"` (PEFT)
    elects among :math:`\delta_k` and divides by their number, :math:`n_k = 1`. Where the sum is
    zero, the sign is positive.

    Args:
        deltas: (models, ...) float.
        weights: (models,).
        vote: which reading.

    Returns:
        A float32 array of the shape of one difference; 0 where nothing was elected.

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
