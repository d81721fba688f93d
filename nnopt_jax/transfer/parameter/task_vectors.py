"""Sums of what models have learned."""

from __future__ import annotations

from collections.abc import Sequence

from nnopt_jax.settings import Settings
from nnopt_jax.transfer.parameter.models import check_weights, listed, merged
from nnopt_jax.typing import Params

_NAME = "transfer.task_arithmetic"


def task_arithmetic(
    base: Params, models: Sequence[Params], weights: float | Sequence[float] = 1.0
) -> Params:
    r"""Adds to a model what others, fine-tuned from it, have learned; or takes it away.

    $$ \theta = \theta_0 + \sum_k w_k\, (\theta_k - \theta_0) $$

    Args:
        base: the model that the others were fine-tuned from.
        models: trees of arrays or expressions (which are shown), of the same paths and shapes.
        weights: one for each, or one for all; a negative one makes the model forget.

    Returns:
        A tree of arrays, in the dtypes of `base`; leaves of integers are its own.

    Raises:
        ValueRangeError: weights do not fit.
        SelectionError: a model lacks leaves of the base, or has others; all are named.
        ShapeError: shapes, or kinds of numbers, differ; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> base, a, b = ({"w": jnp.array([x])} for x in (1.0, 3.0, 1.5))
        >>> nnopt.transfer.task_arithmetic(base, [a, b], [1, -1])
        {'w': Array([2.5], dtype=float32)}

    References:
        Ilharco et al. 2023, Editing Models with Task Arithmetic, section 2.
    """
    settings = Settings(_NAME)
    models = listed(settings, models)
    shares = check_weights(settings, weights, len(models), some=False)
    return merged(
        _NAME,
        [base, *models],
        lambda start, *x: start + sum(w * (one - start) for w, one in zip(shares, x, strict=True)),
        ("the base",),
    )
