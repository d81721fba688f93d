"""Sparse training that stays sparse: from time to time some weights go, and as many others come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.masked import Masked
from nnopt_jax.ops.threshold import top_k_mask
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.masking import Layout
from nnopt_jax.pruning.random.draws import draw, seeds
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import Leaves, Start, Update, refresh_when, wrapping
from nnopt_jax.tree.select import Where

Grow = Callable[[Leaves, Leaves, Update], Leaves]
"""`(dense leaves, seeds, Update) -> scores`, both by path: the greatest of what is free grow."""

_LEAST = float(jnp.finfo(jnp.float32).tiny)  # what may be chosen scores more than what may not


def drop_and_grow(
    w: jax.Array, mask: jax.Array, score: jax.Array, count: int, dropped: jax.Array
) -> jax.Array:
    """Drops the weights of least magnitude and grows as many, of greatest score.

    What was dropped is free, and may be chosen again. Of equal ones the earlier in flat order.

    Args:
        w: float weights, any shape.
        mask: bool, of that shape, `count` of it True: the weights there are.
        score: float, of that shape, ranked by magnitude.
        count: how many weights there are.
        dropped: int32, how many go.

    Returns:
        bool, of that shape, again `count` of it True.

    Example:
        >>> import jax.numpy as jnp
        >>> w, mask = jnp.array([3.0, 0.1, 0.0, 0.0]), jnp.array([True, True, False, False])
        >>> drop_and_grow(w, mask, jnp.array([9.0, 1.0, 2.0, 3.0]), 2, jnp.int32(1))
        Array([ True, False, False,  True], dtype=bool)
    """
    least, none = jnp.float32(_LEAST), jnp.float32(0)
    size = jnp.abs(w.astype(jnp.float32))
    stays = top_k_mask(jnp.where(mask, _at_least(size, least), none), count - dropped)
    worth = jnp.abs(score.astype(jnp.float32))
    return stays | top_k_mask(jnp.where(stays, none, _at_least(worth, least)), dropped)


def _at_least(x: jax.Array, least: jax.Array) -> jax.Array:
    """The greater of the two; NaN stays, and ranks above all."""
    return jnp.where(x < least, least, x)


def regrowing(
    name: str,
    grow: Grow,
    sparsity: float,
    *,
    where: Where,
    allocation: Allocation,
    fraction: Callable[[jax.Array], jax.Array],
    every: int,
    end_step: int | None,
    settings: Settings,
    by_gradients: bool = False,
) -> Transform:
    """Makes a transform that trains a sparse network and moves its connections.

    Args:
        name: the method's public name.
        grow: how it judges what is free.
        sparsity: share of zeros from 0 to 1.
        where: which leaves.
        allocation: `"uniform"`, `"erk"` or one's own.
        fraction: which share of a leaf's weights goes at an update.
        every: updates between two moves.
        end_step: the update from which connections stay; None for never.
        settings: holds what is wrong with the method's own settings.
        by_gradients: whether `grow` needs gradients; that there are none is told at once.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where there is no key.
        StatisticsError: at `update`, where gradients are needed and there are none.
    """
    settings.share("sparsity", sparsity, schedule=False)
    settings.integer("every", every, 1)
    if not callable(allocation):
        settings.choice("allocation", allocation, ("uniform", "erk"))
    settings.done()
    how = Layout(allocation, None)
    way = _Regrowth(name, grow, how, float(sparsity), fraction, every, end_step, by_gradients)
    return wrapping(
        name,
        where,
        init=way.init,
        encode=way.encode,
        update=way.update,
        settle=settle,
        capacities=way.counts,
    )


@dataclasses.dataclass(frozen=True)
class _Regrowth:
    """The functions of a transform, made of settings that are checked.

    The state of a leaf: its mask; which of its weights were there before the last update as well
    (the others start at zero); its seed.
    """

    name: str
    grow: Grow
    how: Layout
    sparsity: float
    fraction: Callable[[jax.Array], jax.Array]
    every: int
    end_step: int | None
    by_gradients: bool

    def init(self, leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        counts, found = self.counts(leaves), seeds(self.name, leaves, start)
        rest = {}
        for path, leaf in leaves.items():
            mask = top_k_mask(draw(found[path], leaf.shape), counts[path])
            rest[path] = {"mask": mask, "old": mask, "seed": found[path]}
        return {}, rest

    def update(self, leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        found = {path: rest["seed"] for path, rest in state.rest.items()}
        masks = {path: rest["mask"] for path, rest in state.rest.items()}
        counts = self.counts(leaves)
        if self.by_gradients:
            now.shown(self.name, leaves)

        def move() -> Leaves:
            scores, share = self.grow(leaves, found, now), self.fraction(now.count)
            return {
                path: drop_and_grow(
                    leaf,
                    masks[path],
                    scores[path],
                    counts[path],
                    jnp.floor(share * counts[path]).astype(jnp.int32),
                )
                for path, leaf in leaves.items()
            }

        # Once for each optimizer step: under accumulation, calls in between repeat a number.
        due = (now.count % self.every == 0) & (now.count > state.count)
        if self.end_step is not None:
            due &= now.count < self.end_step
        moved = refresh_when(due, move, masks)
        return {}, {
            path: {"mask": mask, "old": mask & masks[path], "seed": found[path]}
            for path, mask in moved.items()
        }

    def encode(self, leaves: Leaves, state: State, train: bool) -> Leaves:
        del train
        counts = self.counts(leaves)
        # Selecting in training as well: a weight that is not there has no gradient, and an
        # optimizer's averages forget it.
        return {p: Masked(x, state.rest[p]["mask"], counts[p]) for p, x in leaves.items()}

    def counts(self, leaves: Leaves) -> dict[str, int]:
        return self.how.counted(leaves, self.sparsity)


def settle(leaf: jax.Array, rest: Any) -> jax.Array:
    """Weights that are gone are zero, and so are those that have just come."""
    return jnp.where(rest["old"], leaf, jnp.zeros((), leaf.dtype))
