"""Pruning by importance: presets of `by_score` with the names that papers gave to scores."""

from __future__ import annotations

from typing import Unpack

from nnopt_jax.pruning import scores
from nnopt_jax.pruning.pruner import PruningChoices, by_score, preset
from nnopt_jax.pruning.scores import Saliency
from nnopt_jax.transform.base import Transform
from nnopt_jax.typing import ScalarOrSchedule

__all__ = ["fisher", "magnitude", "movement", "saliency", "taylor"]


@preset
def magnitude(
    sparsity: ScalarOrSchedule | None = None, **choices: Unpack[PruningChoices]
) -> Transform:
    r"""Keep the weights of greatest magnitude $|w|$, exactly as many as the sparsity demands.

    Args:
        sparsity: the fraction of zeros, from 0 to 1, or a schedule; see `by_score`.
        **choices: `where`, `allocation`, `pattern`, `mode` and `every` of `by_score`.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

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
    return by_score(scores.magnitude(), sparsity, **choices)


@preset
def taylor(
    sparsity: ScalarOrSchedule | None = None,
    *,
    power: int = 2,
    decay: float | None = 0.9,
    **choices: Unpack[PruningChoices],
) -> Transform:
    r"""Keep the weights whose removal would change the loss most, to first order.

    $$ I_i = \langle |g_i w_i|^p \rangle_t, \qquad
       L(w) - L(w \,|\, w_i = 0) \approx g_i w_i $$

    Each update adds the product of a weight and its gradient, both from before the optimizer step
    (the state holds a copy of the weight). Gradients that are not finite count as 0. With
    `mode="hard"`, a pruned weight stays pruned, because its product is 0; with `"soft"`, it is
    scored with the value that it would return to.

    Args:
        sparsity: see `by_score`. `allocation="global"` compares leaves by their effect on the loss,
            as in the paper.
        power: $p$, 2 or 1.
        decay: the decay of the running mean over updates, from 0 (only the last update) to just
            below 1; None for the sum since the mask was last chosen.
        **choices: `where`, `allocation`, `pattern`, `mode` and `every` of `by_score`.

    Returns:
        The transform. It wraps, and `update` needs gradients: `nnopt.step(..., grads)`.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: (by `init` or `update`) gradients are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> stats = {"gradient": {"kernel": jnp.array([[0.1, 2.0]])}}
        >>> tx = nnopt.pruning.taylor(0.5)
        >>> tx.apply(params, tx.init(params, stats=stats))
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, section 3.1 (8).
    """
    return by_score(scores.taylor(power, decay), sparsity, **choices)


@preset
def movement(
    sparsity: ScalarOrSchedule | None = None, **choices: Unpack[PruningChoices]
) -> Transform:
    r"""Keep the weights that training moves away from zero, whatever their size.

    $$ S_i = - \sum_t w_i^{(t)} \, \frac{\partial L}{\partial \hat w_i}^{(t)} $$

    Scores have signs, and the greatest are kept. Weight and gradient are those from before the
    optimizer step (the state holds a copy of the weight). The score of a pruned weight is still
    updated, with the gradient at the zero that replaces it, so that the weight may return.
    Gradients that are not finite count as 0. The method is meant for fine-tuning a trained network
    over some epochs, with a schedule that starts at 0.

    Args:
        sparsity: see `by_score`.
        **choices: `where`, `allocation` (not `"lamp"`), `pattern`, `every` and `mode` of
            `by_score`. The default mode is `"frozen"`, as in the paper: a pruned weight keeps its
            value (except for the optimizer's momentum) and may return with it.

    Returns:
        The transform. It wraps, and `update` needs gradients: `nnopt.step(..., grads)`.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: (by `init` or `update`) gradients are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> stats = {"gradient": {"kernel": jnp.array([[0.5, -0.5]])}}
        >>> tx = nnopt.pruning.movement(0.5)
        >>> tx.apply(params, tx.init(params, stats=stats))  # the first is on its way to zero
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        Sanh et al. 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, section 4.
    """
    return by_score(scores.movement(), sparsity, **choices)


@preset
def fisher(
    sparsity: ScalarOrSchedule | None = None,
    *,
    decay: float = 0.99,
    **choices: Unpack[PruningChoices],
) -> Transform:
    r"""Keep the weights whose removal would change the loss most, to second order.

    $$ I_i = \tfrac{1}{2} F_i w_i^2, \qquad
       F_i = \langle g_i^2 \rangle_t \approx \frac{\partial^2 L}{\partial w_i^2} $$

    This is Optimal Brain Damage with the diagonal of the Fisher information in place of that of the
    Hessian; the two agree for a likelihood at convergence, where the mean gradient is 0. The
    running mean is over the squared gradients of whole batches, which are smaller than those of
    examples by about the batch size, equally for all weights. Gradients that are not finite count
    as 0.

    Args:
        sparsity: see `by_score`. With `stats` from batches of one example, the initial scores use
            the exact Fisher information.
        decay: the decay of the running mean over updates, from 0 to just below 1.
        **choices: `where`, `allocation`, `pattern`, `mode` and `every` of `by_score`.

    Returns:
        The transform. It wraps, and `update` needs gradients: `nnopt.step(..., grads)`.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: (by `init` or `update`) gradients are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> stats = {"fisher": {"kernel": jnp.array([[0.1, 2.0]])}}
        >>> tx = nnopt.pruning.fisher(0.5)
        >>> tx.apply(params, tx.init(params, stats=stats))
        {'kernel': Array([[0., 1.]], dtype=float32)}

    References:
        LeCun, Denker and Solla 1990, Optimal Brain Damage, section 2 (5); Theis et al. 2018,
        Faster gaze prediction with dense networks and Fisher pruning, section 2.1 (6).
    """
    return by_score(scores.fisher(decay), sparsity, **choices)


@preset
def saliency(
    sparsity: ScalarOrSchedule | None = None,
    *,
    score: Saliency,
    gradients: bool = False,
    decay: float = 0.0,
    **choices: Unpack[PruningChoices],
) -> Transform:
    r"""Keep the weights of greatest score, given by a user's function.

    $$ I = \text{score}(\text{path}, w, \langle g \rangle_t) $$

    Scores may have signs: the greatest values are kept, and NaN counts as the greatest.

    Args:
        sparsity: see `by_score`.
        score: `(path, weight, gradient) -> scores`, a pure function that `jax.jit` can trace;
            the weight is dense, the gradient float32 and None without `gradients`.
        gradients: whether the score uses gradients. Pruning at `init` (with any sparsity that does
            not start at 0) then needs `stats`, the mean gradient of some batches. Gradients that
            are not finite count as 0.
        decay: the decay of the running mean of gradients over updates, from 0 (only the last
            update) to just below 1.
        **choices: `where`, `allocation` (not `"lamp"`), `pattern`, `mode` and `every` of
            `by_score`.

    Returns:
        The transform. It wraps, and with `gradients`, `update` needs gradients: `nnopt.step(...,
        grads)`.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: (by `init` or `update`) the score did not return one number for each weight.
        StatisticsError: (by `init` or `update`) gradients are missing, with the leaves' paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> def closeness(path, weight, gradient):  # keeps what is closest to one
        ...     return -abs(weight - 1.0)
        >>> tx = nnopt.pruning.saliency(0.5, score=closeness)
        >>> params = {"kernel": jnp.array([[3.0, 1.2]])}
        >>> tx.apply(params, tx.init(params))
        {'kernel': Array([[0. , 1.2]], dtype=float32)}
    """
    return by_score(scores.saliency(score, gradients, decay), sparsity, **choices)
