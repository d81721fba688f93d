"""Pruning at random: random masks, and sparse training that drops weights and grows others."""

from __future__ import annotations

from nnopt_jax.pruning import scores
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.masking import MaskMode
from nnopt_jax.pruning.pattern_names import PatternLike
from nnopt_jax.pruning.pruner import by_score
from nnopt_jax.pruning.regrowth import Regrow
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

__all__ = ["random_mask", "rigl", "sparse_evolution"]


@recorded
def random_mask(
    sparsity: ScalarOrSchedule | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: PatternLike = None,
    mode: MaskMode = "hard",
    every: int | None = None,
) -> Transform:
    r"""Keep weights drawn at random, exactly as many as the sparsity says.

    $$ \hat w_i = w_i \, [\, u_i \text{ is among the } k \text{ greatest} \,],
       \qquad u_i \sim \mathcal U(0, 1), \qquad k = \mathrm{round}((1 - s)\, n) $$

    The baseline that every score has to beat. The numbers `u` are drawn once, from the key and the
    leaf's path: the masks of a schedule are nested, and a leaf's numbers do not change when other
    leaves come or go. Needs `tx.init(..., key=)`.

    Args:
        sparsity: see `by_score`.
        where: see `by_score`, as are `pattern` and `mode`.
        allocation: how the sparsity is divided among leaves; not `"lamp"`.
        pattern: which weights are kept together.
        mode: what happens to pruned weights.
        every: updates between two steps of a schedule; default 1. A number needs none.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, there is no key.

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
    every = 1 if every is None and callable(sparsity) else every
    return by_score(
        scores.random(), sparsity, where=where, allocation=allocation, pattern=pattern, mode=mode,
        every=every, name="pruning.random_mask",
    )  # fmt: skip


@recorded
def rigl(
    sparsity: float,
    *,
    end_step: int,
    fraction: float = 0.3,
    every: int = 100,
    where: Where = matrices,
    allocation: Allocation = "erk",
    pattern: PatternLike = None,
) -> Transform:
    r"""Train a sparse network; weights of least magnitude make room where the gradient is great.

    Every `every` updates, in each leaf of `k` weights:

    $$ n = \lfloor f_t k \rfloor, \qquad
       f_t = \frac{\alpha}{2} \Bigl(1 + \cos \frac{t \pi}{T}\Bigr) $$

    The `n` weights of least magnitude go, and of all places that are then free the `n` of greatest
    gradient are grown. The gradient is the dense one, at what the model saw, and so covers weights
    that are not there. Grown weights start at zero; one that goes and comes back at once keeps its
    value. The network starts at random: needs `tx.init(..., key=)`. It has `k` weights in each leaf
    at any time, so `pack` works under `jax.jit`.

    The optimizer's state is yours: weights that are not there get no gradient, so that averages
    (momentum, Adam's) forget them, and a grown weight starts with what is left of its own.

    Args:
        sparsity: the fraction of zeros, from 0 to 1.
        end_step: `T`, the update from which connections stay; the paper's is 3/4 of all.
        fraction: `alpha`, the fraction of weights that moves in the beginning.
        every: updates between two moves.
        where: which leaves; default: those of two axes or more.
        allocation: `"erk"`: small leaves stay denser. `"uniform"`: the same sparsity in each leaf.
            Or `(shapes by path, sparsity) -> sparsities by path`.
        pattern: None for single weights, or the sizes of blocks that move as a whole, by their mean
            scores.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, there is no key.
        StatisticsError: at `update`, there are no gradients.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.rigl(0.75, end_step=1000)
        >>> params = {"kernel": jnp.ones((4, 8))}
        >>> tx.apply(params, tx.init(params, key=jax.random.key(0)))["kernel"].sum()
        Array(8., dtype=float32)

    References:
        Evci et al. 2020, Rigging the Lottery: Making All Tickets Winners, section 3
        (https://arxiv.org/abs/1911.11134).
    """
    return by_score(
        scores.magnitude(), sparsity, where=where, allocation=allocation, pattern=pattern,
        mode=Regrow("gradient", fraction, end_step, "cosine"), every=every, name="pruning.rigl",
    )  # fmt: skip


@recorded
def sparse_evolution(
    sparsity: float,
    *,
    fraction: float = 0.3,
    every: int = 100,
    end_step: int | None = None,
    where: Where = matrices,
    allocation: Allocation = "erk",
    pattern: PatternLike = None,
) -> Transform:
    r"""Train a sparse network; weights of least magnitude make room for others, drawn at random.

    Every `every` updates, in each leaf of `k` weights, the $\lfloor \zeta k \rfloor$ of least
    magnitude go (the paper takes those of each sign apart), and as many of the places that are then
    free are grown, each with the same chance. Grown weights start at zero; one that goes and comes
    back at once keeps its value. The network starts at random as well: needs `tx.init(..., key=)`.
    It has `k` weights in each leaf at any time, so `pack` works under `jax.jit`. Of the optimizer's
    state, see `rigl`.

    Args:
        sparsity: the fraction of zeros, from 0 to 1.
        fraction: `zeta`, the fraction of weights that moves.
        every: updates between two moves; the paper's is an epoch.
        end_step: the update from which connections stay; None for never.
        where: which leaves; default: those of two axes or more.
        allocation: as for `rigl`.
        pattern: as for `rigl`.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, there is no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.sparse_evolution(0.75)
        >>> params = {"kernel": jnp.ones((4, 8))}
        >>> tx.apply(params, tx.init(params, key=jax.random.key(0)))["kernel"].sum()
        Array(8., dtype=float32)

    References:
        Mocanu et al. 2018, Scalable Training of Artificial Neural Networks with Adaptive Sparse
        Connectivity inspired by Network Science (https://arxiv.org/abs/1707.04780), algorithm 1.
    """
    return by_score(
        scores.magnitude(), sparsity, where=where, allocation=allocation, pattern=pattern,
        mode=Regrow("random", fraction, end_step), every=every, name="pruning.sparse_evolution",
    )  # fmt: skip
