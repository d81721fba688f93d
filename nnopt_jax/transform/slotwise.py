"""The builder of transforms that refine the float arrays inside leaves, the slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import Field, is_node
from nnopt_jax.arrays.refinement import Slot, check_unstored, refine, slots
from nnopt_jax.errors import Problems, ScaleError
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.binding import UNBOUND, Binding
from nnopt_jax.transform.leaves import (
    Faults,
    Start,
    Update,
    chosen_leaves,
    fitting,
    leaves_of_state,
    make_start,
    make_update,
    matrices,
    project_leaves,
    slot_key,
)
from nnopt_jax.transform.notes import Notes, leaf_notes
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where


def refining(
    name: str,
    where: Where,
    *,
    init: Callable[[Slot, Start], tuple[Any, Any]],
    encode: Callable[[Slot, Any, Any, bool], Field],
    refresh: Callable[[Slot, Any, Any, Update], tuple[Any, Any]] | None = None,
    project: Callable[[jax.Array, Any], jax.Array] | None = None,
    check: Callable[[Slot], str | None] | None = None,
    refuses: Callable[[Slot], str | None] | None = None,
    kinds: tuple[str, ...] = ("value", "code"),
    exact: bool = True,
    needs_axes: Callable[[Slot], bool] = lambda slot: False,
    binding: Binding = UNBOUND,
) -> Transform:
    """Make a transform that refines the float slots inside leaves and keeps the nodes above them.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        init: `(slot, Start) -> (learned, rest)`; the slot's mask tells which entries count, the
            key is the slot's own.
        encode: `(slot, learned, rest, train) -> expression` in the slot's place.
        refresh: `(slot, learned, rest, Update) -> (learned, rest)`; None to keep them.
        project: `(raw leaf, rest) -> raw leaf`: moves the parameter after the update. Only raw
            leaves are moved, because a leaf that an earlier transform encoded is that transform's
            to move.
        check: `slot -> problem or None`, from shape and dtype alone.
        refuses: `slot -> problem or None`: what an earlier transform made of it that rules this one
            out.
        kinds: the kinds of slots the method may refine.
        exact: see `Transform`.
        needs_axes: `slot -> bool`: whether the method requires the axes of a slot.
        binding: the model it is made for; slots have the axes that it knows.

    Returns:
        The transform.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.transform import refining
        >>> tx = refining(
        ...     "demo",
        ...     "**",
        ...     init=lambda slot, start: (None, jnp.ones((1,))),
        ...     encode=lambda slot, learned, scale, train: Quantized(jnp.round(slot.array), scale),
        ... )
        >>> params = {"w": jnp.array([1.2, -0.9])}
        >>> tx.apply(params, tx.init(params))
        {'w': Array([ 1., -1.], dtype=float32)}
    """
    way = _Refining(
        name, where, init, encode, refresh, project, check, refuses, kinds, needs_axes, binding
    )
    return Transform(
        name,
        way.init_all,
        way.encode_all,
        way.update_all,
        exact,
        check=way.check_all,
        notes=way.notes_of,
        binding=binding,
        build=lambda binding: refining(
            name, where, init=init, encode=encode, refresh=refresh, project=project, check=check,
            refuses=refuses, kinds=kinds, exact=exact, needs_axes=needs_axes, binding=binding,
        ),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Refining:
    """Functions of whole trees, made of a method's functions of one slot."""

    name: str
    where: Where
    init: Callable[[Slot, Start], tuple[Any, Any]]
    encode: Callable[[Slot, Any, Any, bool], Field]
    refresh: Callable[[Slot, Any, Any, Update], tuple[Any, Any]] | None
    project: Callable[[jax.Array, Any], jax.Array] | None
    check: Callable[[Slot], str | None] | None
    refuses: Callable[[Slot], str | None] | None
    kinds: tuple[str, ...]
    needs_axes: Callable[[Slot], bool]
    binding: Binding

    def check_all(self, params: Any) -> None:
        self._chosen(params)

    def notes_of(self, params: Any) -> Notes:
        inside = self._inside(params)
        misfits = {
            path: [text for slot in some for _, text in self._faults(slot).misfit]
            for path, some in inside.items()
        }
        needs = {path for path, some in inside.items() if any(map(self.needs_axes, some))}
        return leaf_notes(
            params, misfits, needs.__contains__, self.binding, by_default=self.where is matrices
        )

    def init_all(
        self, params: Any, *, stats: Any = None, graph: Any = None, key: Any = None
    ) -> State:
        del graph
        chosen, leaves = self._chosen(params), flatten(params, is_node)
        mine = {path: leaves[path] for path in chosen}
        start = make_start(self.name, mine, params, key, stats)
        made: dict[str, list[tuple[Any, Any]]] = {}
        problems = Problems(self.name)
        for path, inside in chosen.items():
            starts = [
                start._replace(key=slot_key(key, path, i), path=path) for i in range(len(inside))
            ]
            try:
                made[path] = [self.init(*pair) for pair in zip(inside, starts, strict=True)]
            except ScaleError as error:
                problems.add(path, str(error))
        problems.raise_as(ScaleError)
        learned = {path: tuple(pair[0] for pair in pairs) for path, pairs in made.items()}
        rest = {path: tuple(pair[1] for pair in pairs) for path, pairs in made.items()}
        return State(learned, rest, jnp.int32(0))

    def encode_all(self, params: Any, state: State, *, train: bool = False) -> Any:
        leaves, mine = leaves_of_state(params, state, self.name, slots=True)
        encoded = {}
        for path, leaf in mine.items():
            per_slot = iter(zip(state.learned[path], state.rest[path], strict=True))
            encoded[path] = refine(
                leaf,
                lambda slot, it=per_slot: self.encode(slot, *next(it), train),
                self.binding.of(path, leaf.shape),
                path,
            )
        return unflatten(params, leaves | encoded, is_node)

    def update_all(
        self,
        params: Any,
        state: State,
        *,
        grads: Any = None,
        upstream: Any = None,
        step: Any = None,
    ) -> tuple[Any, State]:
        shown = params if upstream is None else upstream
        _, seen = leaves_of_state(shown, state, self.name, slots=True)
        now = make_update(self.name, seen, state, grads, step)
        learned, rest = state.learned, state.rest
        if self.refresh is not None:
            learned, rest = {}, {}
            for path, leaf in seen.items():
                olds = zip(
                    self._slots(path, leaf), state.learned[path], state.rest[path], strict=True
                )
                pairs = [self.refresh(slot, old, others, now) for slot, old, others in olds]
                learned[path] = tuple(pair[0] for pair in pairs)
                rest[path] = tuple(pair[1] for pair in pairs)
        if self.project is not None:
            each = {path: per[0] for path, per in rest.items()}
            params = project_leaves(params, seen, self.project, each)
        return params, State(learned, rest, now.count)

    def _chosen(self, params: Any) -> dict[str, list[Slot]]:
        """Return the slots of the leaves that the method takes and fits."""
        inside = self._inside(params)
        found = {p: _joined([self._faults(slot) for slot in some]) for p, some in inside.items()}
        return fitting(self.name, inside, found, self.binding)

    def _inside(self, params: Any) -> dict[str, list[Slot]]:
        """Return the slots of the leaves that the method takes."""
        leaves = chosen_leaves(self.where, params, self.name, self.binding)
        return {p: open_slots(x, p, self.name, self.binding) for p, x in leaves.items()}

    def _slots(self, path: str, leaf: Field) -> list[Slot]:
        return slots(leaf, self.binding.of(path, leaf.shape), path)

    def _faults(self, slot: Slot) -> Faults:
        path, label = slot.path, f"{slot.path} ({slot.name})" if slot.name else slot.path
        if slot.kind not in self.kinds:
            return Faults(refused=[(path, "is quantized already; quantize it once")])
        if self.refuses is not None and (text := self.refuses(slot)):
            return Faults(refused=[(path, text)])
        if self.needs_axes(slot) and slot.axes is None:
            return Faults(misfit=[(label, self.binding.why_unknown(path, slot.array.shape))])
        text = self.check(slot) if self.check is not None else None
        return Faults(misfit=[(label, text)] if text else [])


def open_slots(leaf: Field, path: str, who: str, binding: Binding = UNBOUND) -> list[Slot]:
    """Return the slots of a leaf; raise if it is in storage form, which has none."""
    check_unstored(leaf, f"{who}: {path}")
    return slots(leaf, binding.of(path, leaf.shape), path)


def _joined(faults: Sequence[Faults]) -> Faults:
    """Join the faults of the slots of one leaf."""
    return Faults(
        [each for one in faults for each in one.refused],
        [each for one in faults for each in one.misfit],
    )
