"""Rewinding: after each round of pruning, the weights go back to what they were early on."""

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
    r"""Puts the parameters back to those of update `to`, after each round of pruning.

    $$ w_t \leftarrow w_{to} \quad \text{at } t = t_0 + r n + 1, \qquad r = 1, \dots, R $$

    Chain it with a pruning of `schedule = iterative(sparsity, rounds, steps, begin)`:

        chain(magnitude(schedule, every=steps), rewind(rounds, steps, to=100))

    in either order. At the end of a round the pruning chooses its mask by the trained weights; one
    update later (which is lost) all weights go back, and what the mask removes stays removed. What
    a mask hides at update `to` already is remembered as 0, unless the mask is soft.
    `to=0` is the lottery ticket of the first paper, from the very initialization; larger networks
    need an early `to` above 0.

    What the model sees is not changed, and nothing is stored. Only the parameters go back: not the
    moments of the optimizer, which forget in some steps, nor what other transforms learn (tables,
    steps). The learning rate should repeat its course from `to` in each round: give the optimizer
    such a schedule, `optax.join_schedules`. That schedule alone, without this transform, is
    learning-rate rewinding (Renda et al.), and without both it is fine-tuning.

    Args:
        rounds: `R`, how often.
        steps: `n`, updates in a round.
        begin: `t_0`, updates before the first round.
        to: the number of the update whose parameters are remembered; 0 for those of `init`.
        where: which leaves; default: all floats, biases too. The state holds a copy of them.

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
    settings.integer("to", to, 0, last)  # later than the first round there is nothing to go back to
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
    """The parameter below what earlier transforms made of it, as far as it can still be told."""
    if not is_node(leaf):
        return leaf
    if isinstance(leaf, Masked):
        return _visible(leaf, _raw(leaf.values))
    carry = getattr(leaf, "carry", None)
    return materialize(leaf) if carry is None else carry


def _visible(seen: Field, leaf: jax.Array) -> jax.Array:
    """A parameter without what an earlier transform's mask hides, unless that goes on learning."""
    if not isinstance(seen, Masked) or seen.mode == "straight_through":
        return leaf
    return jnp.where(materialize(seen.mask).astype(bool), leaf, jnp.zeros_like(leaf))


def _free(seen: Field, leaf: jax.Array) -> jax.Array:
    """Where a parameter may go back: not where an earlier transform's mask has set it to zero."""
    if not isinstance(seen, Masked):
        return jnp.ones(leaf.shape, bool)
    return materialize(seen.mask).astype(bool) | (leaf != 0)
