"""The builder of transforms that wrap whole leaves, and helpers of all builders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import (
    CompositionError,
    Problems,
    SelectionError,
    ShapeError,
    StatisticsError,
    nearest,
)
from nnopt_jax.transform.base import Grads, State, Transform
from nnopt_jax.transform.binding import UNBOUND, Binding, check_parameters
from nnopt_jax.transform.given import (
    arrays_among,
    require_grads,
    require_key,
    require_shapes,
    require_state,
)
from nnopt_jax.transform.measured import Measured
from nnopt_jax.transform.notes import Notes, leaf_notes
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve, selector

Leaves = dict[str, Any]


class Start(NamedTuple):
    """The inputs of a method, beside the parameters, for its first state.

    Args:
        key: for methods that draw numbers; None if the caller gave none.
        stats: the statistics that `graph.observe` measured, by name, then by path, of the chosen
            leaves.
        path: the leaf, for methods that take one slot at a time.
        caller: the method, for errors.

    Example:
        >>> from nnopt_jax.transform import Start
        >>> Start(key=None, stats={"gradient": {"kernel": 1.0}}).stats["gradient"]["kernel"]
        1.0
    """

    key: jax.Array | None
    stats: Mapping[str, Leaves]
    path: str = ""
    caller: str = ""

    __repr__ = brief_fields


class Update(NamedTuple):
    """The inputs of a method, beside the parameters, when its state is refreshed.

    Args:
        count: int32, the number of this update, from 1.
        grads: the gradients at the dense parameters, by path; None if the caller gave none.
        caller: the method, for errors.
    """

    count: jax.Array
    grads: Mapping[str, jax.Array] | None
    caller: str = ""

    __repr__ = brief_fields

    def gradients(self, paths: Iterable[str]) -> Leaves:
        """Return the dense gradients of some leaves, for methods that need them.

        Raises:
            StatisticsError: leaves have none.
        """
        given = self.grads or {}
        found = {path: given.get(path) for path in paths}
        lacking = [path for path, grad in found.items() if grad is None]
        if lacking:
            raise StatisticsError(
                f"{self.caller}: judges by gradients, and `update` got none of "
                f"{', '.join(lacking)}. Give nnopt.step(tx, params, state, updates, grads) what "
                "nnopt.value_and_grad returned."
            )
        return found


def matrices(path: str, leaf: Any) -> bool:
    """Select leaves of two axes or more: the default rule of unbound transforms.

    Args:
        path: the leaf, which the rule does not ask for.
        leaf: an array, or anything with `ndim`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transform import matrices
        >>> matrices("dense/kernel", jnp.ones((2, 2))), matrices("dense/bias", jnp.ones(2))
        (True, False)
    """
    del path
    return leaf.ndim >= 2


def chosen_leaves(where: Where, params: Any, who: str, binding: Binding = UNBOUND) -> Leaves:
    """Return the float leaves that a rule selects, by path.

    Args:
        where: the rule; the default one means the weights of the model that a transform is bound
            to.
        params: the parameters.
        who: the caller, for errors.
        binding: see `Binding`.
    """
    leaves = arrays_among(who, flatten(params, is_node))
    check_parameters(who, leaves, binding)
    if where is matrices and binding.weights is not None:
        where = binding.default_where
    floats = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    rule = selector(where)
    meant = {path: x for path, x in leaves.items() if rule(path, x)}
    if meant and not meant.keys() & floats.keys():
        others = ", ".join(f"{path} {x.dtype}" for path, x in meant.items())
        raise SelectionError(f"{who}: takes floats, and rule {rule.text} selects {others}.")
    return {path: floats[path] for path in resolve(where, floats, who)}


def leaves_of_state(
    params: Any, state: State, who: str, *inside: str, slots: bool | None = None
) -> tuple[Leaves, Leaves]:
    """Return all leaves, and those that a state belongs to; for the rest see `require_state`."""
    require_state(who, state, *inside, slots=slots)
    leaves = flatten(params, is_node)
    for path in state.rest:
        if path not in leaves and path not in inside:
            raise SelectionError(
                f"{who}: the state was made for a leaf {path!r}, which the parameters lack."
                f"{nearest(path, leaves)}"
            )
    # In the order of the parameters: that of a dictionary is lost under `jax.jit`.
    return leaves, {path: leaf for path, leaf in leaves.items() if path in state.rest}


def make_update(who: str, leaves: Leaves, state: State, grads: Grads | None, step: Any) -> Update:
    """Make the inputs of an update from the arguments of a caller."""
    require_grads(who, grads)
    count = state.count + 1 if step is None else jnp.asarray(step, jnp.int32)
    if grads is None:
        return Update(count, None, who)
    shown = flatten(grads.dense, is_node)
    require_shapes(who, "gradient", shown, leaves)
    return Update(count, shown, who)


def make_start(
    who: str,
    leaves: Leaves,
    params: Any,
    key: jax.Array | None,
    stats: Any,
    needs: tuple[str, ...] = (),
    takes: tuple[str, ...] = (),
) -> Start:
    """Return the key and the statistics of the chosen leaves; report all that is missing at once.

    Args:
        who: the method, for errors.
        leaves: the chosen ones by path.
        params: all parameters.
        key: what the caller gave.
        stats: what the caller gave.
        needs: statistics that the method cannot do without.
        takes: statistics that it uses where they are given.
    """
    if key is not None:
        require_key(who, key)
    given = Measured.read(who, stats, flatten(params, is_node))
    given.check_used(who, (*needs, *takes))
    given.check_complete(who, needs, leaves)
    return Start(key, given.of(leaves), caller=who)


def wrapping(
    name: str,
    where: Where,
    *,
    init: Callable[[Leaves, Start], tuple[Leaves, Leaves]],
    encode: Callable[[Leaves, State, bool], Leaves],
    update: Callable[[Leaves, State, Update], tuple[Leaves, Leaves]] | None = None,
    project: Callable[[jax.Array, Any], jax.Array] | None = None,
    check: Callable[[str, Any], str | None] | None = None,
    refuses: Callable[[str, Any], str | None] | None = None,
    exact: bool = True,
    needs: tuple[str, ...] = (),
    takes: tuple[str, ...] = (),
    capacities: Callable[[Leaves], dict[str, int]] | None = None,
    needs_axes: bool = False,
    binding: Binding = UNBOUND,
) -> Transform:
    """Makes a transform that wraps whole leaves and sees their dense values.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        init: `(dense leaves by path, Start) -> (learned, rest)`, both by path.
        encode: `(leaves by path, state, train) -> expressions by path`.
        update: `(dense leaves, state, Update) -> (learned, rest)`; None to keep them.
        project: `(raw leaf, rest) -> raw leaf`: moves the parameter after the update. Only raw
            leaves are moved, because a leaf that an earlier transform encoded is that transform's
            to move.
        check: `(path, abstract leaf) -> problem or None`, from shape and dtype alone.
        refuses: likewise: what an earlier transform made of a leaf that rules this one out.
        exact: see `Transform`.
        needs: names of the statistics that `init` cannot do without.
        takes: names of those that it uses where they are given.
        capacities: `abstract leaves by path -> values kept in the end`, as far as they are known.
        needs_axes: whether the method cannot do without the axes of a leaf of several axes.
        binding: the model it is made for; a method whose functions depend on it is made anew for
            each by `bindable`.

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

    def build(binding: Binding) -> Transform:
        return wrapping(
            name, where, init=init, encode=encode, update=update, project=project, check=check,
            refuses=refuses, exact=exact, needs=needs, takes=takes, capacities=capacities,
            needs_axes=needs_axes, binding=binding,
        )  # fmt: skip

    def faults(path: str, leaf: Any) -> Faults:
        if refuses is not None and (text := refuses(path, leaf)):
            return Faults(refused=[(path, text)])
        if needs_axes and leaf.ndim > 1 and binding.of(path, leaf.shape) is None:
            return Faults(misfit=[(path, binding.why_unknown(path, leaf.shape))])
        text = check(path, leaf) if check is not None else None
        return Faults(misfit=[(path, text)] if text else [])

    def mine(params: Any) -> Leaves:
        leaves = chosen_leaves(where, params, name, binding)
        return fitting(name, leaves, {p: faults(p, x) for p, x in leaves.items()}, binding)

    def init_(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> State:
        del graph
        leaves = mine(params)
        dense = {path: materialize(leaf) for path, leaf in leaves.items()}
        start = make_start(name, leaves, params, key, stats, needs, takes)
        return State(*init(dense, start), jnp.int32(0))

    def encode_(params: Any, state: State, *, train: bool = False) -> Any:
        leaves, mine = leaves_of_state(params, state, name, slots=False)
        return unflatten(params, leaves | encode(mine, state, train), is_node)

    def update_(
        params: Any, state: State, *, grads: Any = None, upstream: Any = None, step: Any = None
    ) -> tuple[Any, State]:
        _, seen = leaves_of_state(
            params if upstream is None else upstream, state, name, slots=False
        )
        context = make_update(name, seen, state, grads, step)
        learned, rest = state.learned, state.rest
        if update is not None:
            learned, rest = update({p: materialize(x) for p, x in seen.items()}, state, context)
        if project is not None:
            params = project_leaves(params, seen, project, rest)
        return params, State(learned, rest, context.count)

    def capacities_(params: Any) -> dict[str, int]:
        return {} if capacities is None else capacities(mine(params))

    def notes(params: Any) -> Notes:
        leaves = chosen_leaves(where, params, name, binding)
        misfits = {p: [text for _, text in faults(p, x).misfit] for p, x in leaves.items()}
        needs = {path for path, leaf in leaves.items() if needs_axes and leaf.ndim > 1}
        return leaf_notes(
            params, misfits, needs.__contains__, binding, by_default=where is matrices
        )

    return Transform(
        name, init_, encode_, update_, exact, capacities_, needs, notes=notes, takes=takes,
        check=lambda params: (mine(params), None)[1], binding=binding, build=build,
    )  # fmt: skip


class Faults(NamedTuple):
    """What rules a method out for one leaf, from shape and dtype alone.

    Args:
        refused: (leaf, problem): what an earlier transform made of it.
        misfit: (leaf, problem): axes, groups or patterns that do not fit.
    """

    refused: Sequence[tuple[str, str]] = ()
    misfit: Sequence[tuple[str, str]] = ()


def fitting(who: str, leaves: Leaves, faults: Mapping[str, Faults], binding: Binding) -> Leaves:
    """Return the leaves that a method fits; report all others at once.

    Args:
        who: the method, for errors.
        leaves: by path.
        faults: by path, what was found.
        binding: says whether leaves that do not fit are skipped.

    Raises:
        CompositionError: earlier transforms rule the method out; all leaves are named.
        ShapeError: leaves do not fit and are not to be skipped, or none does; all are named.
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
    """Project the raw parameters that no earlier transform has encoded.

    Args:
        params: the parameters.
        seen: the chosen leaves as earlier transforms left them, by path.
        project: `(raw leaf, rest) -> raw leaf`.
        rest: of the state, by path.
    """
    raw = flatten(params, is_node)
    moved = {p: project(raw[p], rest[p]) for p, leaf in seen.items() if not is_node(leaf)}
    return unflatten(params, raw | moved, is_node)


def slot_key(key: jax.Array | None, path: str, index: int) -> jax.Array | None:
    """A key of the slot's own: it does not change when other leaves come or go."""
    if key is None:
        return None
    number = 0
    for byte in path.encode():
        number = (number * 257 + byte) % (2**32)
    return jax.random.fold_in(jax.random.fold_in(key, number), index)


def refresh_when(needed: Any, fresh: Callable[[], Any], old: Any) -> Any:
    """Compute a new value only if it is needed.

    Args:
        needed: a Python bool or a traced one.
        fresh: computes the new value.
        old: the value otherwise, of the same structure, shapes and dtypes.

    Example:
        >>> from nnopt_jax.transform import refresh_when
        >>> refresh_when(False, lambda: 1 / 0, 3)
        3
    """
    if not isinstance(needed, Tracer):  # `cond` would compile anew at every eager call
        return fresh() if needed else old
    return jax.lax.cond(needed, fresh, lambda: old)
