"""Random numbers that belong to a leaf: the same whatever other leaves come or go."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.transform.leaves import Leaves, Start, slot_key


def seeds(who: str, leaves: Leaves, start: Start) -> Leaves:
    """A seed for each leaf, made of the caller's key and the leaf's path.

    Two numbers rather than a key: they are an array like any other in checkpoints, whatever kind of
    key the caller uses.

    Args:
        who: the method, as errors name it.
        leaves: by path.
        start: holds the key.

    Returns:
        uint32[2] by path.

    Raises:
        ValueRangeError: the caller gave no key.
    """
    if start.key is None:
        raise ValueRangeError(f"{who}: draws at random; give tx.init(params, key="
                              "jax.random.key(0)).")  # fmt: skip
    keys = {path: cast("jax.Array", slot_key(start.key, path, 0)) for path in leaves}
    return {path: jax.random.bits(key, (2,), jnp.uint32) for path, key in keys.items()}


def draw(seed: jax.Array, shape: tuple[int, ...], number: jax.Array | int = 0) -> jax.Array:
    """Uniform numbers from 0 to 1, always the same of one seed and one number.

    Args:
        seed: uint32[2].
        shape: of the result.
        number: which draw.

    Returns:
        float32.
    """
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.uniform(jax.random.fold_in(key, number), shape)
