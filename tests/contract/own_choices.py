"""A score and a grid of one's own: what a user writes, in a file outside of the package."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.pruning.score import Score
from nnopt_jax.quantization.grids import Grid


def distance_to_grid(step: float = 0.25) -> Score:
    r"""Return $|w - s\,\mathrm{round}(w / s)|$: weights that a grid would move most are kept."""

    def of(leaves, memory):
        del memory
        return {
            path: jnp.abs(
                w - jnp.asarray(step, w.dtype) * jnp.round(w / jnp.asarray(step, w.dtype))
            )
            for path, w in leaves.items()
        }

    return Score("distance_to_grid", of, settings=(("step", step),))


def powers_of_two(steps: int = 4) -> Grid:
    r"""Return the values $0$ and $\pm 2^{-k}$, $0 \le k <$ `steps`."""
    above = tuple(2.0**-k for k in reversed(range(steps)))
    levels = (*(-x for x in reversed(above)), 0.0, *above)
    return Grid("powers_of_two", 0, len(levels) - 1, levels, settings=(("steps", steps),))
