"""Pruning of whole units: columns, channels, heads, and all that goes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.base import is_node, show
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.errors import CompositionError
from nnopt_jax.ops.masks import kept
from nnopt_jax.ops.threshold import top_k_mask, top_k_masks
from nnopt_jax.pruning.masking import Mode, mask_mode, settle
from nnopt_jax.pruning.timing import check_schedule, is_due, target
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import TOGETHER, State, Transform, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.leaves import (
    chosen_leaves,
    leaves_of_state,
    make_update,
    refresh_when,
    settled,
)
from nnopt_jax.transform.measured import Measured
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Array, ScalarOrSchedule

_NAME = "pruning.structured"

Place = tuple[str, int]
"""A leaf by path, and one of its axes."""

Scored: TypeAlias = Literal["l1", "l2"] | Callable[[str, Array], Array]
"""What a unit is worth: a norm, or `(path, leaf) -> a score for each element`, which are summed."""


class Dimension(Protocol):
    """Units that are alike; `nnopt_jax.trace.Dimension` is one."""

    name: str
    size: int
    indices: Mapping[Place, np.ndarray]


def structured(
    sparsity: ScalarOrSchedule,
    *,
    graph: Any = None,
    where: Where = "**",
    score: Scored = "l2",
    scope: Literal["dimension", "global"] = "dimension",
    multiple: int = 1,
    mode: Mode = "hard",
    every: int = 1,
) -> Transform:
    r"""Keeps the units of greatest norm, with everything that belongs to them.

    .. math:: s_u = \Big(\sum_{w \in u} w^2\Big)^{1/2}

    A unit is what a graph says goes together: a column of a kernel, its bias, the row of the next
    kernel; a channel and all that normalization has of it; a head. While training it is masked;
    `graph.shrink(params, nnopt.pruning.kept_units(state))` takes it out, and what is left is
    smaller and faster.

    Args:
        sparsity: share of the units that go, from 0 to less than 1, or an `optax.Schedule`.
        graph: removed; write `structured(0.5).bind(graph)`, or `tx.init(params, graph=graph)`.
        where: which dimensions, by name; default: all.
        score: `"l1"`, `"l2"`, or `(path, leaf) -> scores` of the leaf's shape.
        scope: `"dimension"`: the share holds in each dimension. `"global"`: one threshold over
            all, of scores over the mean of their dimension. One unit always stays.
        multiple: how many stay of a dimension is rounded up to a multiple of it, as far as there
            are so many; hardware likes multiples of 8 or 128. Only with `scope="dimension"`.
        mode: as for `pruning.magnitude`.
        every: updates between two choices.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range.
        CompositionError: `graph` was given here; or, at `init`, there is no graph.

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
        Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3; groups: Fang et al.
        2023, DepGraph, section 3.3.
    """
    if graph is not None:
        raise CompositionError(
            f"{_NAME}: takes no graph=; write {_NAME}(...).bind(graph), or give it to "
            "tx.init(params, graph=graph)."
        )
    settings = Settings(_NAME)
    settings.share("sparsity", sparsity)
    check_schedule(settings, "sparsity", sparsity)
    settings.choice("scope", scope, ("dimension", "global"))
    settings.choice("mode", mode, ("hard", "soft", "frozen"))
    settings.integer("multiple", multiple, 1)
    settings.integer("every", every, 1)
    if not callable(score):
        settings.choice("score", score, ("l1", "l2"))
    if scope == "global" and multiple != 1:
        settings.wrong("multiple", multiple, "goes with scope='dimension' only.")
    settings.done()

    def build(binding: Binding) -> Transform:
        way = _Structured(sparsity, binding, where, score, scope, multiple, mode, every)
        return Transform(_NAME, way.init, way.encode, way.update, exact=False, check=way.check)

    return bindable(build)


def coupled_dimensions(graph: Any) -> tuple[Dimension, ...]:
    """Return the dimensions of a graph, or of its coupled axes.

    Raises:
        CompositionError: it is not a graph.
    """
    found = getattr(graph, "coupled", graph)
    if not hasattr(found, "dimensions"):
        raise CompositionError(
            f"{_NAME}: a {type(graph).__name__} is not a graph; give nnopt.graph(apply, params, "
            "*inputs)."
        )
    return tuple(found.dimensions)


def kept_units(state: State) -> dict[str, Array]:
    """Which units of each dimension a state of `structured` keeps: what `graph.shrink` takes.

    Args:
        state: of the method itself; of a chain, `state[number of the link]`.

    Returns:
        By name of the dimension bool `(units,)`.

    Raises:
        CompositionError: the state is of another method.

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
            "pruning.kept_units: this is no state of pruning.structured; of a chain give "
            "state[number of the link]."
        )
    return dict(rest[TOGETHER]["units"])


