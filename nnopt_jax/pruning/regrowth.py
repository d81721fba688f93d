"""Sparse-to-sparse training: dropping some weights and growing as many others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.masked import Masked
from nnopt_jax.ops.threshold import top_k_mask
from nnopt_jax.pruning.masking import Masking
from nnopt_jax.pruning.patterns import Pattern, WholeBlocks
from nnopt_jax.pruning.score import draw, finite_gradients, seeds
from nnopt_jax.pruning.selection import Selection
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State
from nnopt_jax.transform.leaves import Leaves, Start, Update, refresh_when

_LEAST = float(jnp.finfo(jnp.float32).tiny)  # eligible units score higher than others


@dataclasses.dataclass(frozen=True)
class Regrow:
    r"""The mode of pruning that drops weights of lowest score and grows as many others.

    At an update, each leaf of $k$ units drops the $n = \lfloor f_t k \rfloor$ units of least score
    and grows $n$ of the absent units. Grown weights start at zero. With `end_step` $T$ and
    `decay="cosine"`, $f_t = \frac{\alpha}{2} (1 + \cos \frac{t \pi}{T})$.

    Args:
        by: which units are grown: those of greatest `"gradient"`, or units drawn at `"random"`.
        fraction: $\alpha$, the fraction of a leaf's units that are replaced.
        end_step: the update after which connections are fixed; None for never.
        decay: `"cosine"`, down to zero at `end_step`, or `"constant"`.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.Regrow("random", fraction=0.2)
        Regrow(by='random', fraction=0.2, end_step=None, decay='constant')

    References:
        Evci et al. 2020, Rigging the Lottery, section 3; Mocanu et al. 2018, Scalable Training of
        Artificial Neural Networks with Adaptive Sparse Connectivity, algorithm 1.
    """

    by: Literal["gradient", "random"] = "gradient"
    fraction: float = 0.3
    end_step: int | None = None
    decay: Literal["cosine", "constant"] = "constant"

    def check(self, settings: Settings, selection: Selection) -> None:
        """Record problems with the settings, and with patterns that cannot be regrown."""
        settings.choice("by", self.by, ("gradient", "random"))
        settings.number("fraction", self.fraction, 0, 1)
        settings.integer("end_step", self.end_step, 1, none=self.decay == "constant")
        if not callable(selection.allocation):
            settings.choice("allocation", selection.allocation, ("uniform", "erk"))
        pattern = selection.pattern
        if type(pattern) is not Pattern and not isinstance(pattern, WholeBlocks):
            settings.wrong("pattern", pattern, "divides a leaf into rows that connections cannot "
                           "leave; regrowth moves them freely: give None or block sizes.",
                           )  # fmt: skip

    def moving(self, count: jax.Array) -> jax.Array:
        """Return the fraction of units that are replaced at an update."""
        if self.decay == "constant":
            return jnp.float32(self.fraction)
        end: Any = self.end_step
        arc = jnp.minimum(count, end).astype(jnp.float32) * jnp.float32(math.pi / end)
        return jnp.float32(self.fraction / 2) * (1 + jnp.cos(arc))

    def is_due(self, every: int | None, count: jax.Array, last: jax.Array) -> Any:
        """Return whether connections are replaced at this update.

        Under gradient accumulation, calls between two optimizer steps repeat the same number, and
        only one of them replaces connections.
        """
        due = (count % (every or 1) == 0) & (count > last)
        return due if self.end_step is None else due & (count < self.end_step)


@dataclasses.dataclass(frozen=True)
class Regrowth(Masking):
    """The functions of a transform that trains a sparse network and replaces connections.

    The state of a leaf holds its mask, a mask of the weights that were also present before the last
    update (others start at zero), its seed, and the memory of the score.
    """

    def init(self, leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        """Draw the first connections at random."""
        found = seeds(leaves, start)
        scores = {path: draw(found[path], leaf.shape) for path, leaf in leaves.items()}
        masks = self.selection.masks(scores, self.sparsity)
        memory = self.score.begin(leaves, start) if self.score.begin else {}
        moved = {path: (mask, mask, found[path]) for path, mask in masks.items()}
        return {}, self._state(moved, memory, leaves)

    def update(self, leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        """Drop units of lowest score and grow as many others, at the updates that replace units."""
        found = {path: rest["seed"] for path, rest in state.rest.items()}
        masks = {path: rest["mask"] for path, rest in state.rest.items()}
        memory = self._learn(leaves, state, now) if self.score.begin else {}
        counts = self.counts(leaves)
        # Missing gradients are reported at every update, not only when connections are replaced.
        slopes = finite_gradients(leaves, now) if self.mode.by == "gradient" else None

        def move() -> Leaves:
            fraction, scores = self.mode.moving(now.count), self.score.measure(leaves, memory)
            if slopes is None:
                growth = {p: draw(found[p], x.shape, now.count) for p, x in leaves.items()}
            else:
                growth = slopes
            return {
                p: self._replace_units(p, scores[p], masks[p], growth[p], counts[p], fraction)
                for p in leaves
            }

        due = self.mode.is_due(self.every, now.count, state.count)
        fresh = refresh_when(due, move, masks)
        moved = {path: (mask, mask & masks[path], found[path]) for path, mask in fresh.items()}
        return {}, self._state(moved, memory, leaves)

    def encode(self, leaves: Leaves, state: State, train: bool) -> Leaves:
        """Return masked nodes that apply the mask in training, too.

        An absent weight then has no gradient, and the optimizer's running averages of it decay.
        """
        del train
        counts = self.counts(leaves)
        return {p: Masked(x, state.rest[p]["mask"], counts[p]) for p, x in leaves.items()}

    def _replace_units(
        self,
        path: str,
        score: jax.Array,
        mask: jax.Array,
        growth: jax.Array,
        count: int,
        fraction: jax.Array,
    ) -> jax.Array:
        """Return the new mask of a leaf, which keeps `count` weights."""
        pattern, axes = self.selection.pattern, self.selection.axes(path, mask.shape)
        units = [pattern.pool(jnp.abs(x.astype(jnp.float32)), axes) for x in (score, mask, growth)]
        size = math.prod(mask.shape) // max(units[0].size, 1)  # the number of weights of a unit
        count //= max(size, 1)
        dropped = jnp.floor(fraction * count).astype(jnp.int32)
        kept = drop_and_grow(units[0], units[1] > 0, units[2], count, dropped)
        return pattern.spread(kept, mask.shape, axes)

    def _state(self, moved: Leaves, memory: Leaves, seen: Leaves) -> Leaves:
        rest = {p: {"mask": m, "old": old, "seed": seed} for p, (m, old, seed) in moved.items()}
        if self.score.begin is None:
            return rest
        return self._join_state(rest, self._remember(memory, False), seen)


def drop_and_grow(
    score: jax.Array, mask: jax.Array, growth: jax.Array, count: int, dropped: jax.Array
) -> jax.Array:
    """Drop the present units of lowest score, and grow as many absent ones of greatest score.

    A unit that was dropped is absent, and may be grown again. Among equal scores, the earlier unit
    in flat order ranks higher.

    Args:
        score: the score of present units, float, of any shape, ranked by magnitude.
        mask: bool, of that shape, with `count` entries True: the present units.
        growth: the score of absent units, float, of that shape, ranked by magnitude.
        count: the number of present units.
        dropped: int32, the number of units to drop.

    Returns:
        The new mask, bool, of that shape, again with `count` entries True.

    Example:
        >>> import jax.numpy as jnp
        >>> w, mask = jnp.array([3.0, 0.1, 0.0, 0.0]), jnp.array([True, True, False, False])
        >>> drop_and_grow(w, mask, jnp.array([9.0, 1.0, 2.0, 3.0]), 2, jnp.int32(1))
        Array([ True, False, False,  True], dtype=bool)
    """
    least, none = jnp.float32(_LEAST), jnp.float32(0)
    worth, gain = (jnp.abs(x.astype(jnp.float32)) for x in (score, growth))
    stays = top_k_mask(jnp.where(mask, _at_least(worth, least), none), count - dropped)
    return stays | top_k_mask(jnp.where(stays, none, _at_least(gain, least)), dropped)


def _at_least(x: jax.Array, least: jax.Array) -> jax.Array:
    """Return the elementwise maximum; NaN ranks above all numbers."""
    return jnp.where(x < least, least, x)


def project_grown(leaf: jax.Array, rest: Any) -> jax.Array:
    """Set absent weights and newly grown weights to zero."""
    return jnp.where(rest["old"], leaf, jnp.zeros((), leaf.dtype))
