"""Access to the layers of a tree, which have numbered names or are stacked along an axis."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nnopt_jax.arrays.nodes import is_node, materialize, summary
from nnopt_jax.errors import Problems, SelectionError, ShapeError, ValueRangeError, nearest
from nnopt_jax.transform.validation import check_values
from nnopt_jax.tree.paths import flatten

INDEX = "{index}"


def layers_at(who: str, tree: Any, place: str) -> list[Any]:
    """Return the layers of a tree, each as a tree of its own.

    Args:
        who: the caller, for errors.
        tree: dictionaries, lists and tuples of arrays or packed parameters.
        place: `"encoder/layers_{index}"` for separate layers, as keys of a dictionary or
            (`"blocks/{index}"`) in a list; otherwise the path of the tree in which they are
            stacked.

    Returns:
        The layers in order; packed parameters in a stack are materialized.

    Raises:
        SelectionError: there are no layers, or their numbers are not consecutive from 0.
        ShapeError: leaves of a stack differ in their leading axis.

    Example:
        >>> layers_at("demo", {"layers_0": {"w": 1.0}, "layers_1": {"w": 2.0}}, "layers_{index}")
        [{'w': 1.0}, {'w': 2.0}]
    """
    _check_place(who, place)
    if INDEX not in place:
        return _unstack(who, place, _container_at(who, tree, _segments(place)))
    above, name = _split(place)
    parent = _container_at(who, tree, above)
    if type(parent) in (list, tuple):
        if name != INDEX:
            raise SelectionError(f"{who}: {place!r} is in a list, where names are numbers; "
                                 f"give '{'/'.join([*above, INDEX])}'.")  # fmt: skip
        return list(parent)
    found = _keys_by_number(parent, name)
    if sorted(found) != list(range(len(found))) or not found:
        numbers = ", ".join(map(str, sorted(found)))
        near = nearest(place, flatten(tree, is_node))
        said = f"finds layers {numbers}, not a run from 0." if found else f"finds no layer.{near}"
        raise SelectionError(f"{who}: {place!r} {said}")
    return [parent[found[number]] for number in range(len(found))]


def with_layers(who: str, tree: Any, place: str, layers: list[Any], into: str | None = None) -> Any:
    """Replace the layers of a tree, at the same path or at another one.

    Args:
        who: the caller, for errors.
        tree: a tree in which `layers_at` found layers.
        place: the path of its layers.
        layers: the new layers.
        into: the path of the new layers, in the same container; by default `place`.

    Returns:
        A new tree; nothing is changed in place.

    Raises:
        SelectionError: `into` is occupied, or is in another container.
        ShapeError: layers to be stacked differ.

    Example:
        >>> tree = {"layers_0": {"w": 1.0}, "layers_1": {"w": 2.0}, "head": 3.0}
        >>> with_layers("demo", tree, "layers_{index}", [{"w": 5.0}])
        {'head': 3.0, 'layers_0': {'w': 5.0}}
    """
    into = place if into is None else into
    _check_place(who, into)
    (above, name), (beside, new) = _split(place), _split(into)
    if (whole := _container(place)) is not None and whole == _container(into):
        return _with_change(tree, whole, lambda old: _new_container(who, old, place, into, layers))
    if above != beside or INDEX in (name, new):
        raise SelectionError(f"{who}: {into!r} does not lie beside {place!r}; put layers into the "
                             "same container, and rename that.")  # fmt: skip

    def change(parent: Any) -> dict[Any, Any]:
        gone = _keys_by_number(parent, name).values() if INDEX in name else [_key(parent, name)]
        rest = {key: child for key, child in parent.items() if key not in gone}
        if INDEX in new:
            added = {new.replace(INDEX, str(n)): layer for n, layer in enumerate(layers)}
        else:
            added = {new: _stack(who, place, layers)}
        if both := sorted(map(str, rest.keys() & added.keys())):
            raise SelectionError(f"{who}: {into!r} is taken: {', '.join(both)}.")
        return rest | added

    return _with_change(tree, above, change)


def _new_container(who: str, old: Any, place: str, into: str, layers: list[Any]) -> Any:
    """Return the new container of layers: a stack, a list, or numbered keys."""
    numbered = INDEX in place and isinstance(old, Mapping)
    rest = {k: child for k, child in old.items() if not str(k).isdecimal()} if numbered else {}
    if INDEX not in into:
        if rest:
            names = ", ".join(map(str, rest))
            raise SelectionError(f"{who}: {into!r} holds {names} beside the layers; move them out.")
        return _stack(who, place, layers)
    if numbered:
        kind = next(type(key) for key in old if str(key).isdecimal())
        return rest | {kind(number): layer for number, layer in enumerate(layers)}
    return tuple(layers) if INDEX in place and isinstance(old, tuple) else layers


def _check_place(who: str, place: Any) -> None:
    if not isinstance(place, str) or (INDEX in place and place.count(INDEX) > 1) or (
        INDEX in place and INDEX not in _split(place)[1]
    ):  # fmt: skip
        raise ValueRangeError(f"{who}: {place!r} names no layers; give 'encoder/layers_{INDEX}' "
                              "where they lie apart, 'encoder/layers' where stacked.")  # fmt: skip


def _split(place: str) -> tuple[list[str], str]:
    *above, name = _segments(place) or [""]
    return above, name


def _container(place: str) -> list[str] | None:
    """Return the path of the container if it holds only layers; None if it may hold others."""
    above, name = _split(place)
    if name == INDEX:
        return above
    return None if INDEX in name else _segments(place)


def _segments(path: str) -> list[str]:
    return path.split("/") if path else []


def _key(container: Any, name: str) -> Any:
    """Return the key of a dictionary whose text is `name`; None without such a key."""
    return next((key for key in container if str(key) == name), None)


def _keys_by_number(container: Any, name: str) -> dict[int, Any]:
    """Return the keys that match a name, by the number in place of `{index}`."""
    pattern = re.compile(re.escape(name).replace(re.escape(INDEX), r"(0|[1-9]\d*)"))
    matches = ((key, pattern.fullmatch(str(key))) for key in container)
    return {int(match[1]): key for key, match in matches if match}


def _container_at(who: str, tree: Any, segments: list[str]) -> Any:
    """Return the container at a path; raise if the path leads to anything else."""
    for depth, name in enumerate(segments):
        here = "/".join(segments[: depth + 1])
        if isinstance(tree, Mapping):
            key = _key(tree, name)
            if key is None:
                near = nearest(name, map(str, tree))
                raise SelectionError(f"{who}: {here!r} is not in the tree.{near}")
            tree = tree[key]
        elif type(tree) in (list, tuple) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            raise SelectionError(f"{who}: {here!r} is not in the tree, where a "
                                 f"{type(tree).__name__} is; layers lie in dictionaries, lists "
                                 "and tuples.")  # fmt: skip
    if not isinstance(tree, Mapping) and type(tree) not in (list, tuple):
        kind = "one leaf" if jax.tree_util.all_leaves([tree]) else f"a {type(tree).__name__}"
        raise SelectionError(f"{who}: {'/'.join(segments)!r} is {kind}; layers lie in "
                             "dictionaries, lists and tuples.")  # fmt: skip
    return tree


def _with_change(tree: Any, segments: list[str], change: Callable[[Any], Any]) -> Any:
    """Return a copy of the tree in which a function has replaced the container at a path."""
    if not segments:
        return change(tree)
    name, *rest = segments
    if isinstance(tree, Mapping):
        key = _key(tree, name)
        return {k: _with_change(v, rest, change) if k == key else v for k, v in tree.items()}
    return type(tree)(
        _with_change(child, rest, change) if str(number) == name else child
        for number, child in enumerate(tree)
    )


def gather_axis(array: Any, axis: int) -> Any:
    """Gather an array along an axis whose size will change, if its mesh has Explicit axes.

    For Auto axes, the compiler does this.

    Example:
        >>> gather_axis(jnp.ones(2), 0)
        Array([1., 1.], dtype=float32)
    """
    sharding = jax.typeof(array).sharding
    if sharding.spec[axis] is None:
        return array
    spec = [None if at == axis % array.ndim else name for at, name in enumerate(sharding.spec)]
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def _unstack(who: str, place: str, tree: Any) -> list[Any]:
    """Return the layers of a stack as separate trees; raise if leading axes differ."""
    leaves = flatten(tree, is_node)
    check_values(who, {f"{place}/{path}": leaf for path, leaf in leaves.items()})
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves.values()}
    count = sizes.pop() if len(sizes) == 1 else None
    if count is None:
        problems = Problems(who)
        for path, leaf in leaves.items():
            problems.add(f"{place}/{path}", f"is {summary(leaf)}; a stack has as many layers in "
                                            "each leaf, along axis 0")  # fmt: skip
        problems.raise_as(ShapeError)
        raise SelectionError(f"{who}: {place!r} has no leaves.")
    apart = jax.tree.map(
        lambda leaf: list(jnp.unstack(gather_axis(materialize(leaf), 0))), tree, is_leaf=is_node
    )
    outer = jax.tree.structure(tree, is_leaf=is_node)
    inner = jax.tree.structure([0] * count)
    return jax.tree.transpose(outer, inner, apart)


def _stack(who: str, place: str, layers: list[Any]) -> Any:
    """Stack layers of equal structure along a leading axis; raise if they differ."""
    problems = Problems(who)
    first = flatten(layers[0], is_node)
    for number, layer in enumerate(layers[1:], 1):
        other = flatten(layer, is_node)
        for path in sorted(first.keys() ^ other.keys()):
            problems.add(f"{place}/{path}", f"is in one of layers 0 and {number} only")
        for path in (path for path in first if path in other):
            ours, theirs = _dense(first[path]), _dense(other[path])
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                problems.add(f"{place}/{path}", f"is {summary(ours)} in layer 0, "
                                                f"{summary(theirs)} in layer {number}")  # fmt: skip
    problems.raise_as(ShapeError)
    for layer in layers:
        check_values(who, {path: leaf for path, leaf in flatten(layer, is_node).items()
                             if hasattr(leaf, "dtype")})  # fmt: skip
    return jax.tree.map(lambda *xs: jnp.stack([_dense(x) for x in xs]), *layers, is_leaf=is_node)


def _dense(leaf: Any) -> Any:
    """Return the dense array of a leaf, which may be a Python number."""
    return materialize(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))
