"""Random changes to training images that leave the label as it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.typing import Array, Key


def shift(images: Array, key: Key, *, pixels: int = 2) -> Array:
    """Moves each image by up to some pixels along both axes; zeros come in at the border.

    Args:
        images: (b, height, width, channels).
        key: draws the shifts.
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

    Source: Simard et al., "Best practices for convolutional neural networks applied to visual
    document analysis" (2003), section 2.
    """
    framed = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(framed, corners)
