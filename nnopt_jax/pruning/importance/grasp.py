"""Pruning before training, so that the gradient goes on flowing."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.importance.gradients import measured
from nnopt_jax.pruning.masking import Mode, Score, masking
from nnopt_jax.pruning.pattern import Pattern
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, Start, matrices
from nnopt_jax.tree.select import Where


def grasp(
    sparsity: float | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation = "global",
    pattern: Pattern = None,
    mode: Mode = "hard",
) -> Transform:
    r"""Keeps, once and before training, the weights whose removal would weaken the gradient most.

    .. math:: I_i = w_i \, (H g)_i, \qquad
        \Delta \|g\|^2 \approx -2 \, w_i \, (H g)_i \quad \text{when } w_i \text{ goes}

    Scores have signs, and the greatest are kept: the paper writes `-w H g` and removes the
    greatest. The mask of `init` stays. The temperature of the paper (logits divided by 200) is for
    the loss that `graph.observe` measures. The product `H g` is the mean of those of the
    batches; one large batch gives the paper's. Products that are not finite count as 0.

    Args:
        sparsity: share of zeros from 0 to 1; left out where a pattern `"n:m"` says it.
        where: which leaves; default: those of two axes or more.
        allocation: how the sparsity is shared out, as for `pruning.magnitude`, without `"lamp"`;
            `"global"`, one threshold over all leaves, as in the paper.
        pattern: what goes together, as for `pruning.magnitude`: None, `"2:4"`, or block sizes.
        mode: `"hard"`, `"soft"` or `"frozen"`, as for `pruning.magnitude`.

    Returns:
        The transform. It wraps, and `init` needs the Hessian's product with the gradient:
        `nnopt.graph(loss, params, *batch).observe(params, batches, tx.needs)`.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: (by `init`) products are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.grasp(0.5)
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> loss = lambda p, x: 0.5 * (x * p["kernel"] ** 2).sum()  # H g = x^2 w
        >>> x = jnp.array([[0.1, 2.0]])
        >>> stats = nnopt.graph(loss, params, x).observe(params, [x], tx.needs)
        >>> tx.apply(params, tx.init(params, stats=stats))
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        Wang, Zhang and Grosse 2020, Picking Winning Tickets Before Training by Preserving Gradient
        Flow, section 4.1 (8) and algorithm 1.
    """

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {path: x.astype(jnp.float32) * memory[path] for path, x in leaves.items()}

    def begin(leaves: Leaves, start: Start) -> Leaves:
        return measured(leaves, start, "hessian_gradient")

    return masking(
        "pruning.grasp",
        Score(of, begin, signed=True),
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=None,
        needs=("hessian_gradient",),
    )
