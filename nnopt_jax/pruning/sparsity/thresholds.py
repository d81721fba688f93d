"""Thresholds that fit masks."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.transform.leaves import Leaves


def largest_gone(levels: Leaves, masks: Leaves, *, together: bool) -> Leaves:
    """The largest level that a mask removes; 0 where it removes none.

    Args:
        levels: by path, float32 of zero or more.
        masks: by path, bool of those shapes, True where a level stays.
        together: whether one threshold is for all leaves.

    Returns:
        A float32 scalar by path.
    """
    limits = {
        path: jnp.max(jnp.where(masks[path], jnp.float32(0), level), initial=0)
        for path, level in levels.items()
    }
    if together:
        limits = dict.fromkeys(limits, jnp.max(jnp.stack([*limits.values()]), initial=0))
    return limits
