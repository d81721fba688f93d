"""Averages of models."""

from __future__ import annotations

from collections.abc import Sequence

from nnopt_jax.settings import Settings
from nnopt_jax.transfer.parameter.models import check_weights, listed, merged
from nnopt_jax.typing import Params

_NAME = "transfer.soup"


def soup(models: Sequence[Params], weights: float | Sequence[float] = 1.0) -> Params:
    r"""Averages the parameters of models that were fine-tuned from the same start.

    $$ \theta = \frac{\sum_k w_k\, \theta_k}{\sum_k w_k} $$

    Args:
        models: trees of arrays or expressions (which are shown), of the same paths and shapes.
        weights: one for each, or one for all.

    Returns:
        A tree of arrays, in the dtypes of the first model; leaves of integers are its own.

    Raises:
        ValueRangeError: there is no model, or weights do not fit.
        SelectionError: a model lacks leaves of the first, or has others; all are named.
        ShapeError: shapes, or kinds of numbers, differ; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> nnopt.transfer.soup([{"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}], [2, 1])
        {'w': Array([2.], dtype=float32)}

    References:
        Wortsman et al. 2022, Model Soups, section 2 (uniform soup).
    """
    settings = Settings(_NAME)
    models = listed(settings, models)
    if not models:
        settings.wrong("models", models, "is empty; give one model or more.")
    shares = check_weights(settings, weights, len(models))
    total = sum(shares)
    return merged(
        _NAME, models, lambda *x: sum(w / total * one for w, one in zip(shares, x, strict=True))
    )
