"""Masks over coupled axes: channels, neurons and heads with all weights that belong to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.errors import CompositionError
from nnopt_jax.ops.masks import count_kept
from nnopt_jax.ops.threshold import top_k_mask, top_k_masks
from nnopt_jax.pruning.masking import Masking, node_mode, project
from nnopt_jax.pruning.schedules import is_due, target
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import TOGETHER, State
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.builders import project_leaves
from nnopt_jax.transform.leaves import (
    Leaves,
    chosen_leaves,
    leaves_of_state,
    make_start,
    make_update,
    refresh_when,
)
from nnopt_jax.tree.paths import unflatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Array

_NAME = "pruning.structured"

Place = tuple[str, int]
"""A leaf by path, and one of its axes."""


class CoupledDimension(Protocol):
    """A coupled dimension of a graph: channels, neurons or heads, with their indices by leaf."""

    name: str
    size: int
    indices: Mapping[Place, np.ndarray]


def coupled_dimensions(graph: Any) -> tuple[CoupledDimension, ...]:
    """Return the coupled dimensions of a graph.

    Raises:
        CompositionError: the argument is not a graph.
    """
    found = getattr(graph, "coupled", graph)
    if not hasattr(found, "dimensions"):
        raise CompositionError(
            f"{_NAME}: a {type(graph).__name__} is not a graph; give nnopt.graph(apply, params, "
            "*inputs)."
        )
    return tuple(found.dimensions)


def kept_units(state: State) -> dict[str, Array]:
    """Return a mask of the channels of each dimension that a state of `structured` keeps.

    Pass the result to `graph.shrink`.

    Args:
        state: the state of the method itself; in a chain, `state[i]` for its transform `i`.

    Returns:
        For each dimension by name, bool `(channels,)`.

    Raises:
        CompositionError: the state belongs to another method.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"a": jnp.ones((1, 2)), "b": jnp.array([[0.0], [1.0]])}
        >>> graph = nnopt.graph(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 1)))
        >>> state = nnopt.pruning.structured(0.5).init(params, graph=graph)
        >>> nnopt.pruning.kept_units(state)
        {'a:1': Array([False,  True], dtype=bool)}
    """
    rest = state.rest if isinstance(state, State) else {}
    if not isinstance(rest.get(TOGETHER), dict) or "units" not in rest[TOGETHER]:
        raise CompositionError(
            "pruning.kept_units: this is not a state of pruning.structured; of a chain give "
            "state[number of the transform]."
        )
    return dict(rest[TOGETHER]["units"])


@dataclasses.dataclass(frozen=True)
class Coupled(Masking):
    """The functions of a transform that masks channels, neurons and heads.

    A score of weights is summed over all weights that belong to a channel.

    Args:
        name: the name of the method, for errors.
        where: which dimensions, by name.
        binding: the binding, which holds a graph if the transform is bound to one.
    """

    name: str
    where: Where
    binding: Binding

    def start(self, params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        """Make the initial state of the transform."""
        graph = self.binding.graph if graph is None else graph
        members = self._members(graph)
        leaves = self._leaves(params, members)
        at: dict[str, Any] = {
            name: {path: {} for path, _ in places} for name, places in members.items()
        }
        for name, places in members.items():
            for (path, axis), indices in places.items():
                at[name][path][str(axis)] = jnp.asarray(indices, jnp.int32)
        start = make_start(self.name, leaves, params, key, stats, self.score.needs)
        dense = {path: materialize(leaf) for path, leaf in leaves.items()}
        memory = self.score.begin(dense, start) if self.score.begin else {}
        fixed = {"at": at}
        if self.selection.allocation == "flops":
            fixed["flops"] = {
                row.path: jnp.float32(row.flops) for row in graph.cost().rows if row.path in dense
            }
        found = self._chosen(dense, memory, fixed, target(self.sparsity, 0))
        return self._new_state(found, memory, dense, fixed, jnp.int32(0))

    def check(self, params: Any) -> None:
        """Raise an error if the selected dimensions are not valid; do nothing without a graph."""
        if self.binding.graph is not None:
            self._leaves(params, self._members(self.binding.graph))

    def masked(self, params: Any, state: State, *, train: bool = False) -> Any:
        """Return the parameters with masked nodes for the selected leaves."""
        leaves, mine = leaves_of_state(params, state, self.name, TOGETHER)
        nodes = {
            path: Masked(leaf, state.rest[path]["mask"], mode=node_mode(self.mode, leaf, train))
            for path, leaf in mine.items()
        }
        return unflatten(params, leaves | nodes, is_node)

    def refresh(
        self,
        params: Any,
        state: State,
        *,
        grads: Any = None,
        upstream: Any = None,
        step: Any = None,
    ) -> tuple[Any, State]:
        """Update scores, choose new masks when they are due, and project the parameters."""
        _, seen = leaves_of_state(
            params if upstream is None else upstream, state, self.name, TOGETHER
        )
        now = make_update(self.name, seen, state, grads, step)
        dense = {path: materialize(leaf) for path, leaf in seen.items()}
        memory: Leaves = {}
        if self.score.begin is not None and self.every is not None:
            only = {path: state.rest[path] for path in seen}
            memory = self._learn(dense, state._replace(rest=only), now)
        together = state.rest[TOGETHER]
        fixed = {key: together[key] for key in ("at", "flops") if key in together}
        old = {path: {"mask": state.rest[path]["mask"]} for path in seen}
        old[TOGETHER] = {key: together[key] for key in ("units", "sparsity")}
        due = is_due(self.every, self.sparsity, now.count, together["sparsity"])
        sparsity = target(self.sparsity, now.count)
        found = refresh_when(due, lambda: self._chosen(dense, memory, fixed, sparsity), old)
        if self.mode == "hard":
            params = project_leaves(params, seen, project, found)
            dense = {path: project(leaf, found[path]) for path, leaf in dense.items()}
        memory = self._remember(memory, due)
        return params, self._new_state(found, memory, dense, fixed, now.count)

    def _new_state(
        self, found: Leaves, memory: Leaves, seen: Leaves, fixed: Any, count: Array
    ) -> State:
        rest = {path: mask for path, mask in found.items() if path != TOGETHER}
        if self.score.begin is not None:
            rest = self._join_state(rest, memory if self.every is not None else {}, seen)
        return State({}, rest | {TOGETHER: found[TOGETHER] | fixed}, count)

    def _leaves(
        self, params: Any, members: Mapping[str, Mapping[Place, np.ndarray]]
    ) -> dict[str, Any]:
        paths = {path for places in members.values() for path, _ in places}
        return chosen_leaves(lambda path, leaf: path in paths, params, self.name, self.binding)

    def _members(self, graph: Any) -> dict[str, Mapping[Place, np.ndarray]]:
        if graph is None:
            raise CompositionError(
                f"{self.name}: has no graph; bind it, tx.bind(nnopt.graph(apply, params, "
                "*inputs)), or give tx.init(params, graph=graph)."
            )
        known = {dimension.name: dimension for dimension in coupled_dimensions(graph)}
        chosen = resolve(self.where, known, self.name)
        return {name: known[name].indices for name in chosen}

    def _chosen(self, leaves: Leaves, memory: Leaves, fixed: Any, sparsity: Any) -> dict[str, Any]:
        """Return masks of the channels to keep, and the mask of each leaf."""
        at = fixed["at"]
        scores = self._scores(leaves, memory, at)
        units = self._units(scores, sparsity, at, leaves, fixed.get("flops"))
        masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in leaves.items()}
        for (path, axis), lines in _lines(units, at, leaves).items():
            masks[path] &= _along(lines, axis, leaves[path].ndim)
        together = {"units": units, "sparsity": jnp.asarray(sparsity, jnp.float32)}
        return {path: {"mask": mask} for path, mask in masks.items()} | {TOGETHER: together}

    def _scores(self, leaves: Leaves, memory: Leaves, at: Any) -> dict[str, Array]:
        """Return one score for each channel of each dimension, over all of its weights."""
        wide = {path: leaf.astype(jnp.float32) for path, leaf in leaves.items()}
        worth = self.score.measure(wide, memory)
        if not self.score.signed:
            worth = {path: jnp.abs(x) for path, x in worth.items()}
        found = {}
        for name, members in at.items():
            total = jnp.float32(0)
            for path, axes in members.items():
                for axis, indices in axes.items():
                    others = tuple(i for i in range(worth[path].ndim) if i != int(axis))
                    total = total + worth[path].sum(others)[indices].sum(1)
            found[name] = self.score.of_sum(total)
        return found

    def _units(
        self, scores: Mapping[str, Array], sparsity: Any, at: Any, leaves: Leaves, flops: Any
    ) -> dict[str, Array]:
        """Mark the channels to keep, always including the best of each dimension."""
        best = {name: jnp.arange(x.size) == jnp.argmax(x) for name, x in scores.items()}
        if self.selection.allocation == "uniform":
            counts = [self._count(x.size, sparsity) for x in scores.values()]
            chosen = [
                top_k_mask(x, count, signed=True)
                for x, count in zip(scores.values(), counts, strict=True)
            ]
            return {n: c | best[n] for n, c in zip(scores, chosen, strict=True)}
        # One threshold ranks all dimensions, whose scores may differ in scale.
        tiny = jnp.finfo(jnp.float32).tiny
        even = [x / jnp.maximum(jnp.abs(x).mean(), tiny) for x in scores.values()]
        size = sum(x.size for x in even)

        def take(count: Any) -> dict[str, Array]:
            chosen = top_k_masks(even, count, signed=True)
            return {n: c | best[n] for n, c in zip(scores, chosen, strict=True)}

        if flops is None:
            return take(count_kept(size, sparsity))
        budget = (1 - jnp.asarray(sparsity, jnp.float32)) * sum(flops.values())

        # Keeping more channels never costs fewer FLOPs, so bisection finds the most that fit.
        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high + 1) // 2
            fits = _flops_left(take(middle), at, leaves, flops) <= budget
            return jnp.where(fits, middle, low), jnp.where(fits, high, middle - 1)

        ends = jnp.int32(0), jnp.int32(size)
        return take(jax.lax.fori_loop(0, size.bit_length(), halve, ends)[0])

    def _count(self, size: int, sparsity: Any) -> Any:
        multiple = getattr(self.selection.pattern, "multiple", 1)
        up = -(-count_kept(size, sparsity) // multiple) * multiple
        return min(up, size) if isinstance(up, int) else jnp.minimum(up, size)


def check_coupled(settings: Settings, allocation: Any, multiple: Any) -> None:
    """Record invalid settings of pruning over coupled axes."""
    if allocation in ("erk", "lamp") or callable(allocation):
        settings.wrong("allocation", allocation, "divides weights among leaves, and a channel has "
                                                 "weights in several; give 'uniform', 'global' or "
                                                 "'flops'.")  # fmt: skip
    else:
        settings.choice("allocation", allocation, ("uniform", "global", "flops"))
    settings.integer("multiple", multiple, 1)
    if allocation != "uniform" and multiple != 1:
        settings.wrong("multiple", multiple, "goes with allocation='uniform' only.")


def _lines(units: Mapping[str, Array], at: Any, leaves: Leaves) -> dict[Place, Array]:
    """Return a mask of the indices to keep for each axis that is pruned, by leaf and axis."""
    found: dict[Place, Array] = {}
    for name, stay in units.items():
        for path, axes in at[name].items():
            for axis, indices in axes.items():
                place = path, int(axis)
                lines = found.get(place, jnp.ones(leaves[path].shape[int(axis)], bool))
                found[place] = lines.at[indices].min(stay[:, None], mode="drop")
    return found


def _flops_left(units: Mapping[str, Array], at: Any, leaves: Leaves, flops: Any) -> Array:
    """Return the FLOPs of all products without the removed channels."""
    left = dict(flops)
    for (path, _), lines in _lines(units, at, leaves).items():
        left[path] = left.get(path, jnp.float32(0)) * jnp.mean(lines, dtype=jnp.float32)
    return jnp.sum(jnp.stack([*left.values()]))


def _along(lines: Array, axis: int, ndim: int) -> Array:
    """Reshape a vector so that it broadcasts along one of `ndim` axes."""
    return jax.lax.expand_dims(lines, [i for i in range(ndim) if i != axis])
