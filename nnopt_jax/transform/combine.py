"""Transforms made of transforms: `chain` and `at`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import brief
from nnopt_jax.errors import CapacityError
from nnopt_jax.transform.base import Grads, Transform, abstract_state, abstractly, bindable
from nnopt_jax.transform.binding import Binding, check_parameters
from nnopt_jax.transform.inert import without_inert
from nnopt_jax.transform.measured import Measured
from nnopt_jax.transform.notes import Notes, joined
from nnopt_jax.transform.validation import (
    check_grads,
    check_key,
    check_states,
    check_transforms,
)
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve


def chain(*transforms: Transform) -> Transform:
    r"""Apply transforms one after another, each to the result of those before it.

    $$ encode = encode_n \circ \dots \circ encode_1 $$

    Pruning and adapters wrap a leaf; sharing, quantization and low rank refine the float arrays
    inside it and keep every node above them. So zeros stay zero, and the number of codes does not
    grow, in any order.

    Args:
        *transforms: the transforms, from first to last.

    Returns:
        A transform whose state is the tuple of the transforms' states.

    Raises:
        CompositionError: an argument is not a transform.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.quantization.uniform(8))
        >>> params = {"kernel": jnp.array([[1.27, -0.5], [0.01, 0.02]])}
        >>> tx.pack(params, tx.init(params))["kernel"].values
        Quantized(codes int8[2], scale float32[1,1], 24 bits/weight)

    References:
        The composition of gradient transformations in optax (`optax.chain`).
    """
    check_transforms("chain", transforms)
    return bindable(lambda binding: _chain(*(bound_to(binding, one) for one in transforms)))


def bound_to(binding: Binding, transform: Transform) -> Transform:
    """Return a transform bound to a model, or unchanged if it does not need binding.

    Args:
        binding: the binding; an unbound one returns the transform unchanged.
        transform: any transform.
    """
    if not binding.is_bound and binding.misfit == "raise":
        return transform  # it may be bound already
    return transform if transform.build is None else transform.build(binding)


def _chain(*transforms: Transform) -> Transform:
    """Make a chain of transforms, bound or unbound."""

    def init(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> tuple:
        states = []
        if key is not None:
            check_key(name, key)
        given = Measured.read(name, stats, flatten(params, is_node))
        given.check_used(name, (*needs, *takes))
        for number, transform in enumerate(transforms):
            # With one key, two transforms would draw the same numbers.
            own = jax.random.fold_in(key, number) if number and key is not None else key
            mine = given.named((*transform.needs, *transform.takes))
            states.append(transform.init(params, stats=mine, graph=graph, key=own))
            params = transform.encode(params, states[-1])
        return tuple(states)

    def encode(params: Any, state: tuple, *, train: bool = False) -> Any:
        check_states(name, state, len(transforms))
        for transform, part in zip(transforms, state, strict=True):
            params = transform.encode(params, part, train=train)
        return params

    def update(
        params: Any, state: tuple, *, grads: Any = None, upstream: Any = None, step: Any = None
    ) -> tuple[Any, tuple]:
        check_states(name, state, len(transforms))
        check_grads(name, grads)
        fresh: list[Any] = []
        given = _handed_back(transforms, grads)
        for transform, part, grads in zip(transforms, state, given, strict=True):
            source = params if upstream is None else _upstream_leaves(upstream, params)
            # Earlier transforms are encoded with their updated states, so that this one derives its
            # own state from the leaves that the next forward pass encodes.
            for earlier, done in zip(transforms, fresh, strict=False):
                source = earlier.encode(source, done)
            params, part = transform.update(params, part, grads=grads, upstream=source, step=step)
            fresh.append(part)
        return params, tuple(fresh)

    def back(slopes: Any) -> Any:
        for transform in reversed(transforms):
            slopes = transform.back(slopes)
        return slopes

    def frozen(params: Any) -> frozenset[str]:
        return frozenset().union(*(transform.frozen(params) for transform in transforms))

    def check(params: Any) -> None:
        for transform, shapes in _steps(transforms, params):
            abstractly(transform.check, shapes)

    def notes(params: Any) -> Notes:
        return joined(*(abstractly(tx.notes, shapes) for tx, shapes in _steps(transforms, params)))

    name = f"chain({', '.join(transform.name for transform in transforms)})"
    needs = tuple(dict.fromkeys(need for transform in transforms for need in transform.needs))
    takes = tuple(dict.fromkeys(name for transform in transforms for name in transform.takes))
    text = f"chain({', '.join(part.description or part.name for part in transforms)})"
    return Transform(
        name, init, encode, update, all(t.exact for t in transforms),
        partial(_capacities, transforms), needs, frozen, back, check, notes, takes, description=text
    )  # fmt: skip


def _capacities(transforms: tuple[Transform, ...], params: Any) -> dict[str, int]:
    """Return the number of values that each leaf stores: the least over all transforms."""
    found: dict[str, int] = {}
    for transform in transforms:
        for path, count in transform.capacities(params).items():
            found[path] = min(count, found.get(path, count))
    return found


def _steps(transforms: tuple[Transform, ...], params: Any) -> Iterator[tuple[Transform, Any]]:
    """Yield each transform with the shapes of the parameters that it gets from earlier ones."""
    params = without_inert(params)
    for number, transform in enumerate(transforms, 1):
        yield transform, params
        if number == len(transforms):
            return
        try:
            params = jax.eval_shape(transform.encode, params, abstract_state(transform, params))
        except CapacityError:  # sizes depend on weights: `init` checks later transforms
            return


def _handed_back(transforms: tuple[Transform, ...], grads: Any) -> list[Any]:
    """Return the gradients at the result of each transform, pulled back through later ones."""
    given = [grads]
    for transform in reversed(transforms[1:]):
        later = given[0]
        given.insert(0, later and later._replace(dense=transform.back(later.dense)))
    return given[: len(transforms)]


def _upstream_leaves(upstream: Any, params: Any) -> Any:
    """Return the inputs of a nested chain: packed leaves from upstream, raw ones unchanged."""
    return jax.tree.map(lambda x, raw: x if is_node(x) else raw, upstream, params, is_leaf=is_node)


def at(where: Where, transform: Transform) -> Transform:
    """Restrict a transform to some leaves, and leave all others unchanged.

    The transform's own `where` then selects among those leaves only.

    Args:
        where: glob, `re:` regular expression, predicate `(path, leaf)`, or selector.
        transform: any transform, including a chain.

    Returns:
        The restricted transform.

    Raises:
        CompositionError: the argument is not a transform.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.at("head/*", nnopt.pruning.magnitude(0.5))
        >>> params = {"body": {"kernel": jnp.eye(2)}, "head": {"kernel": jnp.eye(2)}}
        >>> list(tx.init(params).rest)
        ['head/kernel']
    """
    check_transforms("at", [transform])

    def build(binding: Binding) -> Transform:
        named = binding
        if binding.graph is not None:
            named = binding.including(where, flatten(binding.graph.params, is_node))
        inner = bound_to(dataclasses.replace(named, partial=named.is_bound), transform)
        return _at(where, inner, binding)

    return bindable(build)


def _at(where: Where, transform: Transform, binding: Binding) -> Transform:
    """Restrict a transform to some leaves, bound or unbound."""
    name = f"at({where!r}, {transform.name})"

    def part(tree: Any) -> dict[str, Any]:
        # A dictionary keyed by whole paths names its leaves as the full tree does.
        leaves = flatten(tree, is_node)
        return {path: leaves[path] for path in resolve(where, leaves, name)}

    def merge(tree: Any, chosen: dict[str, Any]) -> Any:
        return unflatten(tree, flatten(tree, is_node) | chosen, is_node)

    def init(params: Any, *, stats: Any = None, graph: Any = None, key: Any = None) -> Any:
        check_parameters(name, flatten(params, is_node), binding)
        mine = part(params)
        given = Measured.read(name, stats, flatten(params, is_node)).of(mine)
        return transform.init(mine, stats=given, graph=graph, key=key)

    def encode(params: Any, state: Any, *, train: bool = False) -> Any:
        return merge(params, transform.encode(part(params), state, train=train))

    def update(
        params: Any, state: Any, *, grads: Any = None, upstream: Any = None, step: Any = None
    ) -> tuple[Any, Any]:
        check_grads(name, grads)
        if grads is not None:
            grads = Grads(grads.train, _those(grads.dense, part(params)))
        seen = None if upstream is None else part(upstream)
        moved, state = transform.update(part(params), state, grads=grads, upstream=seen, step=step)
        return merge(params, moved), state

    def check(params: Any) -> None:
        check_parameters(name, flatten(params, is_node), binding)
        transform.check(part(params))

    return Transform(
        name,
        init,
        encode,
        update,
        transform.exact,
        capacities=lambda params: transform.capacities(part(params)),
        needs=transform.needs,
        frozen=lambda params: transform.frozen(part(params)),
        back=lambda slopes: merge(slopes, transform.back(part(slopes))),
        check=check,
        notes=lambda params: transform.notes(part(params)),
        takes=transform.takes,
        description=f"at({brief(where)}, {transform.description or transform.name})",
    )


def _those(tree: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of a tree at the given paths, as far as they exist."""
    leaves = flatten(tree, is_node)
    return {path: leaves[path] for path in chosen if path in leaves}
