"""The methods of pruning."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.registry.entry import Entry
from nnopt_jax.typing import ArrayLike


def _ramp(count: ArrayLike) -> ArrayLike:
    """A schedule for the cases: three quarters after three steps."""
    return 0.75 * jnp.minimum(jnp.asarray(count, jnp.float32), 3.0) / 3.0


ENTRIES: dict[str, Entry] = {
    "pruning.magnitude": Entry(
        "nnopt_jax.pruning:magnitude",
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": 0.75, "mode": "soft"},
            {"sparsity": 0.5, "allocation": "global", "every": 2},
            {"sparsity": _ramp, "mode": "soft", "every": 2},
            {"pattern": "2:4"},
            {"sparsity": _ramp, "allocation": "erk", "pattern": (2, 2)},
            {"sparsity": 0.5, "allocation": "lamp"},
        ),
    ),
}
