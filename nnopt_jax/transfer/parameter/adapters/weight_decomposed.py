"""Low-rank adapters of directions, and lengths that train beside them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.adapted import Normalized, norm_like
from nnopt_jax.arrays.nodes import Field
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.transfer.parameter.adapters.factors import Factors, adapting, make_factors
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Leaves, Start, matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "transfer.dora"


@recorded
def dora(
    rank: int = 8,
    *,
    alpha: float | None = None,
    where: Where = matrices,
    rank_stabilized: bool = False,
    freeze: Where | None = "**",
    dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Trains the direction of each weight by a low-rank product, and its lengths freely (DoRA).

    $$ W = m \, \frac{W_0 + s\, A B}{\lVert W_0 + s\, A B \rVert} $$

    The norm is that of the weights of one output, summed over the contracted axes for each index
    of output and batch axes (see `lora`), and passes no gradient. `m` starts as the norm of
    $W_0$: training starts at $W_0$, but for rounding. All else is as in `lora`.

    Args:
        rank: `r`.
        alpha: default: the rank, so that `s = 1`.
        where: which leaves get adapters; default: those of two axes or more.
        rank_stabilized: `s = alpha / sqrt(r)` in place of `alpha / r`.
        freeze: which parameters stop training; default: all. None: all train on.
        dtype: of the factors and lengths.

    Returns:
        The transform. It wraps, and `init` needs a key.

    Raises:
        ValueRangeError: a setting is out of range; by `init`: there is no key.
        ShapeError: by `init`, where a leaf has fewer than two axes, or its axes are not known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])}
        >>> tx = nnopt.transfer.dora(1)
        >>> state = tx.init(params, key=jax.random.key(0))
        >>> state.learned["kernel"]["magnitude"]
        Array([[5., 2.]], dtype=float32)

    References:
        Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, section 4.
    """
    factors = make_factors(_NAME, rank, alpha, rank_stabilized, dtype)

    def init(bound: Factors, leaves: Leaves, start: Start) -> Leaves:
        made = bound.begin(leaves, start)
        lengths = {p: _lengths(x, bound.axes_of(p, x), dtype) for p, x in leaves.items()}
        return {path: made[path] | {"magnitude": lengths[path]} for path in leaves}

    def encode(bound: Factors, path: str, leaf: Field, learned: Any) -> Normalized:
        return Normalized(bound.added(path, leaf, learned), learned["magnitude"])

    # Norms are sums, whose order a mesh decides.
    return adapting(factors, where, freeze, init=init, encode=encode, exact=False)


def _lengths(leaf: jax.Array, axes: Axes, dtype: DTypeLike) -> jax.Array:
    """The norm of the weights of each output."""
    sizes = (1 if axis in axes.contracted else size for axis, size in enumerate(leaf.shape))
    return norm_like(leaf, tuple(sizes)).astype(dtype)
