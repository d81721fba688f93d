"""Resizing of weights for models of other sizes."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from nnopt_jax.errors import ShapeError
from nnopt_jax.typing import Array, ArrayLike, Shape

Sampling = Literal["align_corners", "half_pixel"]


def corner(x: ArrayLike, like: ArrayLike) -> Array:
    """Copy an array into the leading corner of another array, and drop what does not fit.

    Args:
        x: any array.
        like: array of the same rank, whose values remain outside of the corner.

    Returns:
        An array of the shape and dtype of `like`.

    Raises:
        ShapeError: the numbers of axes differ.

    Example:
        >>> import numpy as np
        >>> corner(np.array([[1, 2, 3]]), np.zeros((2, 2), int))
        Array([[1, 2],
               [0, 0]], dtype=int32)
    """
    x, like = jnp.asarray(x), jnp.asarray(like)
    if x.ndim != like.ndim:
        raise ShapeError(f"ops.corner: {x.shape} and {like.shape} differ in their number of axes.")
    part = tuple(slice(min(sizes)) for sizes in zip(x.shape, like.shape, strict=True))
    return like.at[part].set(x[part].astype(like.dtype))


def resize_rows(x: ArrayLike, rows: int) -> Array:
    """Resize an embedding to another vocabulary: drop rows, or add copies of the mean row.

    Args:
        x: `(n, ...)`, with at least one row.
        rows: the new number of rows.

    Returns:
        `(rows, ...)`, of which the first `min(n, rows)` are unchanged.

    Raises:
        ShapeError: `x` has no rows.

    Example:
        >>> import numpy as np
        >>> resize_rows(np.array([[1.0], [3.0]]), 3).ravel()
        Array([1., 3., 2.], dtype=float32)

    References:
        Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models.
    """
    x = jnp.asarray(x)
    if not x.ndim or not len(x):
        raise ShapeError(f"ops.resize_rows: {x.shape} has no rows.")
    added = max(rows - len(x), 0)
    mean = x.astype(jnp.float32).mean(0, keepdims=True).astype(x.dtype)
    return jnp.concatenate([x[:rows], jnp.repeat(mean, added, axis=0)])


def resize_grid(x: ArrayLike, places: int, sampling: Sampling, extra: int | None = None) -> Array:
    r"""Interpolate a square grid of position embeddings bilinearly.

    $$ x_i = i\,\frac{n - 1}{m - 1} \text{ (align corners)}, \qquad
       x_i = \big(i + \tfrac12\big)\frac{n}{m} - \tfrac12 \text{ (half pixel)} $$

    Args:
        x: `(..., e + n n, channels)`: extra tokens without a position, then the grid row by row.
        places: `e + m m`, the new number of rows.
        sampling: the positions of new grid points: `"align_corners"` as in SciPy's `zoom`;
            `"half_pixel"` as in most image libraries, with edge values repeated beyond the edge.
        extra: `e`; by default 0 or 1, whichever makes both numbers square.

    Returns:
        `(..., places, channels)`.

    Raises:
        ShapeError: the numbers of grid points are not square.

    Example:
        >>> import numpy as np
        >>> grid = np.array([0.0, 1.0, 2.0, 3.0]).reshape(4, 1)
        >>> resize_grid(grid, 9, "align_corners").reshape(3, 3)
        Array([[0. , 0.5, 1. ],
               [1. , 1.5, 2. ],
               [2. , 2.5, 3. ]], dtype=float32)

    References:
        Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, section 3.2.
    """
    x = jnp.asarray(x)
    before = x.shape[-2] if x.ndim > 1 else 0
    held = _extra(before, places, extra)
    n, m = math.isqrt(before - held), math.isqrt(places - held)
    weights = _bilinear(n, m, sampling)
    lead: Shape = (*x.shape[:-2], n, n, x.shape[-1])
    grid = x[..., held:, :].reshape(lead).astype(jnp.float32)
    grid = jnp.einsum("ai,bj,...ijc->...abc", weights, weights, grid,
                      precision=jax.lax.Precision.HIGHEST)  # fmt: skip
    grid = grid.reshape(*x.shape[:-2], m * m, x.shape[-1]).astype(x.dtype)
    return jnp.concatenate([x[..., :held, :], grid], axis=-2)


def _extra(before: int, after: int, extra: int | None) -> int:
    for held in (0, 1) if extra is None else (extra,):
        if _is_square(before - held) and _is_square(after - held):
            return held
    said = "with or without one token" if extra is None else f"after {extra} tokens"
    raise ShapeError(f"ops.resize_grid: {before} and {after} rows are not squares {said}.")


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _bilinear(n: int, m: int, sampling: Sampling) -> Array:
    """Return the interpolation matrix `(m, n)` from `n` old to `m` new grid points."""
    at = jnp.arange(m, dtype=jnp.float32)
    if sampling == "align_corners":
        at = at * ((n - 1) / max(m - 1, 1))
    else:
        at = jnp.clip((at + 0.5) * (n / m) - 0.5, 0, n - 1)
    apart = jnp.abs(at[:, None] - jnp.arange(n, dtype=jnp.float32)[None])
    return jnp.maximum(1 - apart, 0)
