"""Pruning by the direction in which weights move."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.importance.gradients import gathered, measured, shown
from nnopt_jax.pruning.masking import Mode, Score, masking
from nnopt_jax.pruning.pattern import Pattern
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, Start, Update, matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

_NAME = "pruning.movement"


def movement(
    sparsity: ScalarOrSchedule | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: Pattern = None,
    mode: Mode = "frozen",
    every: int | None = 1,
) -> Transform:
    r"""Keeps the weights that training moves away from zero, whatever their size.

    .. math:: S_i = - \sum_t w_i^{(t)} \, \frac{\partial L}{\partial \hat w_i}^{(t)}, \qquad
        \hat w = w \odot [\, S_i \text{ is among the } k \text{ greatest} \,]

    Scores have signs, and the greatest are kept. Weight and gradient are those before the
    optimizer moved the weight (which the state holds a copy of). A pruned weight's score goes on
    learning, from the gradient at the zero that the model saw, so that it may return. Gradients
    that are not finite count as 0.

    It is made for fine-tuning: of a trained network, over some epochs, with a schedule that
    starts at 0.

    Args:
        sparsity: share of zeros from 0 to 1, a schedule of the number of updates, or None where a
            pattern `"n:m"` says it. What is pruned at `init` (any sparsity that does not start at
            0) is judged by `stats`, the mean gradient of some batches.
        where: which leaves; default: those of two axes or more.
        allocation: how the sparsity is shared out, as for `pruning.magnitude`, without `"lamp"`.
        pattern: what goes together, as for `pruning.magnitude`: None, `"2:4"`, or block sizes.
        mode: `"frozen"`, as in the paper: a pruned weight gets no gradient, keeps its value (but
            for an optimizer's momentum) and may return with it. `"soft"`: it goes on learning,
            straight through. `"hard"`: it is set to zero and its score stands still.
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
        >>> stats = {"gradient": {"kernel": jnp.array([[0.5, -0.5]])}}
        >>> tx = nnopt.pruning.movement(0.5)
        >>> tx.apply(params, tx.init(params, stats=stats))  # the first is on its way to zero
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        Sanh et al. 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, section 4.
    """

    def product(weight: jax.Array, slope: jax.Array) -> jax.Array:
        return -weight.astype(jnp.float32) * slope

    def begin(leaves: Leaves, start: Start) -> Leaves:
        slopes = measured(leaves, start, "gradient")
        return {path: product(x, slopes[path]) for path, x in leaves.items()}

    def learn(leaves: Leaves, memory: Leaves, now: Update) -> Leaves:
        slopes = shown(_NAME, leaves, now)
        return {
            path: gathered(memory[path], product(x, slopes[path]), None)
            for path, x in leaves.items()
        }

    return masking(
        _NAME,
        Score(lambda leaves, memory: memory, begin, learn, signed=True, paired=True),
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=every,
        needs=("gradient",),
    )
