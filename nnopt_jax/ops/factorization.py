"""Low-rank factorization of matrices."""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from nnopt_jax.errors import ValueRangeError

Method: TypeAlias = Literal["svd", "randomized"]


def svd(
    x: ArrayLike,
    rank: int,
    *,
    method: Method = "svd",
    key: Array | None = None,
    oversampling: int = 8,
    power: int = 2,
) -> tuple[Array, Array, Array]:
    r"""Return the greatest singular values of matrices, with their vectors.

    $$ X \approx U \, \mathrm{diag}(s) \, V, \qquad U^T U = V V^T = I $$

    Args:
        x: float, `(..., m, n)`, finite.
        rank: the number of singular values, 1 to `min(m, n)`.
        method: `"svd"`: exact. `"randomized"`: in a random subspace that power iterations turn
            toward the greatest singular vectors; far faster for a small rank of a large matrix.
        key: PRNG key, only for `"randomized"`.
        oversampling: dimensions of that subspace beyond the rank.
        power: power iterations, each with two orthonormalizations.

    Returns:
        `U` `(..., m, rank)`, `s` `(..., rank)` descending, `V` `(..., rank, n)`, in float32. The
        entry of greatest magnitude in each column of `U` is positive.

    Raises:
        ValueRangeError: the rank is out of range, or the key is missing.

    Example:
        >>> import jax.numpy as jnp
        >>> u, s, v = svd(jnp.array([[2.0, 1.0], [1.0, 2.0]]), rank=1)
        >>> (s[0] * u @ v).round(2)
        Array([[1.5, 1.5],
               [1.5, 1.5]], dtype=float32)

    References:
        Halko, Martinsson, Tropp 2011, Finding Structure with Randomness, algorithms 4.4 and 5.1.
    """
    x = jnp.asarray(x).astype(jnp.float32)
    if not 1 <= rank <= min(x.shape[-2:]):
        raise ValueRangeError(f"svd: rank={rank} of shape {x.shape}; give 1 to the smaller side")
    if method == "svd":
        u, s, v = jnp.linalg.svd(x, full_matrices=False)
    elif key is None:
        raise ValueRangeError("svd: method='randomized' draws; give key=jax.random.key(0)")
    else:
        basis = _range(x, min(rank + oversampling, *x.shape[-2:]), key, power)
        small, s, v = jnp.linalg.svd(_times(basis.mT, x), full_matrices=False)
        u = _times(basis, small)
    u, s, v = u[..., :rank], s[..., :rank], v[..., :rank, :]
    at = jnp.argmax(jnp.abs(u), axis=-2, keepdims=True)
    sign = jnp.where(jnp.take_along_axis(u, at, axis=-2) < 0, -1.0, 1.0)
    return u * sign, s, v * sign.mT


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _range(x: Array, size: int, key: Array, power: int) -> Array:
    """Return an orthonormal basis of a subspace that contains most of the range of `x`."""
    draw = jax.random.normal(key, (*x.shape[:-2], x.shape[-1], size))
    basis = jnp.linalg.qr(_times(x, draw))[0]
    for _ in range(power):
        basis = jnp.linalg.qr(_times(x.mT, basis))[0]
        basis = jnp.linalg.qr(_times(x, basis))[0]
    return basis


def factorize(
    x: ArrayLike, rank: int, *, method: Method = "svd", key: Array | None = None
) -> tuple[Array, Array]:
    r"""Return the best low-rank approximation as a product of two factors of equal norm.

    $$ A = U S^{1/2}, \qquad B = S^{1/2} V, \qquad
       \lVert X - A B \rVert_F^2 = \sum_{i > r} s_i^2 $$

    Args:
        x: float, `(..., m, n)`; NaN and infinities count as 0.
        rank: `r`, 1 to `min(m, n)`.
        method: see `svd`.
        key: see `svd`.

    Returns:
        `A` `(..., m, r)` and `B` `(..., r, n)`, float32. If a singular value is 0, the column of
        `A` is 0 but the row of `B` is not, so that gradients reach the column.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = factorize(jnp.array([[1.0, 2.0], [2.0, 4.0]]), rank=1)
        >>> (a @ b).round(3)
        Array([[1., 2.],
               [2., 4.]], dtype=float32)

    References:
        Eckart and Young 1936, The Approximation of One Matrix by Another of Lower Rank.
    """
    x = jnp.asarray(x).astype(jnp.float32)
    x = jnp.where(jnp.isfinite(x), x, 0)
    # Squares and some reciprocals of the largest and the least floats are out of range, so the
    # matrix is scaled by a power of two.
    most = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    unit = jnp.where(most > 0, jnp.clip(most, 2.0**-126, 2.0**126), 1.0)
    u, s, v = svd(x / unit, rank, method=method, key=key)
    root, scale = jnp.sqrt(s), jnp.sqrt(unit)
    there = jnp.where(s > 0, root, 1.0)
    return u * root[..., None, :] * scale, v * there[..., :, None] * scale


def rank_for_energy(x: ArrayLike, energy: float) -> int:
    """Return the least rank whose singular values hold a fraction of the sum of squares.

    Args:
        x: float, `(..., m, n)`, concrete; NaN and infinities count as 0. Each of several matrices
            must reach the fraction.
        energy: the fraction, above 0 and at most 1.

    Returns:
        The rank, at least 1.

    Example:
        >>> import jax.numpy as jnp
        >>> rank_for_energy(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 0.9)
        2
    """
    x = np.asarray(x, np.float64)
    squares = np.linalg.svd(np.where(np.isfinite(x), x, 0), compute_uv=False) ** 2
    total = squares.cumsum(-1)
    enough = total >= energy * total[..., -1:] * (1 - 1e-12)
    return int(enough.argmax(-1).max(initial=0)) + 1
