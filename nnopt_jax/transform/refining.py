"""Methods that refine the float slots inside leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node
from nnopt_jax.arrays.slots import Slot, refine, require_unstored, slots
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
    settled,
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
    settle: Callable[[jax.Array, Any], jax.Array] | None = None,
    check: Callable[[Slot], str | None] | None = None,
    refuses: Callable[[Slot], str | None] | None = None,
    kinds: tuple[str, ...] = ("value", "code"),
    exact: bool = True,
    needs_axes: Callable[[Slot], bool] = lambda slot: False,
    binding: Binding = UNBOUND,
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
        needs_axes: `slot -> bool`: whether the method cannot do without the axes of a slot.
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

    def build(binding: Binding) -> Transform:
        return refining(
            name, where, init=init, encode=encode, refresh=refresh, settle=settle, check=check,
            refuses=refuses, kinds=kinds, exact=exact, needs_axes=needs_axes, binding=binding,
        )  # fmt: skip

    def faults(path: str, slot: Slot) -> Faults:
        label = f"{path} ({slot.name})" if slot.name else path
        if slot.kind not in kinds:
            return Faults(refused=[(path, "is quantized already; quantize it once")])
        if refuses is not None and (text := refuses(slot)):
            return Faults(refused=[(path, text)])
        if needs_axes(slot) and slot.axes is None:
            return Faults(misfit=[(label, binding.why_unknown(path, slot.array.shape))])
        text = check(slot) if check is not None else None
        return Faults(misfit=[(label, text)] if text else [])

    def mine(params: Any) -> dict[str, list[Slot]]:
        leaves = chosen_leaves(where, params, name, binding)
        inside = {path: open_slots(leaf, path, name, binding) for path, leaf in leaves.items()}
        found = {path: [faults(path, slot) for slot in some] for path, some in inside.items()}
        return fitting(
            name, inside, {path: _together(each) for path, each in found.items()}, binding
        )

    def notes(params: Any) -> Notes:
        leaves = chosen_leaves(where, params, name, binding)
        inside = {path: open_slots(leaf, path, name, binding) for path, leaf in leaves.items()}
        misfits = {
            path: [text for slot in some for _, text in faults(path, slot).misfit]
            for path, some in inside.items()
        }
        needs = {path for path, some in inside.items() if any(map(needs_axes, some))}
        return leaf_notes(
            params, misfits, needs.__contains__, binding, by_default=where is matrices
        )

    def slots_of(path: str, leaf: Field) -> list[Slot]:
        return slots(leaf, binding.of(path, leaf.shape), path)

    def init_(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        del graph
        chosen = mine(params)
        leaves = flatten(params, is_node)
        start = make_start(name, {path: leaves[path] for path in chosen}, key, stats, ())
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
            encoded[path] = refine(
                leaf,
                lambda slot, it=per_slot: encode(slot, *next(it), train),
                binding.of(path, leaf.shape),
                path,
            )
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
                olds = zip(slots_of(path, leaf), state.learned[path], state.rest[path], strict=True)
                pairs = [refresh(slot, old, others, context) for slot, old, others in olds]
                learned[path] = tuple(pair[0] for pair in pairs)
                rest[path] = tuple(pair[1] for pair in pairs)
        if settle is not None:
            params = settled(params, seen, settle, {path: per[0] for path, per in rest.items()})
        return params, State(learned, rest, context.count)

    return Transform(
        name, init_, encode_, update_, exact, notes=notes,
        check=lambda params: (mine(params), None)[1], binding=binding, build=build,
    )  # fmt: skip


def open_slots(leaf: Field, path: str, who: str, binding: Binding = UNBOUND) -> list[Slot]:
    """Return the slots of a leaf; that there are none is an error."""
    require_unstored(leaf, f"{who}: {path}")
    return slots(leaf, binding.of(path, leaf.shape), path)


def _together(faults: Sequence[Faults]) -> Faults:
    """Join what was found of the slots of one leaf."""
    return Faults(
        [each for one in faults for each in one.refused],
        [each for one in faults for each in one.misfit],
    )
