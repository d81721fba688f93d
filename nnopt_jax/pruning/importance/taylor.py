"""Pruning by the change of the loss, to first order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.importance.gradients import LONGEST, gathered, measured, shown
from nnopt_jax.pruning.masking import Mode, Score, masking
from nnopt_jax.pruning.pattern import Pattern
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, Start, Update, matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

_NAME = "pruning.taylor"


def taylor(
    sparsity: ScalarOrSchedule | None = None,
    *,
    power: int = 2,
    decay: float | None = 0.9,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: Pattern = None,
    mode: Mode = "hard",
    every: int | None = 1,
) -> Transform:
    r"""Keeps the weights whose removal would change the loss most, to first order.

    .. math:: I_i = \langle |g_i w_i|^p \rangle_t, \qquad
        L(w) - L(w \,|\, w_i = 0) \approx g_i w_i

    Each update adds the product of a weight and of its gradient, both as they were before the
    optimizer moved the weight (which the state holds a copy of). Gradients that are not finite
    count as 0.

    Args:
        sparsity: share of zeros from 0 to 1, a schedule of the number of updates, or None where a
            pattern `"n:m"` says it. What is pruned at `init` (any sparsity that does not start at
            0) is judged by `stats`, the mean gradient of some batches.
        power: `p`, 2 or 1.
        decay: of the average over updates, from 0 (the last only) to just below 1; None: the sum
            since the last choice of a mask.
        where: which leaves; default: those of two axes or more.
        allocation: how the sparsity is shared out, as for `pruning.magnitude`; `"global"` compares
            the leaves by what they mean to the loss, as the paper does.
        pattern: what goes together, as for `pruning.magnitude`: None, `"2:4"`, or block sizes.
        mode: as for `pruning.magnitude`. With `"hard"` what is pruned stays so, its product being
            0; with `"soft"` a pruned weight is judged by the value it would return with.
        every: updates between two choices of the mask; None: that of `init` stays.

    Returns:
        The transform. It wraps, and `update` needs gradients: `nnopt.step(..., grads)`.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: (by `init` or `update`) gradients are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> stats = {"gradient": {"kernel": jnp.array([[0.1, 2.0]])}}
        >>> tx = nnopt.pruning.taylor(0.5)
        >>> tx.apply(params, tx.init(params, stats=stats))
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, section 3.1 (8).
    """
    settings = Settings(_NAME)
    settings.integer("power", power, 1, 2)
    settings.number("decay", decay, 0, LONGEST, none=True)

    def product(weight: jax.Array, slope: jax.Array) -> jax.Array:
        change = jnp.abs(weight.astype(jnp.float32) * slope)
        return jnp.square(change) if power == 2 else change

    def begin(leaves: Leaves, start: Start) -> Leaves:
        slopes = measured(leaves, start, "gradient")
        return {path: product(x, slopes[path]) for path, x in leaves.items()}

    def learn(leaves: Leaves, memory: Leaves, now: Update) -> Leaves:
        slopes = shown(_NAME, leaves, now)
        return {
            path: gathered(memory[path], product(x, slopes[path]), decay)
            for path, x in leaves.items()
        }

    return masking(
        _NAME,
        Score(lambda leaves, memory: memory, begin, learn, paired=True, forgets=decay is None),
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=every,
        needs=("gradient",),
        settings=settings,
        exact=False,  # compilers may regroup the factors of a square
    )
