"""Pruning by magnitude."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.masking import Mode, Score, masking
from nnopt_jax.pruning.pattern import Pattern
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule


def magnitude(
    sparsity: ScalarOrSchedule | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    pattern: Pattern = None,
    mode: Mode = "hard",
    every: int | None = 1,
) -> Transform:
    r"""Keeps the weights of greatest magnitude, exactly as many as the sparsity says.

    .. math:: \hat w_i = w_i \, [\, |w_i| \text{ is among the } k \text{ greatest} \,],
        \qquad k = \mathrm{round}((1 - s)\, n)

    Of equal magnitudes the earlier ones are kept.

    Args:
        sparsity: `s`, the share of zeros from 0 to 1, or an `optax.Schedule` of the number of
            updates made (`cubic`, `one_shot`, `iterative`); left out where a pattern `"n:m"` says
            it.
        where: which leaves; default: those of two axes or more.
        allocation: `"uniform"`: `s` holds in each leaf. `"erk"`: small leaves stay denser.
            `"global"`: one threshold over all leaves, so that `s` holds in total; `"lamp"`:
            likewise, of layer-adaptive scores. A leaf may then lose all it has, and how many it
            keeps depends on data. Or `(shapes by path, s) -> sparsities by path`.
        pattern: None: single weights. `"2:4"`: two of every four along the contracted axes, the
            inputs. `(4, 1)`: whole blocks of four inputs by one output, by their mean score. A
            leaf of three axes needs the transform bound to a model for these; without one, kernels
            are `(in, out)` and `(h, w, in, out)`.
        mode: `"hard"`: each update sets the pruned parameters to zero and the forward pass costs
            nothing (before the first update the model sees them still). `"soft"`: the mask is in
            the forward pass, and pruned weights go on learning, straight through, and may return.
            `"frozen"`: the mask is in the forward pass, and pruned weights get no gradient.
        every: updates between two choices of the mask. A scheduled sparsity that has arrived is
            put in force at once. None: the mask of `init` stays, and where it is hard it costs no
            pass of its own, because it joins the optimizer's.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.magnitude(0.75)
        >>> params = {"kernel": jnp.array([[0.1, -2.0], [0.3, 0.2]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0., -2.],
               [ 0.,  0.]], dtype=float32)

    References:
        Han et al. 2015, Learning both Weights and Connections, section 3; schedules: Zhu and
        Gupta 2017, To prune, or not to prune, section 3.
    """
    score = Score(lambda leaves, memory: {path: jnp.abs(x) for path, x in leaves.items()})
    return masking(
        "pruning.magnitude",
        score,
        sparsity,
        where=where,
        allocation=allocation,
        pattern=pattern,
        mode=mode,
        every=every,
    )
