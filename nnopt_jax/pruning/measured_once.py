"""Pruning by scores that are measured once, before training or after it."""

from __future__ import annotations

from typing import Unpack

from nnopt_jax.pruning import scores
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.masking import MaskMode
from nnopt_jax.pruning.pattern_names import PatternLike
from nnopt_jax.pruning.pruner import PruningChoices, by_score, preset
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where

__all__ = ["grasp", "snip", "wanda"]


@preset
def snip(sparsity: float | None = None, **choices: Unpack[PruningChoices]) -> Transform:
    r"""Prune once before training; keep the connections that the loss depends on most (SNIP).

    $$ I_i = \left| \frac{\partial L(c \odot w)}{\partial c_i} \right|_{c = 1}
       = | g_i w_i | $$

    The mask is chosen by `init` and stays. The paper also divides the scores by their sum, which
    does not change their order. Gradients that are not finite count as 0.

    Args:
        sparsity: the fraction of zeros, from 0 to 1; omitted if a pattern `"n:m"` determines it.
        **choices: `where`, `pattern`, `mode` and `allocation` of `by_score`. The default allocation
            is `"global"`, one threshold for all leaves, as in the paper.

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
    return by_score(scores.snip(), sparsity, **choices)


@preset
def grasp(sparsity: float | None = None, **choices: Unpack[PruningChoices]) -> Transform:
    r"""Prune once before training; keep the weights that preserve gradient flow (GraSP).

    $$ I_i = w_i \, (H g)_i, \qquad
       \Delta \|g\|^2 \approx -2 \, w_i \, (H g)_i \quad \text{when } w_i \text{ goes} $$

    Scores have signs, and the greatest are kept; the paper writes `-w H g` and removes the
    greatest. The mask is chosen by `init` and stays. The temperature of the paper (logits divided
    by 200) belongs into the loss that `graph.observe` measures. The product `H g` is averaged over
    batches; one large batch gives that of the paper. Products that are not finite count as 0.

    Args:
        sparsity: the fraction of zeros, from 0 to 1; omitted if a pattern `"n:m"` determines it.
        **choices: `where`, `pattern`, `mode` and `allocation` (not `"lamp"`) of `by_score`. The
            default allocation is `"global"`, one threshold for all leaves, as in the paper.

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
    return by_score(scores.grasp(), sparsity, **choices)


@recorded
def wanda(
    sparsity: float | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: PatternLike = "per_output",
    mode: MaskMode = "hard",
) -> Transform:
    r"""Prune once after training; keep the greatest magnitudes times input norms (Wanda).

    $$ I_{ij} = |w_{ij}| \, \lVert x_i \rVert_2 $$

    Weights are compared within each output, as in the paper.

    Args:
        sparsity: the fraction of zeros, from 0 to 1; omitted if a pattern `"n:m"` determines it.
        where: which leaves; see `by_score`.
        allocation: how the sparsity is divided among leaves; see `by_score`.
        pattern: `"per_output"`, or `"2:4"` for the paper's semi-structured form.
        mode: what happens to pruned weights; see `by_score`.

    Returns:
        The transform. It wraps, and `init` needs the moments of the inputs:
        `nnopt.graph(apply, params, *inputs).observe(params, batches, tx.needs)`.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: (by `init`) moments are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"w": jnp.array([[3.0, 1.0], [2.0, 2.0]])}
        >>> x = jnp.array([[0.1, 1.0]])
        >>> graph = nnopt.graph(lambda p, x: x @ p["w"], params, x)
        >>> tx = nnopt.pruning.wanda(0.5).bind(graph)
        >>> print(
        ...     tx.apply(params, tx.init(params, stats=graph.observe(params, [x], tx.needs)))["w"]
        ... )
        [[0. 0.]
         [2. 2.]]

    References:
        Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models,
        section 3 (1).
    """
    return by_score(
        scores.wanda(), sparsity, where=where, allocation=allocation, pattern=pattern, mode=mode
    )
