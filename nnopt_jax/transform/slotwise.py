"""Builders of transforms that refine the float arrays inside leaves, the slots."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax

from nnopt_jax.arrays.nodes import Field, summary
from nnopt_jax.arrays.refinement import Slot, refine, slots
from nnopt_jax.errors import CompositionError, Problems, ScaleError, ShapeError
from nnopt_jax.transform.base import TOGETHER, State, Transform, bindable
from nnopt_jax.transform.binding import UNBOUND, Binding
from nnopt_jax.transform.builders import Faults, on_leaves
from nnopt_jax.transform.leaves import Leaves, Start, Update
from nnopt_jax.tree.select import Where

_QUANTIZED = "is quantized already; quantize it once"


def refining(
    name: str,
    where: Where,
    *,
    init: Callable[[Slot, Start], tuple[Any, Any]],
    encode: Callable[[Slot, Any, Any, bool], Field],
    refresh: Callable[[Slot, Any, Any, Update], tuple[Any, Any]] | None = None,
    project: Callable[[jax.Array, Any], jax.Array] | None = None,
    check: Callable[[Slot], str | None] = lambda slot: None,
    refuses: Callable[[Slot], str | None] = lambda slot: None,
    kinds: tuple[str, ...] = ("value", "code"),
    exact: bool = True,
    needs_axes: Callable[[Slot], bool] = lambda slot: False,
    binding: Binding = UNBOUND,
) -> Transform:
    """Make a transform that refines the float slots inside leaves and keeps the nodes above them.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        init: a function `(slot, Start) -> (learned, rest)`; the slot's mask marks the entries that
            count, and the key is the slot's own.
        encode: `(slot, learned, rest, train) -> packed parameter` in place of the slot.
        refresh: a function `(slot, learned, rest, Update) -> (learned, rest)`; None to keep both.
        project: a function `(raw leaf, rest) -> raw leaf` that moves the parameter after the
            update. It applies only to raw leaves, because a leaf that an earlier transform encoded
            is moved by that transform.
        check: a function `slot -> problem or None` of shape and dtype alone.
        refuses: a function `slot -> problem or None`, for slots that earlier transforms made
            unsuitable.
        kinds: the kinds of slots that the method may refine.
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

    def build(binding: Binding) -> Transform:
        def inside(path: str, leaf: Field) -> list[Slot]:
            return slots(leaf, binding.of(path, leaf.shape), path)

        def init_all(leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
            made, problems = {}, Problems(name)
            for path, leaf in leaves.items():
                try:
                    made[path] = [
                        init(slot, start._replace(path=path, number=i))
                        for i, slot in enumerate(inside(path, leaf))
                    ]
                except ScaleError as error:
                    problems.add(path, str(error))
            problems.raise_as(ScaleError)
            return _apart(made)

        def encode_all(leaves: Leaves, state: State, train: bool) -> Leaves:
            values = {p: iter(zip(state.learned[p], state.rest[p], strict=True)) for p in leaves}

            def one(slot: Slot) -> Field:
                return encode(slot, *next(values[slot.path]), train)

            return {p: refine(x, one, binding.of(p, x.shape), p) for p, x in leaves.items()}

        def refresh_all(leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
            assert refresh is not None
            made = {}
            for path, leaf in leaves.items():
                olds = zip(inside(path, leaf), state.learned[path], state.rest[path], strict=True)
                made[path] = [refresh(*old, now) for old in olds]
            return _apart(made)

        def faults(path: str, leaf: Field) -> Faults:
            refused, misfit = [], []
            for slot in open_slots(leaf, path, name, binding):
                if text := refuses(slot) if slot.kind in kinds else _QUANTIZED:
                    refused.append((path, text))
                    continue
                lacks_axes = needs_axes(slot) and slot.axes is None
                shape = slot.array.shape
                if text := binding.why_unknown(path, shape) if lacks_axes else check(slot):
                    misfit.append((f"{path} ({slot.name})" if slot.name else path, text))
            return Faults(refused, misfit)

        return on_leaves(
            name,
            where,
            binding,
            init=init_all,
            encode=encode_all,
            refresh=refresh and refresh_all,
            project=project and (lambda raw, rest, move=project: move(raw, rest[0])),
            faults=faults,
            needs_axes=lambda path, leaf: any(map(needs_axes, inside(path, leaf))),
            slots=True,
            exact=exact,
        )

    return bindable(build, binding)


def _apart(made: dict[str, list[tuple[Any, Any]]]) -> tuple[Leaves, Leaves]:
    """Separate learned arrays from the rest, each as a tuple over the slots of a leaf."""
    learned = {path: tuple(pair[0] for pair in pairs) for path, pairs in made.items()}
    return learned, {path: tuple(pair[1] for pair in pairs) for path, pairs in made.items()}


def open_slots(leaf: Field, path: str, who: str, binding: Binding) -> list[Slot]:
    """Return the slots of a leaf; raise for the storage form, which lacks slots."""
    found = slots(leaf, binding.of(path, leaf.shape), path)
    if not found:
        raise CompositionError(
            f"{who}: {path}: {summary(leaf)} is in storage form and has nothing to refine. "
            "Apply the transform to the parameters it was packed from."
        )
    return found


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

    This is like `refining`, but with a single `(learned, rest)`, under the name `"*"`: the
    optimizer gets one set of learned arrays, whose gradient is the sum over all leaves.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        init: `(all slots, Start) -> (learned, rest)`.
        encode: `(slot, learned, rest, train) -> packed parameter` in place of the slot.
        refresh: a function `(all slots, learned, rest, Update) -> (learned, rest)`; None to keep
            both.
        check: `all slots -> problem or None`, from shapes and dtypes alone.
        exact: see `Transform`.
        binding: the model it is made for; slots have the axes that it knows.

    Returns:
        The transform.

    Raises:
        CompositionError: at `init`, some leaves are quantized already and others are not.

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
        def every(leaves: Leaves) -> list[Slot]:
            return [
                slot
                for path, leaf in leaves.items()
                for slot in slots(leaf, binding.of(path, leaf.shape), path)
            ]

        def check_together(leaves: Leaves) -> None:
            inside = {path: open_slots(x, path, name, binding) for path, x in leaves.items()}
            _check_one_kind(name, inside)
            together = list(itertools.chain(*inside.values()))
            if check is not None and (text := check(together)):
                raise ShapeError(f"{name}: {', '.join(leaves)}: {text}")

        def init_all(leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
            own = start._replace(path=TOGETHER, number=0)
            learned, rest = init(every(leaves), own)
            return {TOGETHER: learned}, {TOGETHER: rest, **dict.fromkeys(leaves)}

        def encode_all(leaves: Leaves, state: State, train: bool) -> Leaves:
            def one(slot: Slot) -> Field:
                return encode(slot, state.learned[TOGETHER], state.rest[TOGETHER], train)

            return {p: refine(x, one, binding.of(p, x.shape), p) for p, x in leaves.items()}

        def refresh_all(leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
            assert refresh is not None
            old = state.learned[TOGETHER], state.rest[TOGETHER]
            learned, rest = refresh(every(leaves), *old, now)
            return {TOGETHER: learned}, state.rest | {TOGETHER: rest}

        return on_leaves(
            name,
            where,
            binding,
            init=init_all,
            encode=encode_all,
            refresh=refresh and refresh_all,
            check_together=check_together,
            inside=(TOGETHER,),
            exact=exact,
        )

    return bindable(build, binding)


def _check_one_kind(who: str, inside: dict[str, list[Slot]]) -> None:
    """Raise if some slots hold codes of a grid, which cannot share a table of values."""
    kinds = {path: {slot.kind for slot in some} for path, some in inside.items()}
    codes = [path for path, kind in kinds.items() if "code" in kind]
    values = [path for path, kind in kinds.items() if "value" in kind]
    if codes and values:
        raise CompositionError(
            f"{who}: {', '.join(codes)} hold codes of a grid and {', '.join(values)} values; one "
            "state cannot serve both. Give where= for leaves of one kind."
        )
