"""The builder of transforms that refine slots of many leaves with one common state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.nodes import Field, is_node
from nnopt_jax.arrays.refinement import Slot, refine, slots
from nnopt_jax.errors import CompositionError, ShapeError
from nnopt_jax.transform.base import TOGETHER, State, Transform
from nnopt_jax.transform.binding import UNBOUND, Binding
from nnopt_jax.transform.leaves import (
    Start,
    Update,
    chosen_leaves,
    leaves_of_state,
    make_start,
    make_update,
    matrices,
    slot_key,
)
from nnopt_jax.transform.notes import Notes, leaf_notes
from nnopt_jax.transform.slotwise import open_slots
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where


def refining_together(
    name: str,
    where: Where,
    *,
    init: Callable[[list[Slot], Start], tuple[Any, Any]],
    encode: Callable[[Slot, Any, Any, bool], Field],
    refresh: Callable[[list[Slot], Any, Any, Update], tuple[Any, Any]] | None = None,
    check: Callable[[list[Slot]], str | None] | None = None,
    exact: bool = True,
    binding: Binding = UNBOUND,
) -> Transform:
    """Make a transform that refines the float slots of all chosen leaves with one state.

    As `refining`, but there is one `(learned, rest)`, under the name `"*"`: an optimizer sees one
    set of learned arrays, whose gradient is the sum over all leaves.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        init: `(all slots, Start) -> (learned, rest)`.
        encode: `(slot, learned, rest, train) -> expression` in the slot's place.
        refresh: `(all slots, learned, rest, Update) -> (learned, rest)`; None to keep them.
        check: `all slots -> problem or None`, from shapes and dtypes alone.
        exact: see `Transform`.
        binding: the model it is made for; slots have the axes that it knows.

    Returns:
        The transform.

    Raises:
        CompositionError: at `init`, where some leaves are on a grid already and others are not.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.transform import refining_together
        >>> tx = refining_together(
        ...     "demo",
        ...     "**",
        ...     init=lambda slots, start: (None, max(abs(slot.array).max() for slot in slots)),
        ...     encode=lambda slot, learned, scale, train: Quantized(
        ...         jnp.round(slot.array / scale), scale.reshape(1)
        ...     ),
        ... )
        >>> params = {"a": jnp.array([1.2, 0.9]), "b": jnp.array([2.0])}
        >>> tx.apply(params, tx.init(params))
        {'a': Array([2., 0.], dtype=float32), 'b': Array([2.], dtype=float32)}
    """

    def build(binding: Binding) -> Transform:
        return refining_together(
            name, where, init=init, encode=encode, refresh=refresh, check=check, exact=exact,
            binding=binding,
        )  # fmt: skip

    def mine(params: Any) -> dict[str, list[Slot]]:
        leaves = chosen_leaves(where, params, name, binding)
        inside = {path: open_slots(leaf, path, name, binding) for path, leaf in leaves.items()}
        _require_one_kind(name, inside)
        every = [slot for some in inside.values() for slot in some]
        if check is not None and (text := check(every)):
            raise ShapeError(f"{name}: {', '.join(leaves)}: {text}")
        return inside

    def init_(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        del graph
        inside = mine(params)
        every = [slot for some in inside.values() for slot in some]
        leaves = {p: x for p, x in flatten(params, is_node).items() if p in inside}
        start = make_start(name, leaves, params, key, stats)
        learned, rest = init(every, start._replace(key=slot_key(key, TOGETHER, 0)))
        named = dict.fromkeys(leaves)
        return State({TOGETHER: learned}, {TOGETHER: rest, **named}, jnp.int32(0))

    def encode_(params: Any, state: State, *, train: bool = False) -> Any:
        leaves, mine = leaves_of_state(params, state, name, TOGETHER)
        learned, rest = state.learned[TOGETHER], state.rest[TOGETHER]
        encoded = {
            path: refine(
                leaf,
                lambda slot: encode(slot, learned, rest, train),
                binding.of(path, leaf.shape),
                path,
            )
            for path, leaf in mine.items()
        }
        return unflatten(params, leaves | encoded, is_node)

    def update_(
        params: Any, state: State, *, grads: Any = None, upstream: Any = None, step: Any = None
    ) -> tuple[Any, State]:
        _, seen = leaves_of_state(params if upstream is None else upstream, state, name, TOGETHER)
        now = make_update(name, seen, state, grads, step)
        learned, rest = state.learned[TOGETHER], state.rest[TOGETHER]
        if refresh is not None:
            every = [
                slot
                for path, leaf in seen.items()
                for slot in slots(leaf, binding.of(path, leaf.shape), path)
            ]
            learned, rest = refresh(every, learned, rest, now)
        return params, State({TOGETHER: learned}, state.rest | {TOGETHER: rest}, now.count)

    return Transform(
        name, init_, encode_, update_, exact,
        notes=lambda params: _notes(params, name, where, binding),
        check=lambda params: (mine(params), None)[1], binding=binding, build=build,
    )  # fmt: skip


def _notes(params: Any, who: str, where: Where, binding: Binding) -> Notes:
    chosen = dict.fromkeys(chosen_leaves(where, params, who, binding), ())
    return leaf_notes(params, chosen, lambda path: False, binding, by_default=where is matrices)


def _require_one_kind(who: str, inside: Mapping[str, list[Slot]]) -> None:
    """Raise if some slots hold codes of a grid, which cannot share a table of values."""
    kinds = {path: {slot.kind for slot in some} for path, some in inside.items()}
    codes = [path for path, kind in kinds.items() if "code" in kind]
    values = [path for path, kind in kinds.items() if "value" in kind]
    if codes and values:
        raise CompositionError(
            f"{who}: {', '.join(codes)} hold codes of a grid and {', '.join(values)} values; one "
            "state cannot serve both. Give where= for leaves of one kind."
        )
