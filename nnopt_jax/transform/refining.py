"""Methods that refine the float slots inside leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node
from nnopt_jax.arrays.slots import Slot, refine, require_unstored, slots
from nnopt_jax.errors import CompositionError, Problems, ShapeError
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import (
    Start,
    Update,
    chosen_leaves,
    leaves_of_state,
    make_start,
    make_update,
    settled,
    slot_key,
)
from nnopt_jax.tree.paths import unflatten
from nnopt_jax.tree.select import Where


def refining(
    name: str,
    where: Where,
    *,
    init: Callable[[Slot, Start], tuple[Any, Any]],
    encode: Callable[[Slot, Any, Any, bool], Field],
    refresh: Callable[[Slot, Any, Any, Update], tuple[Any, Any]] | None = None,
    settle: Callable[[jax.Array, Any], jax.Array] | None = None,
    check: Callable[[Slot], str | None] | None = None,
    refuses: Callable[[Slot], str | None] | None = None,
    kinds: tuple[str, ...] = ("value", "code"),
    exact: bool = True,
) -> Transform:
    """Makes a transform that refines the float slots inside leaves, and keeps what is above them.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        init: `(slot, Start) -> (learned, rest)`; the slot's mask tells which entries count, the
            key is the slot's own.
        encode: `(slot, learned, rest, train) -> expression` in the slot's place.
        refresh: `(slot, learned, rest, Update) -> (learned, rest)`; None to keep them.
        settle: `(raw leaf, rest) -> raw leaf`: moves the parameter after the update. Only raw
            leaves are moved, because a leaf that an earlier link encoded is that link's to move.
        check: `slot -> problem or None`, from shape and dtype alone.
        refuses: `slot -> problem or None`: what an earlier link made of it that rules this one out.
        kinds: the kinds of slots the method may refine.
        exact: see `Transform`.

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

    def init_(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        del graph
        leaves = chosen_leaves(where, params, name)
        chosen = {path: open_slots(leaf, path, name) for path, leaf in leaves.items()}
        _check_slots(name, chosen, kinds, check, refuses)
        start = make_start(name, leaves, key, stats, ())
        made = {
            path: [
                init(slot, start._replace(key=slot_key(key, path, i), path=path))
                for i, slot in enumerate(inside)
            ]
            for path, inside in chosen.items()
        }
        learned = {path: tuple(pair[0] for pair in pairs) for path, pairs in made.items()}
        rest = {path: tuple(pair[1] for pair in pairs) for path, pairs in made.items()}
        return State(learned, rest, jnp.int32(0))

    def encode_(params: Any, state: State, *, train: bool = False) -> Any:
        leaves, mine = leaves_of_state(params, state, name, slots=True)
        encoded = {}
        for path, leaf in mine.items():
            per_slot = iter(zip(state.learned[path], state.rest[path], strict=True))
            encoded[path] = refine(leaf, lambda slot, it=per_slot: encode(slot, *next(it), train))
        return unflatten(params, leaves | encoded, is_node)

    def update_(
        params: Any, state: State, *, grads: Any = None, view: Any = None, step: Any = None
    ) -> tuple[Any, State]:
        _, seen = leaves_of_state(params if view is None else view, state, name, slots=True)
        context = make_update(name, seen, state, grads, step)
        learned, rest = state.learned, state.rest
        if refresh is not None:
            learned, rest = {}, {}
            for path, leaf in seen.items():
                olds = zip(slots(leaf), state.learned[path], state.rest[path], strict=True)
                pairs = [refresh(slot, old, others, context) for slot, old, others in olds]
                learned[path] = tuple(pair[0] for pair in pairs)
                rest[path] = tuple(pair[1] for pair in pairs)
        if settle is not None:
            params = settled(params, seen, settle, {path: per[0] for path, per in rest.items()})
        return params, State(learned, rest, context.count)

    return Transform(name, init_, encode_, update_, exact)


def open_slots(leaf: Field, path: str, who: str) -> list[Slot]:
    """The slots of a leaf; that there are none is an error."""
    require_unstored(leaf, f"{who}: {path}")
    return slots(leaf)


def _check_slots(
    who: str,
    chosen: Mapping[str, list[Slot]],
    kinds: tuple[str, ...],
    check: Callable[[Slot], str | None] | None,
    refuses: Callable[[Slot], str | None] | None,
) -> None:
    """Reports everything that kinds, shapes and dtypes alone show to be wrong."""
    composition, shape = Problems(who), Problems(who)
    for path, inside in chosen.items():
        for slot in inside:
            if slot.kind not in kinds:
                composition.add(path, "is quantized already; quantize it once")
            elif refuses is not None and (text := refuses(slot)):
                composition.add(path, text)
            elif check is not None and (text := check(slot)):
                shape.add(path if not slot.name else f"{path} ({slot.name})", text)
    composition.raise_as(CompositionError)
    shape.raise_as(ShapeError)
