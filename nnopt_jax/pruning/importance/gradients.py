"""Gradients as scores take them: by leaf, in float32, finite, averaged over updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.transform.leaves import Leaves, Start, Update

LONGEST = 0.999999
"""The greatest decay of an average: with 1 it would never learn."""


def finite(x: Any) -> jax.Array:
    """In float32, 0 in place of NaN and infinity: what has no value tells nothing.

    So one overflow, of a batch that the optimizer leaves out as well, does not stay in a sum or an
    average for ever.

    Args:
        x: float, any shape.

    Returns:
        float32 of that shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.pruning.importance.gradients import finite
        >>> finite(jnp.array([1.0, jnp.nan, -jnp.inf]))
        Array([1., 0., 0.], dtype=float32)
    """
    x = jnp.asarray(x).astype(jnp.float32)
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def measured(leaves: Leaves, start: Start, name: str) -> Leaves:
    """A statistic of each leaf, finite; zeros where none was given.

    Args:
        leaves: dense, by path.
        start: what `init` was given.
        name: of the statistic.

    Returns:
        float32 by path.
    """
    given = start.stats.get(name, {})
    return {path: finite(given.get(path, jnp.zeros(x.shape))) for path, x in leaves.items()}


def shown(who: str, leaves: Leaves, now: Update) -> Leaves:
    """The gradient of each leaf at what the model saw, finite.

    Args:
        who: the method's public name.
        leaves: by path.
        now: what `update` was given.

    Returns:
        float32 by path.

    Raises:
        StatisticsError: leaves have none.
    """
    return {path: finite(grad) for path, grad in now.shown(who, leaves).items()}


def gathered(old: jax.Array, new: jax.Array, decay: float | None) -> jax.Array:
    """Adds to a sum, or to an exponential average.

    `old + new`, or `decay * old + (1 - decay) * new`. An average that starts at zero is too small
    by one factor for all weights, which no ranking sees.

    Args:
        old: float32.
        new: float32, of the same shape.
        decay: None for the sum.

    Returns:
        float32, of that shape.
    """
    new = finite(new)  # a product of finite numbers may overflow
    return old + new if decay is None else decay * old + (1.0 - decay) * new
