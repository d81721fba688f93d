"""Low-rank adapters."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.transfer.parameter.adapters.factors import Factors, adapting, make_factors
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "transfer.lora"


@recorded
def lora(
    rank: int = 8,
    *,
    alpha: float | None = None,
    where: Where = matrices,
    rank_stabilized: bool = False,
    freeze: Where | None = "**",
    dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Trains a product of two thin matrices beside each weight, which stays (LoRA).

    $$ W = W_0 + s\, A B, \qquad s = \frac{\alpha}{r} \quad
       \Big( \text{rank-stabilized: } \frac{\alpha}{\sqrt r} \Big) $$

    with `A` of shape `(in, r)` and `B` of `(r, out)`, for each index of the batch axes of a weight
    (experts, scanned layers): all contracted axes of a weight are one `in`, all output axes one
    `out`. `tx.bind` gives the axes; unbound, leaves of two axes are `(in, out)` and those of four
    or five the kernels of Flax's convolutions. `A` is drawn uniformly within
    $1/\sqrt{in}$, `B` is zero: training starts at $W_0$. The base may be packed
    (`QLoRA`): a tree that `tx.pack` or `nnopt.load` returned, its bytes never touched.

    Under a mask, and over a packed leaf that has one, the sum is masked, so zeros stay zero; other
    transforms before it keep their codes in the base, and transforms after it refine the base
    alone.

    Args:
        rank: `r`.
        alpha: default: the rank, so that `s = 1` (rank-stabilized: the root of the rank).
        where: which leaves get adapters; default: those of two axes or more.
        rank_stabilized: the scale that keeps gradients of one size at any rank.
        freeze: which parameters stop training; default: all, so that adapters alone train and the
            optimizer's state is theirs alone. None: all train on.
        dtype: of the factors.

    Returns:
        The transform. It wraps, and `init` needs a key.

    Raises:
        ValueRangeError: a setting is out of range; by `init`: there is no key.
        ShapeError: by `init`, where a leaf has fewer than two axes, or its axes are not known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}
        >>> tx = nnopt.transfer.lora(2)
        >>> state = tx.init(params, key=jax.random.key(0))
        >>> moving = nnopt.trainable(tx, params, state)
        >>> [x.shape for x in jax.tree.leaves(moving)]
        [(64, 2), (2, 64)]

        The queries of an attention, 8 heads of 16:

        >>> tx = tx.bind(axes={"query": nnopt.Axes(in_axis=0, out_axis=(1, 2))})
        >>> state = tx.init({"query": jnp.ones((128, 8, 16))}, key=jax.random.key(0))
        >>> jax.tree.map(jnp.shape, state.learned["query"])
        {'a': (128, 2), 'b': (2, 128)}

    References:
        Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1;
        Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA,
        section 3.2; packed bases: Dettmers et al. 2023, QLoRA, section 3.
    """
    factors = make_factors(_NAME, rank, alpha, rank_stabilized, dtype)
    return adapting(factors, where, freeze, init=Factors.begin, encode=Factors.added)
