"""When a threshold is chosen anew."""

from __future__ import annotations

from typing import Any

import jax

from nnopt_jax.pruning.masking import target


def is_due(every: int, sparsity: Any, count: jax.Array, held: jax.Array) -> Any:
    """At the period, and when the schedule has arrived.

    Args:
        every: updates between two choices.
        sparsity: a number or a schedule.
        count: int32, the number of this update.
        held: the sparsity in force.

    Returns:
        A bool, Python's where it depends on settings alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.pruning.sparsity.due import is_due
        >>> is_due(5, lambda count: jnp.minimum(0.1 * count, 0.3), jnp.int32(3), jnp.float32(0.1))
        Array(True, dtype=bool)
    """
    if every == 1:
        return True
    due = count % every == 0
    if callable(sparsity):
        share = target(sparsity, count)
        due |= (held != share) & (target(sparsity, count + 1) == share)
    return due
