"""Pruning at random: random masks, and sparse training that drops and grows weights."""

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
    r"""Keep weights drawn at random, exactly as many as the sparsity demands.

    $$ \hat w_i = w_i \, [\, u_i \text{ is among the } k \text{ greatest} \,],
       \qquad u_i \sim \mathcal U(0, 1), \qquad k = \mathrm{round}((1 - s)\, n) $$

    Random masks are the baseline that every score has to beat. The numbers `u` are drawn once, from
    the key and the leaf's path: the masks of a schedule are nested, and a leaf's numbers do not
    depend on other leaves. `tx.init` needs `key`.

    Args:
        sparsity: see `by_score`.
        where: which leaves; see `by_score`.
        allocation: how the sparsity is divided among leaves; not `"lamp"`.
        pattern: which weights are kept or pruned together; see `by_score`.
        mode: what happens to pruned weights; see `by_score`.
        every: updates between two steps of a schedule, by default 1; not used for a constant
            sparsity.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, the key is missing.

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
    r"""Train a sparse network that drops small weights and grows those of greatest gradient.

    Every `every` updates, in each leaf of `k` weights:

    $$ n = \lfloor f_t k \rfloor, \qquad
       f_t = \frac{\alpha}{2} \Bigl(1 + \cos \frac{t \pi}{T}\Bigr) $$

    The `n` weights of least magnitude are dropped, and the `n` absent weights of greatest gradient
    are grown. The gradient is the dense one, taken at the masked weights, and so covers absent
    weights. Grown weights start at zero; a weight that is dropped and grown in the same update
    keeps its value. The first connections are random, so `tx.init` needs `key`. Each leaf always
    has `k` weights, so `pack` works under `jax.jit`.

    The optimizer's state is not changed: absent weights get no gradient, so that running averages
    (momentum, Adam's moments) decay, and a grown weight starts with the remainder.

    Args:
        sparsity: the fraction of zeros, from 0 to 1.
        end_step: `T`, the update after which connections are fixed; 3/4 of all updates in the
            paper.
        fraction: `alpha`, the fraction of weights that are replaced at the first such update.
        every: updates between two replacements.
        where: which leaves; by default those of two or more axes.
        allocation: `"erk"` (small leaves stay denser), `"uniform"` (the same sparsity in each
            leaf), or a function `(shapes by path, sparsity) -> sparsities by path`.
        pattern: None for single weights, or the sizes of blocks that are dropped and grown as a
            whole, by their mean scores.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, the key is missing.
        StatisticsError: at `update`, the gradients are missing.

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
    r"""Train a sparse network that drops small weights and grows others at random (SET).

    Every `every` updates, in each leaf of `k` weights, the $\lfloor \zeta k \rfloor$ weights of
    least magnitude are dropped (the paper ranks weights of each sign separately), and as many
    absent weights are grown, all with equal probability. Grown weights start at zero; a weight that
    is dropped and grown in the same update keeps its value. The first connections are random, too,
    so `tx.init` needs `key`. Each leaf always has `k` weights, so `pack` works under `jax.jit`. For
    the optimizer's state, see `rigl`.

    Args:
        sparsity: the fraction of zeros, from 0 to 1.
        fraction: `zeta`, the fraction of weights that are replaced.
        every: updates between two replacements; an epoch in the paper.
        end_step: the update after which connections are fixed; None for never.
        where: which leaves; by default those of two or more axes.
        allocation: see `rigl`.
        pattern: see `rigl`.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, the key is missing.

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
