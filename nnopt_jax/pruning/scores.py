"""Importance scores: values that measure which weights a network needs most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.pruning.score import (
    Score,
    accumulate,
    draw,
    finite,
    finite_gradients,
    measured,
    seeds,
)
from nnopt_jax.settings import Settings, takes
from nnopt_jax.transform.leaves import Leaves, Start, Update
from nnopt_jax.transform.measured import not_measured

__all__ = [
    "SCORES",
    "Saliency",
    "fisher",
    "gradient",
    "grasp",
    "magnitude",
    "movement",
    "norm",
    "random",
    "saliency",
    "snip",
    "taylor",
    "wanda",
]

_LONGEST_DECAY = 0.999999  # with 1, a running mean would never change

Saliency: TypeAlias = Callable[[str, jax.Array, Any], jax.Array]
"""`(path, weight, gradient) -> scores` of the weight's shape; the greatest are kept."""


def magnitude() -> Score:
    r"""Return the score $|w|$.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.magnitude()
        magnitude()

    References:
        Han et al. 2015, Learning both Weights and Connections, section 3.
    """
    return Score("magnitude", lambda leaves, _: {path: jnp.abs(w) for path, w in leaves.items()})


def norm() -> Score:
    r"""Return the score $w^2$, whose sum over a channel becomes its norm $(\sum w^2)^{1/2}$.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.norm()
        norm()

    References:
        Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3.
    """

    def of(leaves: Leaves, _: Leaves) -> Leaves:
        return {path: jnp.square(w.astype(jnp.float32)) for path, w in leaves.items()}

    return Score("norm", of, of_sum=jnp.sqrt)


def random() -> Score:
    r"""Return a score drawn once from the uniform distribution, the baseline of all others.

    The numbers depend only on the key of `init` and the path of a leaf.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.random()
        random()

    References:
        Liu et al. 2022, The Unreasonable Effectiveness of Random Pruning, section 3.
    """

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {path: draw(memory[path], w.shape) for path, w in leaves.items()}

    return Score("random", of, seeds, has_size=False)


def gradient() -> Score:
    r"""Return the score $|g|$ of the last gradient, which shows where a new weight helps most.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.gradient()
        gradient()

    References:
        Evci et al. 2020, Rigging the Lottery, section 3.
    """
    return Score(
        "gradient",
        lambda leaves, memory: memory,
        lambda leaves, start: measured(leaves, start, "gradient"),
        lambda leaves, memory, now: finite_gradients(leaves, now),
        needs=("gradient",),
    )


def taylor(power: int = 2, decay: float | None = 0.9) -> Score:
    r"""Return the running mean of $|g w|^p$, the first-order change of the loss.

    Weight and gradient are those from before the optimizer step.

    Args:
        power: $p$, 1 or 2.
        decay: the decay of the running mean, from 0 (only the last step) to just below 1; None for
            the sum since the mask was last chosen.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.taylor(power=1)
        taylor(power=1, decay=0.9)

    References:
        Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, section 3.1 (8).
    """

    def check(settings: Settings) -> None:
        settings.integer("power", power, 1, 2)
        settings.number("decay", decay, 0, _LONGEST_DECAY, none=True)

    def product(w: jax.Array, g: jax.Array) -> jax.Array:
        change = jnp.abs(w.astype(jnp.float32) * g)
        return jnp.square(change) if power == 2 else change

    return _accumulating_score(
        "taylor",
        product,
        decay,
        settings=(("power", power), ("decay", decay)),
        check=check,
        forgets=decay is None,
        exact=False,  # in this order, because compilers may regroup the factors of a square
    )


def movement() -> Score:
    r"""Return $-\sum_t g w$, which is greatest for weights that move away from zero.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.movement()
        movement()

    References:
        Sanh et al. 2020, Movement Pruning, section 4.
    """
    return _accumulating_score(
        "movement", lambda w, g: -w.astype(jnp.float32) * g, None, signed=True, mode="frozen"
    )


def fisher(decay: float = 0.99) -> Score:
    r"""Return $\frac{1}{2} F w^2$ with the running mean $F = \langle g^2 \rangle$.

    Args:
        decay: the decay of the running mean over updates, from 0 to just below 1.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.fisher()
        fisher(decay=0.99)

    References:
        LeCun, Denker and Solla 1990, Optimal Brain Damage, section 2 (5); Theis et al. 2018,
        Faster gaze prediction with dense networks and Fisher pruning, section 2.1 (6).
    """

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {
            path: 0.5 * memory[path] * jnp.square(w.astype(jnp.float32))
            for path, w in leaves.items()
        }

    def learn(leaves: Leaves, memory: Leaves, now: Update) -> Leaves:
        slopes = finite_gradients(leaves, now)
        return {p: accumulate(memory[p], jnp.square(slopes[p]), decay) for p in leaves}

    return Score(
        "fisher",
        of,
        lambda leaves, start: measured(leaves, start, "fisher"),
        learn,
        settings=(("decay", decay),),
        check=lambda settings: settings.number("decay", decay, 0, _LONGEST_DECAY),
        needs=("fisher",),
    )


