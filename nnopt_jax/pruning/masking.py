"""The transform functions of pruning by a score, which make states and masked nodes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.nodes import Field, is_node
from nnopt_jax.pruning.schedules import is_due, target
from nnopt_jax.pruning.score import Score
from nnopt_jax.pruning.selection import Selection
from nnopt_jax.transform.base import State
from nnopt_jax.transform.leaves import Leaves, Start, Update, refresh_when

MaskMode: TypeAlias = Literal["hard", "soft", "frozen"]
"""The treatment of pruned weights: set to zero after each update; trained further with
straight-through gradients; or kept unchanged, without a gradient.
"""

MODES = ("hard", "soft", "frozen")


@dataclasses.dataclass(frozen=True)
class Masking:
    """The functions of a transform that masks the weights of lowest score.

    The state of a leaf holds its mask, the current sparsity, the memory of the score and, if the
    score pairs weights with gradients, the weights at which the next gradients are computed.

    Args:
        score: the importance score.
        sparsity: a number, or a schedule of the number of updates.
        selection: the number of weights that stay in each leaf, and their pattern.
        mode: see `MaskMode`.
        every: updates between two choices of the mask; None to choose once, at `init`.
    """

    score: Score
    sparsity: Any
    selection: Selection
    mode: Any
    every: int | None

    def init(self, leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        """Choose the first mask."""
        memory = self.score.begin(leaves, start) if self.score.begin else {}
        chosen = self._choose(leaves, memory, target(self.sparsity, 0))
        return {}, self._join_state(chosen, self._remember(memory, True), leaves)

    def update(self, leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        """Update the memory of the score, and choose a new mask when it is due."""
        memory = self._learn(leaves, state, now)
        sparsity = target(self.sparsity, now.count)
        old = {p: {k: r[k] for k in ("mask", "sparsity")} for p, r in state.rest.items()}
        # All leaves follow one schedule, so the first holds the current sparsity of all.
        held = next(iter(old.values()))["sparsity"]
        due = is_due(self.every, self.sparsity, now.count, held)
        chosen = refresh_when(due, lambda: self._choose(leaves, memory, sparsity), old)
        seen = leaves
        if self.mode == "hard":
            seen = {path: project(leaf, chosen[path]) for path, leaf in leaves.items()}
        return {}, self._join_state(chosen, self._remember(memory, due), seen)

    def encode(self, leaves: Leaves, state: State, train: bool) -> Leaves:
        """Return a masked node for each leaf."""
        known: Leaves = {} if callable(self.sparsity) else self.counts(leaves)
        return {
            path: Masked(
                leaf,
                state.rest[path]["mask"],
                known.get(path),
                node_mode(self.mode, leaf, train),
                *self.selection.pattern.format(leaf.shape, self.selection.axes(path, leaf.shape)),
            )
            for path, leaf in leaves.items()
        }

    def counts(self, leaves: Leaves) -> dict[str, int]:
        """Return how many weights each leaf keeps in the end, if the settings determine it."""
        return self.selection.counts(leaves, self.sparsity)

    def _learn(self, leaves: Leaves, state: State, now: Update) -> Leaves:
        memory = {p: r["memory"] for p, r in state.rest.items() if r["memory"] is not None}
        if self.score.learn is None:
            return memory
        paired = {p: r["seen"] for p, r in state.rest.items()} if self.score.paired else leaves
        return self.score.learn(paired, memory, now)

    def _choose(self, leaves: Leaves, memory: Leaves, sparsity: Any) -> Leaves:
        now = jnp.asarray(sparsity, jnp.float32)
        scores = self.score.measure(leaves, memory)
        chosen = self.selection.masks(scores, sparsity, signed=self.score.signed)
        return {path: {"mask": mask, "sparsity": now} for path, mask in chosen.items()}

    def _remember(self, memory: Leaves, chosen: Any) -> Leaves:
        """Return the memory of the score for the next mask; empty if the mask never changes."""
        if self.every is None:
            return {}
        if not self.score.forgets:
            return memory
        return {p: jnp.where(chosen, jnp.zeros_like(x), x) for p, x in memory.items()}

    def _join_state(self, chosen: Leaves, memory: Leaves, seen: Leaves) -> Leaves:
        """Return the state; `seen` holds the weights at which the next gradients are computed."""
        keeps = self.score.paired and self.every is not None
        return {
            path: chosen[path] | {"memory": memory.get(path), "seen": seen[path] if keeps else None}
            for path in chosen
        }


def project(leaf: jax.Array, rest: Any) -> jax.Array:
    """Set the masked weights of a leaf to zero, as hard masks do after each update."""
    return jnp.where(rest["mask"], leaf, jnp.zeros((), leaf.dtype))


def node_mode(mode: str, leaf: Field, train: bool) -> str:
    """Return the mode of a masked node: select, straight-through, or already applied."""
    if mode == "soft":
        return "straight_through"
    return "applied" if mode == "hard" and train and not is_node(leaf) else "select"
