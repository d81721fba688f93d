"""RigL: sparse training that grows weights where the gradient is greatest."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.importance.gradients import shown
from nnopt_jax.pruning.random.regrowth import regrowing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, Update, matrices
from nnopt_jax.tree.select import Where

_NAME = "pruning.rigl"


def rigl(
    sparsity: float,
    *,
    end_step: int,
    fraction: float = 0.3,
    every: int = 100,
    where: Where = matrices,
    allocation: Allocation = "erk",
) -> Transform:
    r"""Trains a sparse network; weights of least magnitude make room where the gradient is great.

    Every `every` updates, in each leaf of `k` weights:

    .. math:: n = \lfloor f_t k \rfloor, \qquad
        f_t = \frac{\alpha}{2} \Bigl(1 + \cos \frac{t \pi}{T}\Bigr)

    The `n` weights of least magnitude go, and of all places that are then free the `n` of greatest
    gradient are grown. The gradient is the dense one, at what the model saw: it tells of weights
    that are not there. Grown weights start at zero; one that goes and comes back at once keeps its
    value. The network starts at random: needs `tx.init(..., key=)`. It has `k` weights in each leaf
    at any time, so `pack` works under `jax.jit`.

    The optimizer's state is yours: weights that are not there get no gradient, so that averages
    (momentum, Adam's) forget them, and a grown weight starts with what is left of its own.

    Args:
        sparsity: the share of zeros from 0 to 1.
        end_step: `T`, the update from which connections stay; the paper's is 3/4 of all.
        fraction: `alpha`, the share of weights that moves in the beginning.
        every: updates between two moves.
        where: which leaves; default: those of two axes or more.
        allocation: `"erk"`: small leaves stay denser. `"uniform"`: the same sparsity in each leaf.
            Or `(shapes by path, sparsity) -> sparsities by path`.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where there is no key.
        StatisticsError: at `update`, where there are no gradients.

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
    settings = Settings(_NAME)
    settings.number("fraction", fraction, 0, 1)
    settings.integer("end_step", end_step, 1)

    def decayed(count: jax.Array) -> jax.Array:
        arc = jnp.minimum(count, end_step).astype(jnp.float32) * jnp.float32(math.pi / end_step)
        return jnp.float32(fraction / 2) * (1 + jnp.cos(arc))

    def gradients(leaves: Leaves, seeds: Leaves, now: Update) -> Leaves:
        del seeds
        return shown(_NAME, leaves, now)

    return regrowing(
        _NAME,
        gradients,
        sparsity,
        where=where,
        allocation=allocation,
        fraction=decayed,
        every=every,
        end_step=end_step,
        settings=settings,
        by_gradients=True,
    )
