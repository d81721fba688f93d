"""Pruning by a score of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import Problems, ShapeError
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.importance.gradients import LONGEST, gathered, measured, shown
from nnopt_jax.pruning.masking import Mode, Score, masking
from nnopt_jax.pruning.pattern import Pattern
from nnopt_jax.settings import Settings, takes
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.given import described
from nnopt_jax.transform.leaves import Leaves, Start, Update, matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

_NAME = "pruning.saliency"

Saliency: TypeAlias = Callable[[str, jax.Array, Any], jax.Array]
"""`(path, weight, gradient) -> scores` of the weight's shape; the greatest are kept."""


def saliency(
    sparsity: ScalarOrSchedule | None = None,
    *,
    score: Saliency,
    gradients: bool = False,
    decay: float = 0.0,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: Pattern = None,
    mode: Mode = "hard",
    every: int | None = 1,
) -> Transform:
    r"""Keeps the weights of greatest score, whatever the score may be.

    .. math:: I = \text{score}(\text{path}, w, \langle g \rangle_t)

    Scores may have signs: the greatest by value are kept, and NaN counts as the greatest.

    Args:
        sparsity: share of zeros from 0 to 1, a schedule of the number of updates, or None where a
            pattern `"n:m"` says it.
        score: `(path, weight, gradient) -> scores`, a pure function that `jax.jit` can trace;
            the weight is dense, the gradient float32 and None without `gradients`.
        gradients: whether the score judges by gradients. What is then pruned at `init` (any
            sparsity that does not start at 0) needs `stats`, the mean gradient of some batches.
            Gradients that are not finite count as 0.
        decay: of the gradients' average over updates, from 0 (the last only) to just below 1.
        where: which leaves; default: those of two axes or more.
        allocation: how the sparsity is shared out, as for `pruning.magnitude`, without `"lamp"`.
        pattern: what goes together, as for `pruning.magnitude`: None, `"2:4"`, or block sizes.
        mode: `"hard"`, `"soft"` or `"frozen"`, as for `pruning.magnitude`.
        every: updates between two choices of the mask; None: that of `init` stays.

    Returns:
        The transform. It wraps; with `gradients`, `update` needs them: `nnopt.step(..., grads)`.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: (by `init` or `update`) scores are no real arrays of their weights' shapes.
        StatisticsError: (by `init` or `update`) gradients are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> def most_alike(path, weight, gradient):  # keeps what is closest to one
        ...     return -abs(weight - 1.0)
        >>> tx = nnopt.pruning.saliency(0.5, score=most_alike)
        >>> params = {"kernel": jnp.array([[3.0, 1.2]])}
        >>> tx.apply(params, tx.init(params))
        {'kernel': Array([[0. , 1.2]], dtype=float32)}
    """
    settings = Settings(_NAME)
    settings.flag("gradients", gradients)
    settings.number("decay", decay, 0, LONGEST)
    if not callable(score) or not takes(score, "path", None, None):
        settings.wrong("score", score, "is no function (path, weight, gradient) -> scores.")

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        found = {p: score(p, x, memory.get(p)) for p, x in leaves.items()}
        _require_fit(found, leaves)
        return {path: jnp.asarray(x, jnp.float32) for path, x in found.items()}

    def begin(leaves: Leaves, start: Start) -> Leaves:
        return measured(leaves, start, "gradient")

    def learn(leaves: Leaves, memory: Leaves, now: Update) -> Leaves:
        return {p: gathered(memory[p], g, decay) for p, g in shown(_NAME, leaves, now).items()}

    judged = Score(of, begin, learn, signed=True) if gradients is True else Score(of, signed=True)
    return masking(
        _NAME,
        judged,
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=every,
        needs=("gradient",) if gradients is True else (),
        settings=settings,
    )


def _require_fit(scores: Leaves, leaves: Leaves) -> None:
    problems = Problems(_NAME)
    for path, x in scores.items():
        real = isinstance(x, jax.Array | np.ndarray) and not jnp.iscomplexobj(x)
        if not real or x.shape != leaves[path].shape:
            problems.add(path, f"score returned {described(x)} for a weight of shape "
                               f"{leaves[path].shape}; return one real score for each weight"
                         )  # fmt: skip
    problems.raise_as(ShapeError)
