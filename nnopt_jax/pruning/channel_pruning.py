"""Structured pruning of channels, neurons and heads by any score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from nnopt_jax.errors import CompositionError
from nnopt_jax.pruning import scores
from nnopt_jax.pruning.masking import MaskMode
from nnopt_jax.pruning.patterns import CoupledPattern
from nnopt_jax.pruning.pruner import by_score
from nnopt_jax.pruning.score import Score
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import Array, ScalarOrSchedule

__all__ = ["structured"]

ChannelScore: TypeAlias = Literal["l1", "l2"] | str | Score | Callable[[str, Array], Array]
"""A norm, a score of weights by value or name, or a function `(path, leaf) -> scores`."""


@recorded
def structured(
    sparsity: ScalarOrSchedule,
    *,
    graph: Any = None,
    where: Where = "**",
    score: ChannelScore = "l2",
    allocation: Literal["uniform", "global", "flops"] = "uniform",
    multiple: int = 1,
    mode: MaskMode = "hard",
    every: int = 1,
) -> Transform:
    r"""Keep the channels, neurons and heads of greatest score, with all coupled weights.

    $$ s_u = \Big(\sum_{w \in u} w^2\Big)^{1/2} $$

    The graph determines which weights are coupled: a column of a kernel, its bias and the row of
    the next kernel; a channel and its normalization parameters; a head. Pruned channels are masked
    during training. `graph.shrink(params, nnopt.pruning.kept_units(state))` then removes them,
    which makes the network smaller and faster.

    Args:
        sparsity: the fraction of channels (with `allocation="flops"`, of operations) to prune, from
            0 to less than 1, or an `optax.Schedule`.
        graph: no longer supported; write `structured(0.5).bind(graph)`, or `tx.init(params,
            graph=graph)`.
        where: which dimensions, by name; by default all.
        score: `"l2"`, the norm of a channel; `"l1"`; a score of weights by name or value, such as
            `"taylor"` or `pruning.scores.fisher()`; or a function `(path, leaf) -> scores of the
            weights`. The scores of a channel's weights are summed.
        allocation: `"uniform"`: the sparsity of each dimension. `"global"`: one threshold for all
            dimensions, on scores divided by the mean of their dimension. `"flops"`: one such
            threshold, at which the operations of products with weights fall by this fraction. One
            channel of each dimension always stays.
        multiple: the number of channels kept in a dimension is rounded up to a multiple of this, at
            most to all; hardware prefers multiples of 8 or 128. Only with `allocation="uniform"`.
        mode: `"hard"`, `"soft"` or `"frozen"`; see `by_score`.
        every: updates between two choices of the mask.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range.
        CompositionError: `graph` was passed here; or, at `init`, the graph is missing.
        StatisticsError: (by `init` or `update`) statistics of the score are missing.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> apply = lambda p, x: jnp.tanh(x @ p["fc1"]) @ p["fc2"]
        >>> params = {"fc1": jnp.array([[1.0, 3.0]]), "fc2": jnp.array([[2.0], [1.0]])}
        >>> graph = nnopt.graph(apply, params, jnp.ones((1, 1)))
        >>> tx = nnopt.pruning.structured(0.5).bind(graph)
        >>> state = tx.init(params)
        >>> tx.apply(params, state)["fc1"], nnopt.pruning.kept_units(state)["fc1:1"]
        (Array([[0., 3.]], dtype=float32), Array([False,  True], dtype=bool))
        >>> small = graph.shrink(params, nnopt.pruning.kept_units(state))
        >>> small.widths
        {'fc1': (1, 1), 'fc2': (1, 1)}

    References:
        Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3; coupled axes: Fang et
        al. 2023, DepGraph, section 3.3.
    """
    name = "pruning.structured"
    if graph is not None:
        raise CompositionError(
            f"{name}: takes no graph=; write {name}(...).bind(graph), or give it to "
            "tx.init(params, graph=graph)."
        )
    norms = {"l1": scores.magnitude, "l2": scores.norm}
    found: Any = norms[score]() if isinstance(score, str) and score in norms else score
    if callable(score) and not isinstance(score, Score):
        found = scores.saliency(lambda path, weight, _: score(path, weight))
    return by_score(
        found, sparsity, where=where, allocation=allocation, pattern=CoupledPattern(multiple),
        mode=mode, every=every, name=name,
    )  # fmt: skip
