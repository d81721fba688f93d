"""Pruning by the change of the loss, to second order."""

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

_NAME = "pruning.fisher"


def fisher(
    sparsity: ScalarOrSchedule | None = None,
    *,
    decay: float = 0.99,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: Pattern = None,
    mode: Mode = "hard",
    every: int | None = 1,
) -> Transform:
    r"""Keeps the weights whose removal would change the loss most, to second order.

    .. math:: I_i = \tfrac{1}{2} F_i w_i^2, \qquad
        F_i = \langle g_i^2 \rangle_t \approx \frac{\partial^2 L}{\partial w_i^2}

    Optimal Brain Damage, with the diagonal of the Fisher information for that of the Hessian:
    where training has converged the gradient is 0 on average, and both agree for a likelihood.
    The running mean is of squared gradients of whole batches, which are smaller than those of
    examples by about the batch size, for all weights alike. Gradients that are not finite count
    as 0.

    Args:
        sparsity: share of zeros from 0 to 1, a schedule of the number of updates, or None where a
            pattern `"n:m"` says it. What is pruned at `init` (any sparsity that does not start at
            0) is judged by `stats`; batches of one example give the Fisher information itself.
        decay: of the running mean over updates, from 0 to just below 1.
        where: which leaves; default: those of two axes or more.
        allocation: how the sparsity is shared out, as for `pruning.magnitude`; `"global"` compares
            the leaves by what they mean to the loss, as the papers do.
        pattern: what goes together, as for `pruning.magnitude`: None, `"2:4"`, or block sizes.
        mode: as for `pruning.magnitude`.
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
        >>> stats = {"fisher": {"kernel": jnp.array([[0.1, 2.0]])}}
        >>> tx = nnopt.pruning.fisher(0.5)
        >>> tx.apply(params, tx.init(params, stats=stats))
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        LeCun, Denker and Solla 1990, Optimal Brain Damage, section 2 (5); Theis et al. 2018,
        Faster gaze prediction with dense networks and Fisher pruning, section 2.1 (6).
    """
    settings = Settings(_NAME)
    settings.number("decay", decay, 0, LONGEST)

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {path: _change(x, memory[path]) for path, x in leaves.items()}

    def begin(leaves: Leaves, start: Start) -> Leaves:
        return measured(leaves, start, "fisher")

    def learn(leaves: Leaves, memory: Leaves, now: Update) -> Leaves:
        slopes = shown(_NAME, leaves, now)
        return {p: gathered(memory[p], jnp.square(slopes[p]), decay) for p in leaves}

    return masking(
        _NAME,
        Score(of, begin, learn),
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=every,
        needs=("fisher",),
        settings=settings,
    )


def _change(weight: jax.Array, information: jax.Array) -> jax.Array:
    return 0.5 * information * jnp.square(weight.astype(jnp.float32))
