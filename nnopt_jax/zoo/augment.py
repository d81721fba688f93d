"""Random augmentation of training images, which preserves the label."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.typing import Array, Key


def shift(images: Array, key: Key, *, pixels: int = 2) -> Array:
    """Shift each image by up to some pixels along both axes, with zeros at the border.

    Args:
        images: (b, height, width, channels).
        key: the key of the random shifts.
        pixels: the greatest shift.

    Returns:
        The moved images, of the same shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.zoo.augment import shift
        >>> image = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)
        >>> moved = shift(image, jax.random.key(0))
        >>> moved.shape, float(moved.sum())
        ((1, 5, 5, 1), 1.0)

    References:
        Simard et al., "Best practices for convolutional neural networks applied to visual document
        analysis" (2003), section 2.
    """
    framed = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(framed, corners)


def affine(
    images: Array,
    key: Key,
    *,
    pixels: float = 1.0,
    turn: float = 0.1,
    shear: float = 0.05,
    scale: float = 0.1,
) -> Array:
    r"""Shift, rotate, shear and scale each image slightly, by bilinear interpolation.

    $$\hat x(p) = x(A p + b), \qquad
    A = I + \begin{pmatrix} s_1 & h + r \\ h - r & s_2 \end{pmatrix}$$

    about the center of the image, with zeros around it.

    Args:
        images: (b, height, width, channels).
        key: the key of the random maps.
        pixels: the greatest shift along each axis, `b`.
        turn: the greatest `r`, approximately in radians.
        shear: the greatest `h`.
        scale: the greatest `s`, which is drawn for each axis.

    Returns:
        The changed images, of the same shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.zoo.augment import affine
        >>> images = jnp.ones((2, 5, 5, 1))
        >>> still = affine(images, jax.random.key(0), pixels=0, turn=0, shear=0, scale=0)
        >>> bool((still == images).all())
        True

    References:
        Simard et al., "Best practices for convolutional neural networks applied to visual document
        analysis" (2003), section 2.
    """
    batch, height, width, channels = images.shape
    u = jax.random.uniform(key, (batch, 6, 1, 1), minval=-1.0, maxval=1.0)
    y = (jnp.arange(height) - (height - 1) / 2)[None, :, None]
    x = (jnp.arange(width) - (width - 1) / 2)[None, None, :]
    r, h = turn * u[:, 1], shear * u[:, 2]
    py = y + scale * u[:, 0] * y + (h + r) * x + pixels * u[:, 4] + (height + 1) / 2
    px = x + (h - r) * y + scale * u[:, 3] * x + pixels * u[:, 5] + (width + 1) / 2
    # Points outside of the image are read from a frame of zeros, one pixel wide.
    py, px = jnp.clip(py, 0, height + 1), jnp.clip(px, 0, width + 1)
    iy, ix = (jnp.minimum(at.astype(jnp.int32), last) for at, last in ((py, height), (px, width)))
    fy, fx = (py - iy)[..., None], (px - ix)[..., None]
    framed = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(-1, channels)
    at = jnp.arange(batch)[:, None, None] * ((height + 2) * (width + 2)) + iy * (width + 2) + ix

    def corner(offset: int) -> Array:
        return jnp.take(framed, at + offset, axis=0, mode="clip")

    top = corner(0) * (1 - fx) + corner(1) * fx
    bottom = corner(width + 2) * (1 - fx) + corner(width + 3) * fx
    return top * (1 - fy) + bottom * fy