@dataclasses.dataclass(frozen=True)
class _Structured:
    """The functions of the transform, made of settings that are checked."""

    sparsity: Any
    binding: Binding
    where: Where
    score: Scored
    scope: str
    multiple: int
    mode: Mode
    every: int

    def init(self, params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        del key
        Measured.read(_NAME, stats, flatten(params, is_node)).check_used(_NAME, ())
        members = self._members(self.binding.graph if graph is None else graph)
        leaves = self._leaves(params, members)
        at = {name: {path: {} for path, _ in places} for name, places in members.items()}
        for name, places in members.items():
            for (path, axis), indices in places.items():
                at[name][path][str(axis)] = jnp.asarray(indices, jnp.int32)
        dense = {path: show(leaf) for path, leaf in leaves.items()}
        found = self._choose(dense, at, target(self.sparsity, 0))
        return State({}, found | {TOGETHER: found[TOGETHER] | {"at": at}}, jnp.int32(0))

    def check(self, params: Any) -> None:
        if self.binding.graph is not None:
            self._leaves(params, self._members(self.binding.graph))

    def _leaves(
        self, params: Any, members: Mapping[str, Mapping[Place, np.ndarray]]
    ) -> dict[str, Any]:
        paths = {path for places in members.values() for path, _ in places}
        return chosen_leaves(lambda path, leaf: path in paths, params, _NAME, self.binding)

    def _members(self, graph: Any) -> dict[str, Mapping[Place, np.ndarray]]:
        if graph is None:
            raise CompositionError(
                f"{_NAME}: has no graph; bind it, tx.bind(nnopt.graph(apply, params, *inputs)), "
                "or give tx.init(params, graph=graph)."
            )
        known = {dimension.name: dimension for dimension in coupled_dimensions(graph)}
        chosen = resolve(self.where, known, _NAME)
        return {name: known[name].indices for name in chosen}

    def encode(self, params: Any, state: State, *, train: bool = False) -> Any:
        leaves, mine = leaves_of_state(params, state, _NAME, TOGETHER)
        masked = {
            path: Masked(leaf, state.rest[path]["mask"], mode=mask_mode(self.mode, leaf, train))
            for path, leaf in mine.items()
        }
        return unflatten(params, leaves | masked, is_node)

    def update(
        self, params: Any, state: State, *, grads: Any = None, view: Any = None, step: Any = None
    ) -> tuple[Any, State]:
        _, seen = leaves_of_state(params if view is None else view, state, _NAME, TOGETHER)
        now = make_update(_NAME, seen, state, grads, step)
        old = {path: rest for path, rest in state.rest.items() if path != TOGETHER}
        held = {name: x for name, x in state.rest[TOGETHER].items() if name != "at"}
        at = state.rest[TOGETHER]["at"]
        due = is_due(self.every, self.sparsity, now.count, held["sparsity"])
        dense = {path: show(leaf) for path, leaf in seen.items()}
        share = target(self.sparsity, now.count)
        found = refresh_when(due, lambda: self._choose(dense, at, share), old | {TOGETHER: held})
        if self.mode == "hard":
            params = settled(params, seen, settle, found)
        return params, State({}, found | {TOGETHER: found[TOGETHER] | {"at": at}}, now.count)

    def _choose(self, leaves: Mapping[str, Array], at: Any, share: Any) -> dict[str, Any]:
        """The units that stay, and the mask of each leaf."""
        units = self._units({name: self._scores(leaves, at[name]) for name in at}, share)
        masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in leaves.items()}
        for name, stay in units.items():
            for path, axes in at[name].items():
                for axis, indices in axes.items():
                    lines = jnp.ones(leaves[path].shape[int(axis)], bool)
                    lines = lines.at[indices].min(stay[:, None], mode="drop")
                    masks[path] &= _along(lines, int(axis), leaves[path].ndim)
        together = {"units": units, "sparsity": jnp.asarray(share, jnp.float32)}
        return {path: {"mask": mask} for path, mask in masks.items()} | {TOGETHER: together}

    def _scores(self, leaves: Mapping[str, Array], members: Any) -> Array:
        """One for each unit, over all of its elements."""
        total = jnp.float32(0)
        for path, axes in members.items():
            worth = self._worth(path, leaves[path].astype(jnp.float32))
            for axis, indices in axes.items():
                others = tuple(i for i in range(worth.ndim) if i != int(axis))
                total = total + worth.sum(others)[indices].sum(1)
        return jnp.sqrt(total) if self.score == "l2" else total

    def _worth(self, path: str, leaf: Array) -> Array:
        if callable(self.score):
            return self.score(path, leaf)
        return jnp.square(leaf) if self.score == "l2" else jnp.abs(leaf)

    def _units(self, scores: Mapping[str, Array], share: Any) -> dict[str, Array]:
        best = {name: jnp.arange(x.size) == jnp.argmax(x) for name, x in scores.items()}
        if self.scope == "global":
            tiny = jnp.finfo(jnp.float32).tiny
            even = [x / jnp.maximum(jnp.abs(x).mean(), tiny) for x in scores.values()]
            count = kept(sum(x.size for x in even), share)
            chosen = top_k_masks(even, count, signed=True)
        else:
            counts = [self._count(x.size, share) for x in scores.values()]
            chosen = [
                top_k_mask(x, count, signed=True)
                for x, count in zip(scores.values(), counts, strict=True)
            ]
        found = dict(zip(scores, chosen, strict=True))
        return {name: stay | best[name] for name, stay in found.items()}

    def _count(self, size: int, share: Any) -> Any:
        count = kept(size, share)
        up = -(-count // self.multiple) * self.multiple
        return min(up, size) if isinstance(up, int) else jnp.minimum(up, size)


def _along(lines: Array, axis: int, ndim: int) -> Array:
    """A vector along one axis of many."""
    return jax.lax.expand_dims(lines, [i for i in range(ndim) if i != axis])
