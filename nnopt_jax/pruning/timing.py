"""How much is pruned at an update, and whether it is time to choose anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.settings import Settings

_ROUNDING = 1e-6  # by which a schedule may miss its ends
_LATE = 2**30  # a step at which every schedule has arrived


def target(sparsity: Any, count: jax.Array | int) -> Any:
    """The sparsity after `count` updates."""
    return jnp.clip(jnp.asarray(sparsity(count)), 0.0, 1.0) if callable(sparsity) else sparsity


def final(sparsity: Any) -> float:
    """The sparsity in the end."""
    with jax.ensure_compile_time_eval():
        return float(target(sparsity, _LATE))


def first(sparsity: Any) -> float:
    """The sparsity at `init`."""
    with jax.ensure_compile_time_eval():
        return float(target(sparsity, 0))


def check_schedule(settings: Settings, name: str, share: Any) -> None:
    """A schedule must give a share from 0 to 1, at its start and in the end."""
    if not callable(share):
        return
    for count in (0, _LATE):
        try:
            with jax.ensure_compile_time_eval():
                given = jnp.asarray(share(jnp.int32(count)))
                found = float(given) if not given.ndim else None
        except Exception as error:
            settings.wrong(name, share, f"fails at update {count}: {type(error).__name__}: {error}")
            return
        if found is None or not -_ROUNDING <= found <= 1 + _ROUNDING:
            said = found if found is not None else f"an array of shape {given.shape}"
            settings.wrong(name, share, f"gives {said} at update {count}; let it give 0 to 1.")
            return


def is_due(every: int | None, sparsity: Any, count: jax.Array, held: jax.Array) -> Any:
    """At the period, and when the schedule has arrived.

    Args:
        every: updates between two choices; None for never.
        sparsity: a number or a schedule.
        count: int32, the number of this update.
        held: the sparsity in force.

    Returns:
        A bool, Python's where it depends on settings alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.pruning.timing import is_due
        >>> is_due(5, lambda count: jnp.minimum(0.1 * count, 0.3), jnp.int32(3), jnp.float32(0.1))
        Array(True, dtype=bool)
    """
    if every is None or every == 1:
        return every is not None
    due = count % every == 0
    if callable(sparsity):
        share = target(sparsity, count)
        due |= (held != share) & (target(sparsity, count + 1) == share)
    return due
