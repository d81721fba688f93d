"""Soft thresholds that are learned, one for each leaf."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import show
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.pruning.sparsity.soft_threshold import shrunk
from nnopt_jax.pruning.timing import check_schedule, target
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import Leaves, Start, Update, matrices, wrapping
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

_NAME = "pruning.learned_threshold"


def learned_threshold(
    *, start: float = -8.0, decay: ScalarOrSchedule = 0.0, where: Where = matrices
) -> Transform:
    r"""Shows weights beyond a threshold that is learned for each leaf, moved towards zero by it.

    .. math:: \hat w = \operatorname{sign}(w) \max(|w| - t, 0), \qquad t = \frac{1}{1 + e^{-s}}

    An optimizer moves `s` along its gradient, the sum of
    :math:`-\operatorname{sign}(w) \, t (1 - t) \, \partial L / \partial \hat w` over the weights
    beyond the threshold. The weights within get no gradient, and return only when the threshold
    falls. Decay of `s` towards 0 raises the threshold, against the loss: the more of it, the more
    zeros. How many there are is data: `pack` is eager, or is told capacities.

    Args:
        start: of `s`, 0 or less: -8 begins with a threshold of 0.0003.
        decay: the share of `s` that goes at each update, 0 to 1, or a schedule of the number of
            updates (end it in time for the weights to settle); 0 leaves it to the optimizer's
            weight decay, as in the paper.
        where: which leaves; default: those of two axes or more.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.learned_threshold(start=-1e-9)
        >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.25]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0.5, -2.5],
               [ 1.5,  0. ]], dtype=float32)

    References:
        Kusupati et al. 2020, Soft Threshold Weight Reparameterization for Learnable Sparsity,
        section 3 (https://arxiv.org/abs/2002.03231).
    """
    settings = Settings(_NAME)
    settings.number("start", start, -1e4, 0)
    settings.share("decay", decay)
    check_schedule(settings, "decay", decay)
    settings.done()

    def init(leaves: Leaves, begin: Start) -> tuple[Leaves, Leaves]:
        del begin
        return {path: jnp.float32(start) for path in leaves}, dict.fromkeys(leaves)

    def encode(leaves: Leaves, state: State, train: bool) -> Leaves:
        del train
        shown = {}
        for path, leaf in leaves.items():
            threshold = jax.nn.sigmoid(state.learned[path])
            # The other way round, NaN would be within, and not be seen.
            beyond = ~(jnp.abs(show(leaf).astype(jnp.float32)) <= threshold)
            shown[path] = Masked(shrunk(leaf, threshold), jax.lax.stop_gradient(beyond))
        return shown

    def update(leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        del leaves
        kept = jnp.asarray(1 - target(decay, now.count), jnp.float32)
        return {path: s * kept for path, s in state.learned.items()}, state.rest

    return wrapping(_NAME, where, init=init, encode=encode, update=update)
