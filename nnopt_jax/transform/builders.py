"""The builder of transforms that wrap whole leaves, and helpers of all builders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.errors import CompositionError, Problems, ShapeError
from nnopt_jax.transform.base import State, Transform, bindable
from nnopt_jax.transform.binding import UNBOUND, Binding
from nnopt_jax.transform.leaves import (
    Leaves,
    Start,
    Update,
    chosen_leaves,
    leaves_of_state,
    make_start,
    make_update,
    matrices,
)
from nnopt_jax.transform.notes import Notes, leaf_notes
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where


class Faults(NamedTuple):
    """The reasons why a method cannot transform a leaf, from shape and dtype alone.

    Args:
        refused: pairs of leaf and problem: earlier transforms that rule the method out.
        misfit: pairs of leaf and problem: axes, groups or patterns that do not fit.
    """

    refused: Sequence[tuple[str, str]] = ()
    misfit: Sequence[tuple[str, str]] = ()


def wrapping(
    name: str,
    where: Where,
    *,
    init: Callable[[Leaves, Start], tuple[Leaves, Leaves]],
    encode: Callable[[Leaves, State, bool], Leaves],
    update: Callable[[Leaves, State, Update], tuple[Leaves, Leaves]] | None = None,
    project: Callable[[jax.Array, Any], jax.Array] | None = None,
    check: Callable[[str, Any], str | None] = lambda path, leaf: None,
    refuses: Callable[[str, Any], str | None] = lambda path, leaf: None,
    exact: bool = True,
    needs: tuple[str, ...] = (),
    takes: tuple[str, ...] = (),
    capacities: Callable[[Leaves], dict[str, int]] | None = None,
    needs_axes: bool = False,
    binding: Binding = UNBOUND,
) -> Transform:
    """Make a transform that wraps each selected leaf in a node, such as a mask.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        init: a function `(dense leaves by path, Start) -> (learned, rest)`, both by path.
        encode: `(leaves by path, state, train) -> packed parameters by path`.
        update: a function `(dense leaves, state, Update) -> (learned, rest)`; None to keep both.
        project: a function `(raw leaf, rest) -> raw leaf` that projects the parameter after the
            update. It applies only to raw leaves, because a leaf that an earlier transform encoded
            is moved by that transform.
        check: a function `(path, abstract leaf) -> problem or None`, of shape and dtype alone.
        refuses: a function like `check`, for leaves that earlier transforms made unsuitable.
        exact: see `Transform`.
        needs: the names of the statistics that `init` requires.
        takes: the names of the statistics that it uses if they are available.
        capacities: a function from abstract leaves to the final numbers of kept values, by path, as
            far as they are known.
        needs_axes: whether the method requires the axes of a leaf of several axes.
        binding: the model that it is made for; `bindable` makes a method again for each binding if
            its functions depend on it.

    Returns:
        The transform.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked
        >>> from nnopt_jax.transform import wrapping
        >>> tx = wrapping(
        ...     "demo",
        ...     "**",
        ...     init=lambda x, start: ({}, {p: v > 0 for p, v in x.items()}),
        ...     encode=lambda leaves, state, train: {
        ...         path: Masked(leaf, state.rest[path]) for path, leaf in leaves.items()
        ...     },
        ... )
        >>> params = {"w": jnp.array([1.0, -1.0])}
        >>> tx.apply(params, tx.init(params))
        {'w': Array([1., 0.], dtype=float32)}
    """

    def dense(leaves: Leaves) -> Leaves:
        return {path: materialize(leaf) for path, leaf in leaves.items()}

    def build(binding: Binding) -> Transform:
        def faults(path: str, leaf: Any) -> Faults:
            if text := refuses(path, leaf):
                return Faults(refused=[(path, text)])
            lacks_axes = needs_axes and leaf.ndim > 1 and binding.of(path, leaf.shape) is None
            text = binding.why_unknown(path, leaf.shape) if lacks_axes else check(path, leaf)
            return Faults(misfit=[(path, text)] if text else [])

        return on_leaves(
            name,
            where,
            binding,
            init=lambda leaves, start: init(dense(leaves), start),
            encode=encode,
            refresh=update and (lambda x, state, now, f=update: f(dense(x), state, now)),
            project=project,
            faults=faults,
            needs_axes=lambda path, leaf: needs_axes and leaf.ndim > 1,
            slots=False,
            exact=exact,
            needs=needs,
            takes=takes,
            capacities=capacities,
        )

    return bindable(build, binding)


def on_leaves(
    name: str,
    where: Where,
    binding: Binding,
    *,
    init: Callable[[Leaves, Start], tuple[Leaves, Leaves]],
    encode: Callable[[Leaves, State, bool], Leaves],
    refresh: Callable[[Leaves, State, Update], tuple[Leaves, Leaves]] | None = None,
    project: Callable[[jax.Array, Any], jax.Array] | None = None,
    faults: Callable[[str, Any], Faults] = lambda path, leaf: Faults(),
    check_together: Callable[[Leaves], None] = lambda leaves: None,
    needs_axes: Callable[[str, Any], bool] = lambda path, leaf: False,
    inside: tuple[str, ...] = (),
    slots: bool | None = None,
    exact: bool = True,
    needs: tuple[str, ...] = (),
    takes: tuple[str, ...] = (),
    capacities: Callable[[Leaves], dict[str, int]] | None = None,
) -> Transform:
    """Make a transform from functions that take the selected leaves, dense or packed.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        binding: the model that it is made for.
        init: `(leaves by path, Start) -> (learned, rest)`, both by path.
        encode: `(leaves by path, state, train) -> packed parameters by path`.
        refresh: a function `(leaves by path, state, Update) -> (learned, rest)`; None to keep both.
        project: see `wrapping`.
        faults: `(path, leaf) -> Faults`, from shape and dtype alone.
        check_together: a function that raises if the chosen leaves cannot be combined.
        needs_axes: `(path, leaf) -> bool`: whether the method depends on the axes of a leaf.
        inside: entries of a state in addition to those by path, see `check_state`.
        slots: see `check_state`.
        exact: see `Transform`.
        needs: see `wrapping`.
        takes: see `wrapping`.
        capacities: see `wrapping`.
    """

    def mine(params: Any) -> Leaves:
        leaves = chosen_leaves(where, params, name, binding)
        fit = fitting(name, leaves, {p: faults(p, x) for p, x in leaves.items()}, binding)
        check_together(fit)
        return fit

    def init_(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        del graph
        leaves = mine(params)
        start = make_start(name, leaves, params, key, stats, needs, takes)
        return State(*init(leaves, start), jnp.int32(0))

    def encode_(params: Any, state: State, *, train: bool = False) -> Any:
        leaves, mine = leaves_of_state(params, state, name, *inside, slots=slots)
        return unflatten(params, leaves | encode(mine, state, train), is_node)

    def update_(
        params: Any, state: State, *, grads: Any = None, upstream: Any = None, step: Any = None
    ) -> tuple[Any, State]:
        source = params if upstream is None else upstream
        _, seen = leaves_of_state(source, state, name, *inside, slots=slots)
        now = make_update(name, seen, state, grads, step)
        learned, rest = state.learned, state.rest
        if refresh is not None:
            learned, rest = refresh(seen, state, now)
        if project is not None:
            params = project_leaves(params, seen, project, rest)
        return params, State(learned, rest, now.count)

    def notes(params: Any) -> Notes:
        leaves = chosen_leaves(where, params, name, binding)
        misfits = {p: [text for _, text in faults(p, x).misfit] for p, x in leaves.items()}
        axes = {path for path, leaf in leaves.items() if needs_axes(path, leaf)}
        return leaf_notes(params, misfits, axes, binding, by_default=where is matrices)

    return Transform(
        name, init_, encode_, update_, exact, needs=needs, takes=takes, notes=notes,
        check=lambda params: (mine(params), None)[1], binding=binding,
        capacities=lambda params: {} if capacities is None else capacities(mine(params)),
    )  # fmt: skip


def fitting(who: str, leaves: Leaves, faults: Mapping[str, Faults], binding: Binding) -> Leaves:
    """Return the leaves that a method can transform; skip the others, or raise one error.

    Args:
        who: the method, for errors.
        leaves: by path.
        faults: the problems of each leaf, by path.
        binding: the binding, which determines whether unfit leaves are skipped.

    Raises:
        CompositionError: earlier transforms rule the method out; all such leaves are named.
        ShapeError: leaves do not fit and are not skipped, or no leaf fits; all are named.
    """
    refused, wrong = Problems(who), Problems(who)
    for found in faults.values():
        for label, text in found.refused:
            refused.add(label, text)
        for label, text in found.misfit:
            wrong.add(label, text)
    refused.raise_as(CompositionError)
    fit = {path: leaf for path, leaf in leaves.items() if not faults[path].misfit}
    if binding.misfit == "raise" or not fit:
        wrong.raise_as(ShapeError, _ADVICE if binding.is_bound and fit else "")
    return fit


_ADVICE = "give where= for other leaves, or leave these alone: bind(..., misfit='skip')"


def project_leaves(
    params: Any, seen: Leaves, project: Callable[[jax.Array, Any], jax.Array], rest: Leaves
) -> Any:
    """Project the chosen leaves, except those that an earlier transform has encoded.

    Args:
        params: the parameters.
        seen: the chosen leaves as earlier transforms left them, by path.
        project: `(raw leaf, rest) -> raw leaf`.
        rest: the rest of the state, by path.
    """
    raw = flatten(params, is_node)
    moved = {p: project(raw[p], rest[p]) for p, leaf in seen.items() if not is_node(leaf)}
    return unflatten(params, raw | moved, is_node)
