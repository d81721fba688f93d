"""The methods of pruning."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nnopt_jax.registry.entry import Entry
from nnopt_jax.typing import ArrayLike


def _ramp(count: ArrayLike) -> ArrayLike:
    """A schedule for the cases: three quarters after three steps."""
    return 0.75 * jnp.minimum(jnp.asarray(count, jnp.float32), 3.0) / 3.0


def _sharpness(path: str, weight: Any, gradient: Any) -> ArrayLike:
    """A score for the cases, of either sign."""
    del path
    return weight.astype(jnp.float32) + (0.0 if gradient is None else gradient)


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
    "pruning.taylor": Entry(
        "nnopt_jax.pruning:taylor",
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": _ramp, "allocation": "global", "every": 2, "decay": None, "power": 1},
            {"sparsity": 0.5, "mode": "soft", "every": None},
            {"pattern": "2:4", "mode": "soft"},
        ),
    ),
    "pruning.movement": Entry(
        "nnopt_jax.pruning:movement",
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": _ramp, "allocation": "global", "every": 2, "mode": "soft"},
            {"pattern": "2:4"},
            {"sparsity": 0.5, "pattern": (2, 2), "mode": "hard"},
        ),
    ),
    "pruning.fisher": Entry(
        "nnopt_jax.pruning:fisher",
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": _ramp, "allocation": "lamp", "every": 2},
            {"sparsity": 0.5, "allocation": "erk", "mode": "soft"},
        ),
    ),
    "pruning.snip": Entry(
        "nnopt_jax.pruning:snip",
        "wrap",
        ({"sparsity": 0.5, "allocation": "uniform"}, {"sparsity": 0.75}, {"pattern": "2:4"}),
    ),
    "pruning.grasp": Entry(
        "nnopt_jax.pruning:grasp",
        "wrap",
        ({"sparsity": 0.5, "allocation": "uniform"}, {"sparsity": 0.75, "mode": "soft"}),
    ),
    "pruning.saliency": Entry(
        "nnopt_jax.pruning:saliency",
        "wrap",
        (
            {"sparsity": 0.5, "score": _sharpness},
            {"sparsity": 0.75, "score": _sharpness, "gradients": True, "allocation": "global"},
        ),
    ),
    "pruning.rewind": Entry(
        "nnopt_jax.pruning:rewind",
        "wrap",
        ({"rounds": 1, "steps": 1}, {"rounds": 2, "steps": 1, "begin": 1, "to": 1}),
    ),
    "pruning.proximal": Entry(
        "nnopt_jax.pruning:proximal",
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": _ramp, "penalty": "hoyer", "every": 2},
            {"sparsity": 0.5, "penalty": "group_lasso"},
            {"sparsity": _ramp, "allocation": "global", "delete": "on_arrival"},
        ),
    ),
    "pruning.random_mask": Entry(
        "nnopt_jax.pruning:random_mask",
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": _ramp, "allocation": "global", "mode": "soft"},
            {"pattern": "2:4"},
            {"sparsity": 0.5, "allocation": "erk", "pattern": (2, 2)},
        ),
    ),
    "pruning.rigl": Entry(
        "nnopt_jax.pruning:rigl",
        "wrap",
        (
            {"sparsity": 0.5, "end_step": 10, "every": 1},
            {"sparsity": 0.75, "end_step": 10, "every": 2, "allocation": "uniform"},
        ),
    ),
    "pruning.sparse_evolution": Entry(
        "nnopt_jax.pruning:sparse_evolution",
        "wrap",
        ({"sparsity": 0.5, "every": 1}, {"sparsity": 0.75, "every": 2, "allocation": "uniform"}),
    ),
    "pruning.soft_threshold": Entry(
        "nnopt_jax.pruning:soft_threshold",
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": _ramp, "allocation": "global", "every": 2, "mode": "frozen"},
        ),
    ),
    "pruning.learned_threshold": Entry(
        "nnopt_jax.pruning:learned_threshold",
        "wrap",
        ({"start": -1.0, "decay": 0.01},),
    ),
}
