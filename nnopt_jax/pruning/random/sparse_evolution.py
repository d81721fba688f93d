"""Sparse evolutionary training: weights of least magnitude make room for random ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.random.draws import draw
from nnopt_jax.pruning.random.regrowth import regrowing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, Update, matrices
from nnopt_jax.tree.select import Where

_NAME = "pruning.sparse_evolution"


def sparse_evolution(
    sparsity: float,
    *,
    fraction: float = 0.3,
    every: int = 100,
    end_step: int | None = None,
    where: Where = matrices,
    allocation: Allocation = "erk",
) -> Transform:
    r"""Trains a sparse network; weights of least magnitude make room for others, drawn at random.

    Every `every` updates, in each leaf of `k` weights, the :math:`\lfloor \zeta k \rfloor` of least
    magnitude go (the paper takes those of each sign apart), and as many of the places that are then
    free are grown, each with the same chance. Grown weights start at zero; one that goes and comes
    back at once keeps its value. The network starts at random as well: needs `tx.init(..., key=)`.
    It has `k` weights in each leaf at any time, so `pack` works under `jax.jit`.

    The optimizer's state is yours: weights that are not there get no gradient, so that averages
    (momentum, Adam's) forget them, and a grown weight starts with what is left of its own.

    Args:
        sparsity: the share of zeros from 0 to 1.
        fraction: `zeta`, the share of weights that moves.
        every: updates between two moves; the paper's is an epoch.
        end_step: the update from which connections stay; None for never.
        where: which leaves; default: those of two axes or more.
        allocation: `"erk"`: small leaves stay denser. `"uniform"`: the same sparsity in each leaf.
            Or `(shapes by path, sparsity) -> sparsities by path`.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where there is no key.

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
    settings = Settings(_NAME)
    settings.number("fraction", fraction, 0, 1)
    settings.integer("end_step", end_step, 1, none=True)

    def at_random(leaves: Leaves, seeds: Leaves, now: Update) -> Leaves:
        return {path: draw(seeds[path], leaf.shape, now.count) for path, leaf in leaves.items()}

    def constant(count: jax.Array) -> jax.Array:
        del count
        return jnp.float32(fraction)

    return regrowing(
        _NAME,
        at_random,
        sparsity,
        where=where,
        allocation=allocation,
        fraction=constant,
        every=every,
        end_step=end_step,
        settings=settings,
    )
