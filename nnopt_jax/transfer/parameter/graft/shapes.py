"""Ways to make a leaf of the source fit a leaf of the target, for `rules.adapt`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops import resize
from nnopt_jax.transfer.parameter.graft.leaf_rules import loses
from nnopt_jax.typing import Array


def corner(source: Array, target: Any) -> Array:
    """Puts the source into the leading corner of the target, whose other values stay.

    Args:
        source: the array to bring.
        target: the array it goes into; of a mere shape, the rest is zero.

    Returns:
        An array of the target's shape and dtype.

    Raises:
        ShapeError: numbers of axes differ, or values would be lost in the dtype of the target.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import rules
        >>> rules.corner(jnp.ones(2), jnp.array([5.0, 6.0, 7.0]))
        Array([1., 1., 7.], dtype=float32)
    """
    if isinstance(target, jax.ShapeDtypeStruct):
        target = jnp.zeros(target.shape, target.dtype)
    if loses(source, target.dtype):
        raise ShapeError(
            f"transfer.rules.corner: values of {source.dtype} would be lost in {target.dtype}; "
            f"give the source as {target.dtype}, x.astype(...)."
        )
    return resize.corner(source, target)


def rows(source: Array, target: Any) -> Array:
    """Cuts rows, or adds rows that are the mean of all: another vocabulary.

    Args:
        source: `(n, ...)`.
        target: `(m, ...)`, all other axes alike.

    Returns:
        `(m, ...)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import rules
        >>> rules.rows(jnp.array([[1.0], [3.0]]), jnp.zeros((3, 1))).ravel()
        Array([1., 3., 2.], dtype=float32)
    """
    return resize.resize_rows(source, target.shape[0])


def grid(sampling: resize.Sampling, extra: int | None = None) -> Callable[[Array, Any], Array]:
    """Interpolates a square grid of position embeddings; see `nnopt_jax.ops.resize_grid`.

    Args:
        sampling: `"align_corners"` or `"half_pixel"`.
        extra: tokens before the grid; default: 0 or 1, whichever makes squares.

    Returns:
        `(source, target) -> array`, of arrays `(..., places, channels)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import rules
        >>> rules.grid("half_pixel")(jnp.ones((5, 3)), jnp.zeros((10, 3))).shape
        (10, 3)
    """
    if sampling not in ("align_corners", "half_pixel"):
        raise ShapeError(
            f"transfer.rules.grid: sampling={sampling!r} is neither 'align_corners' nor "
            "'half_pixel'; the two differ."
        )

    def interpolated(source: Array, target: Any) -> Array:
        return resize.resize_grid(source, target.shape[-2], sampling, extra)

    interpolated.__name__ = f"grid({sampling!r})"
    return interpolated
