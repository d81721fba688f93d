"""Rewinding: resetting the weights to their early values after each round of pruning."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.nodes import Field, is_node, materialize
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import chosen_leaves, leaves_of_state, make_update
from nnopt_jax.transform.measured import Measured
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where

_NAME = "pruning.rewind"


@recorded
def rewind(
    rounds: int, steps: int, begin: int = 0, *, to: int = 0, where: Where = "**"
) -> Transform:
    r"""Reset the parameters to those of update `to` after each round of pruning.

    $$ w_t \leftarrow w_{to} \quad \text{at } t = t_0 + r n + 1, \qquad r = 1, \dots, R $$

    Chain it with pruning by the schedule `schedule = iterative(sparsity, rounds, steps, begin)`:

        chain(magnitude(schedule, every=steps), rewind(rounds, steps, to=100))

    in either order. At the end of a round, pruning chooses its mask by the trained weights. One
    update later (which is lost), all weights are reset, and masked weights stay masked. Weights
    that are already masked at update `to` are stored as 0, unless the mask is soft. `to=0` finds
    the lottery tickets of the first paper, from the initial weights; larger networks need an early
    `to` above 0.

    The transform does not change the encoded parameters or the stored form. Only parameters are
    reset: the moments of the optimizer are not, and decay within some steps, nor are the learned
    arrays of other transforms (tables, steps). The learning rate should restart from its value at
    `to` in each round: give the optimizer such a schedule with `optax.join_schedules`. That
    schedule without this transform is learning-rate rewinding (Renda et al.), and neither of the
    two is fine-tuning.

    Args:
        rounds: `R`, the number of rounds.
        steps: `n`, the updates of a round.
        begin: `t_0`, updates before the first round.
        to: the number of the update whose parameters are stored; 0 for those of `init`.
        where: which leaves; by default all float leaves, biases included. The state holds a copy of
            them.

    Returns:
        The transform, whose `encode` is the identity.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.rewind(rounds=1, steps=2)
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     params, state = tx.update({"w": params["w"] + 1}, state)
        ...     print(params["w"])
        [2. 3.]
        [3. 4.]
        [1. 2.]

    References:
        Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis, section 2
        (algorithm 2); Renda, Frankle and Carbin 2020, Comparing Rewinding and Fine-tuning in
        Neural Network Pruning, section 2.
    """
    settings = Settings(_NAME)
    settings.integer("rounds", rounds, 1)
    settings.integer("steps", steps, 1)
    settings.integer("begin", begin, 0)
    last = begin + steps if isinstance(begin, int) and isinstance(steps, int) else None
    settings.integer("to", to, 0, last)  # `to` must come before the first reset
    settings.done()

    def init(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        del graph, key
        Measured.read(_NAME, stats, flatten(params, is_node)).check_used(_NAME, ())
        raw = {path: _raw(leaf) for path, leaf in flatten(params, is_node).items()}
        return State({}, chosen_leaves(where, raw, _NAME), jnp.int32(0))

    def encode(params: Any, state: State, *, train: bool = False) -> Any:
        leaves_of_state(params, state, _NAME)
        return params

    def update(
        params: Any, state: State, *, grads: Any = None, upstream: Any = None, step: Any = None
    ) -> tuple[Any, State]:
        leaves, mine = leaves_of_state(params, state, _NAME)
        count = make_update(_NAME, mine, state, grads, step).count
        seen = leaves if upstream is None else flatten(upstream, is_node)
        kept = {
            path: jnp.where(count == to, _visible(seen[path], leaves[path]), old)
            for path, old in state.rest.items()
        }
        since = count - begin - 1
        over = (since > 0) & (since % steps == 0) & (since <= rounds * steps)
        moved = {
            path: jnp.where(over & _free(seen[path], leaves[path]), old, leaves[path])
            for path, old in kept.items()
        }
        return unflatten(params, leaves | moved, is_node), State({}, kept, count)

    return Transform(_NAME, init, encode, update)


def _raw(leaf: Field) -> jax.Array:
    """Return the raw array below the nodes of earlier transforms, if they store it."""
    if not is_node(leaf):
        return leaf
    if isinstance(leaf, Masked):
        return _visible(leaf, _raw(leaf.values))
    carry = getattr(leaf, "carry", None)
    return materialize(leaf) if carry is None else carry


def _visible(seen: Field, leaf: jax.Array) -> jax.Array:
    """Return a dense parameter with zeros where an earlier hard mask is False."""
    if not isinstance(seen, Masked) or seen.mode == "straight_through":
        return leaf
    return jnp.where(materialize(seen.mask).astype(bool), leaf, jnp.zeros_like(leaf))


def _free(seen: Field, leaf: jax.Array) -> jax.Array:
    """Return a mask of the entries to reset: all that no earlier transform has pruned."""
    if not isinstance(seen, Masked):
        return jnp.ones(leaf.shape, bool)
    return materialize(seen.mask).astype(bool) | (leaf != 0)