def snip() -> Score:
    r"""Return $|g w|$ before training, the sensitivity of the loss to a connection.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.snip()
        snip()

    References:
        Lee et al. 2019, SNIP: Single-shot Network Pruning, section 4.1 (6).
    """
    return _at_init("snip", "gradient", lambda w, g: jnp.abs(w * g))


def grasp() -> Score:
    r"""Return $w \, (H g)$ before training, greatest for weights that preserve gradient flow.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.grasp()
        grasp()

    References:
        Wang, Zhang and Grosse 2020, Picking Winning Tickets Before Training by Preserving
        Gradient Flow, section 4.1 (8).
    """
    return _at_init("grasp", "hessian_gradient", lambda w, hg: w * hg, signed=True)


def wanda() -> Score:
    r"""Return $|w_{ij}| \, \lVert x_i \rVert_2$: magnitude times input norm over all data.

    The norm is computed as the root of the mean square, which gives the same order.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.wanda()
        wanda()

    References:
        Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models,
        section 3 (1).
    """

    def begin(leaves: Leaves, start: Start) -> Leaves:
        moments = start.stats.get("input_moments", {})
        return {path: _input_norm(path, moments[path]) for path in leaves}

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {p: jnp.abs(w.astype(jnp.float32)) * memory[p] for p, w in leaves.items()}

    return Score("wanda", of, begin, needs=("input_moments",), once=True)


def _input_norm(path: str, moments: Any) -> jax.Array:
    """Return the root mean square of the inputs of a leaf, for each weight or contracted index."""
    if isinstance(moments, Tracer):  # the caller only needs shapes
        return moments
    if not (hasattr(moments, "variance") and hasattr(moments, "mean")):
        raise not_measured("pruning.wanda", path, "input_moments", moments)
    return finite(jnp.sqrt(jnp.square(moments.mean) + moments.variance))


def saliency(score: Saliency, gradients: bool = False, decay: float = 0.0) -> Score:
    r"""Return a score that a user's function of weights, and perhaps gradients, computes.

    Args:
        score: `(path, weight, gradient) -> scores`, of the weight's shape and of either sign, a
            function that `jax.jit` can trace; the gradient is float32, or None without `gradients`.
        gradients: whether the score uses gradients.
        decay: the decay of the running mean of gradients, from 0 (only the last) to just below 1.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.scores.saliency(lambda path, w, g: w, decay=0.5).name
        'saliency'
    """

    def check(settings: Settings) -> None:
        settings.flag("gradients", gradients)
        settings.number("decay", decay, 0, _LONGEST_DECAY)
        if not callable(score) or not takes(score, "path", None, None):
            settings.wrong("score", score, "is not a function (path, weight, gradient) -> scores.")

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {path: score(path, w, memory.get(path)) for path, w in leaves.items()}

    def learn(leaves: Leaves, memory: Leaves, now: Update) -> Leaves:
        return {
            p: accumulate(memory[p], g, decay) for p, g in finite_gradients(leaves, now).items()
        }

    reads = gradients is True
    return Score(
        "saliency",
        of,
        (lambda leaves, start: measured(leaves, start, "gradient")) if reads else None,
        learn if reads else None,
        settings=(("score", score), ("gradients", gradients), ("decay", decay)),
        check=check,
        needs=("gradient",) if reads else (),
        signed=True,
    )


SCORES: Mapping[str, Callable[..., Score]] = MappingProxyType(
    {
        "fisher": fisher,
        "gradient": gradient,
        "grasp": grasp,
        "magnitude": magnitude,
        "movement": movement,
        "norm": norm,
        "random": random,
        "snip": snip,
        "taylor": taylor,
        "wanda": wanda,
    }
)
"""The scores that a string can name, with their default settings."""


def _accumulating_score(
    name: str,
    product: Callable[[jax.Array, jax.Array], jax.Array],
    decay: float | None,
    **options: Any,
) -> Score:
    """Return a score that accumulates a product of weight and gradient over updates."""

    def begin(leaves: Leaves, start: Start) -> Leaves:
        slopes = measured(leaves, start, "gradient")
        return {path: product(w, slopes[path]) for path, w in leaves.items()}

    def learn(leaves: Leaves, memory: Leaves, now: Update) -> Leaves:
        slopes = finite_gradients(leaves, now)
        return {p: accumulate(memory[p], product(w, slopes[p]), decay) for p, w in leaves.items()}

    return Score(
        name, lambda leaves, memory: memory, begin, learn, needs=("gradient",), paired=True,
        **options,
    )  # fmt: skip


def _at_init(
    name: str, statistic: str, product: Callable[[Any, Any], jax.Array], *, signed: bool = False
) -> Score:
    """Return a score of the initial weights and one statistic, compared over the whole network."""

    def of(leaves: Leaves, memory: Leaves) -> Leaves:
        return {p: product(w.astype(jnp.float32), memory[p]) for p, w in leaves.items()}

    return Score(
        name, of, lambda leaves, start: measured(leaves, start, statistic), needs=(statistic,),
        signed=signed, once=True, allocation="global",
    )  # fmt: skip
