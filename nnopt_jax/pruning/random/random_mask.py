"""Random masks: the baseline that every criterion has to beat."""

from __future__ import annotations

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.masking import Mode, Score, masking
from nnopt_jax.pruning.pattern import Pattern
from nnopt_jax.pruning.random.draws import draw, seeds
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

_NAME = "pruning.random_mask"


def random_mask(
    sparsity: ScalarOrSchedule | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: Pattern = None,
    mode: Mode = "hard",
    every: int | None = None,
) -> Transform:
    r"""Keeps weights drawn at random, exactly as many as the sparsity says.

    .. math:: \hat w_i = w_i \, [\, u_i \text{ is among the } k \text{ greatest} \,],
        \qquad u_i \sim \mathcal U(0, 1), \qquad k = \mathrm{round}((1 - s)\, n)

    The numbers `u` are drawn once, from the key and the leaf's path: the masks of a schedule are
    nested, and a leaf's numbers do not change when other leaves come or go. Needs
    `tx.init(..., key=)`.

    Args:
        sparsity: `s`, the share of zeros from 0 to 1, or a schedule of the number of updates; left
            out where a pattern `"n:m"` says it.
        where: which leaves; default: those of two axes or more.
        allocation: `"uniform"`: `s` holds in each leaf. `"erk"`: small leaves stay denser.
            `"global"`: `s` holds in total, each weight having the same chance. Or
            `(shapes by path, s) -> sparsities by path`.
        pattern: None: single weights. `"2:4"`: two of every four along the contracted axes, the
            inputs. `(4, 1)`: whole blocks of four inputs by one output; see `pruning.magnitude`.
        mode: `"hard"`: each update sets the pruned parameters to zero. `"soft"`: the mask is in
            the forward pass, and pruned weights go on learning, straight through. `"frozen"`: the
            mask is in the forward pass, and pruned weights get no gradient.
        every: updates between two steps of a schedule; default 1. A number needs none.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where there is no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.random_mask(0.75)
        >>> params = {"kernel": jnp.ones((2, 4))}
        >>> tx.apply(params, tx.init(params, key=jax.random.key(0)))["kernel"].sum()
        Array(2., dtype=float32)

    References:
        Liu et al. 2022, The Unreasonable Effectiveness of Random Pruning, section 3
        (https://arxiv.org/abs/2202.02643).
    """
    settings = Settings(_NAME)
    if allocation == "lamp":
        settings.wrong("allocation", allocation, "weighs magnitudes, and there are none.")
    score = Score(
        of=_scores,
        begin=lambda leaves, start: seeds(_NAME, leaves, start),
    )
    return masking(
        _NAME,
        score,
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=1 if every is None and callable(sparsity) else every,
        settings=settings,
    )


def _scores(leaves: Leaves, memory: Leaves) -> Leaves:
    return {path: draw(memory[path], leaf.shape) for path, leaf in leaves.items()}
