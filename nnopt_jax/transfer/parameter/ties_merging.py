"""Sums of what models have learned, where they agree."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nnopt_jax.ops import model_merging
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.parameter.models import check_weights, listed, merged
from nnopt_jax.typing import Params

_NAME = "transfer.ties"


def ties(
    base: Params,
    models: Sequence[Params],
    weights: float | Sequence[float] = 1.0,
    *,
    density: float = 0.2,
    scale: float = 1.0,
    vote: model_merging.Elect = "weighted",
) -> Params:
    r"""Merges models fine-tuned from one base: trim, elect signs, average those that agree.

    $$ \theta = \theta_0 + \lambda \, \tau, \qquad
       \delta_k = \mathrm{trim}(\theta_k - \theta_0), \qquad
       \tau = \frac{\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} w_k\, \delta_k}
       {\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} n_k}, \qquad
       \gamma = \mathrm{sgn}\Big(\sum_k \delta_k\Big) $$

    Args:
        base: the model that the others were fine-tuned from.
        models: trees of arrays or expressions (which are shown), of the same paths and shapes.
        weights: `w`, one for each, or one for all.
        density: the share of each leaf's differences that is kept, the greatest, rounded down:
            of a leaf of four none is at 0.2.
        scale: `lambda`.
        vote: `"weighted"` (mergekit): weights count in the election, `n = w`; `"unweighted"`
            (PEFT): they do not, `n = 1`. The same where weights are 1.

    Returns:
        A tree of arrays, in the dtypes of `base`; leaves of integers are its own.

    Raises:
        ValueRangeError: a setting is out of range.
        SelectionError: a model lacks leaves of the base, or has others; all are named.
        ShapeError: shapes, or kinds of numbers, differ; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> base, a, b = ({"w": jnp.array(x)} for x in ([0.0, 0.0], [4.0, 0.1], [-2.0, 3.0]))
        >>> nnopt.transfer.ties(base, [a, b], density=1.0)
        {'w': Array([4.  , 1.55], dtype=float32)}

    References:
        Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, section 4.
    """
    settings = Settings(_NAME)
    models = listed(settings, models)
    settings.share("density", density, schedule=False)
    settings.number("scale", scale, -1e30, 1e30)
    settings.choice("vote", vote, ("weighted", "unweighted"))
    if not models:
        settings.wrong("models", models, "is empty; give one model or more.")
    shares = jnp.asarray(check_weights(settings, weights, len(models), some=False))

    def merge(start: jax.Array, *others: jax.Array) -> jax.Array:
        kept = jnp.stack([model_merging.trim(other - start, density) for other in others])
        return start + scale * model_merging.elect(kept, shares, vote)

    return merged(_NAME, [base, *models], merge, ("the base",))
