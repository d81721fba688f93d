"""Pruning before training, by how much the loss depends on each connection."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.importance.gradients import measured
from nnopt_jax.pruning.masking import Mode, Score, masking
from nnopt_jax.pruning.pattern import Pattern
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, Start, matrices
from nnopt_jax.tree.select import Where


def snip(
    sparsity: float | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation = "global",
    pattern: Pattern = None,
    mode: Mode = "hard",
) -> Transform:
    r"""Keeps, once and before training, the connections that the loss depends on most.

    .. math:: I_i = \left| \frac{\partial L(c \odot w)}{\partial c_i} \right|_{c = 1}
        = | g_i w_i |

    The mask of `init` stays. The paper divides the scores by their sum, which no ranking sees.
    Gradients that are not finite count as 0.

    Args:
        sparsity: share of zeros from 0 to 1; left out where a pattern `"n:m"` says it.
        where: which leaves; default: those of two axes or more.
        allocation: how the sparsity is shared out, as for `pruning.magnitude`; `"global"`, one
            threshold over all leaves, as in the paper.
        pattern: what goes together, as for `pruning.magnitude`: None, `"2:4"`, or block sizes.
        mode: `"hard"`, `"soft"` or `"frozen"`, as for `pruning.magnitude`.

    Returns:
        The transform. It wraps, and `init` needs the mean gradient of some batches:
        `nnopt.graph(loss, params, *batch).observe(params, batches, tx.needs)`.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: (by `init`) gradients are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.snip(0.5)
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> loss, x = lambda p, x: (p["kernel"] * x).sum(), jnp.array([[0.1, 2.0]])
        >>> stats = nnopt.graph(loss, params, x).observe(params, [x], tx.needs)
        >>> tx.apply(params, tx.init(params, stats=stats))
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        Lee et al. 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity,
        section 4.1 (6).
    """

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {p: jnp.abs(x.astype(jnp.float32) * memory[p]) for p, x in leaves.items()}

    def begin(leaves: Leaves, start: Start) -> Leaves:
        return measured(leaves, start, "gradient")

    return masking(
        "pruning.snip",
        Score(of, begin),
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=None,
        needs=("gradient",),
    )
