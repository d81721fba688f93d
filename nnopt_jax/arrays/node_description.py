"""JSON descriptions of trees of nodes, which let files be read without pickled code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import NODE_TYPES, Node, is_node
from nnopt_jax.errors import ArtifactError, Problems, nearest
from nnopt_jax.tree.paths import flatten, path_string


def describe(tree: Any) -> Any:
    """Describe a tree by containers, node types with versions and static fields, shapes and dtypes.

    Dictionaries, lists, tuples and None are described as such. Any other container (a dataclass, a
    named tuple, a framework's state) is described as the dictionary of its fields.

    Args:
        tree: any pytree of arrays and nodes.

    Returns:
        Nested dictionaries and lists that `json.dumps` takes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.node_description import describe
        >>> describe({"w": jnp.ones((2, 3)), "rest": (None,)})
        {'dict': {'rest': {'tuple': [None]}, 'w': ['float32', [2, 3]]}}
    """
    if tree is None:
        return None
    if is_node(tree):
        return {
            "node": tree.file_name(),
            "version": tree.VERSION,
            "static": {f.name: getattr(tree, f.name) for f in _settings(tree)},
            "fields": {name: describe(field) for name, field in tree.fields()},
        }
    if hasattr(tree, "dtype") and hasattr(tree, "shape"):
        return [str(tree.dtype), list(tree.shape)]
    if isinstance(tree, (bool, int, float, complex)):
        return describe(jnp.asarray(tree))
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if len(keyed) == 1 and not keyed[0][0]:
        raise ArtifactError(
            f"describe: {tree!r} is a {type(tree).__name__}, neither an array nor a container of "
            "arrays. Leave it out of the tree, or give it as metadata."
        )
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [describe(child) for child in tree]}
    return {"dict": {path_string(keys): describe(child) for keys, child in keyed}}


def _settings(node: Node) -> Iterator[dataclasses.Field[Any]]:
    """Yield the static fields of a node, except `late` fields that have their defaults."""
    for field in dataclasses.fields(node):  # pyright: ignore[reportArgumentType]
        late = field.metadata.get("late") and getattr(node, field.name) == field.default
        if field.metadata.get("static") and not late:
            yield field


def abstract(description: Any, leaf: Callable[[str, tuple[int, ...]], Any] | None = None) -> Any:
    """Rebuild the tree that `describe` described, with `jax.ShapeDtypeStruct` for arrays.

    Args:
        description: a result of `describe`, perhaps from a file that is not trusted.
        leaf: a function that makes a leaf from a dtype name and a shape; by default
            `jax.ShapeDtypeStruct`.

    Returns:
        The abstract tree.

    Raises:
        ArtifactError: the description is malformed, or names an unknown node type or version.

    Example:
        >>> from nnopt_jax.arrays.node_description import abstract
        >>> abstract({"dict": {"w": ["float32", [2, 3]]}})
        {'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    make = leaf or (lambda dtype, shape: jax.ShapeDtypeStruct(shape, dtype_named(dtype)))
    try:
        return _abstract(description, make)
    except ArtifactError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"manifest: malformed description ({error!r}).") from error


def _abstract(at: Any, make: Callable[[str, tuple[int, ...]], Any]) -> Any:
    if at is None:
        return None
    if isinstance(at, list):
        dtype, shape = at
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ArtifactError(f"manifest: {shape!r} is not a shape.")
        return make(dtype, tuple(shape))
    if "node" in at:
        return _abstract_node(at, make)
    ((kind, children),) = at.items()
    if kind == "dict":
        return {name: _abstract(child, make) for name, child in children.items()}
    if kind not in ("list", "tuple"):
        raise ArtifactError(f"manifest: unknown container {kind!r}.")
    made = [_abstract(child, make) for child in children]
    return made if kind == "list" else tuple(made)


def _abstract_node(at: dict[str, Any], make: Callable[[str, tuple[int, ...]], Any]) -> Node:
    name, version = at["node"], at["version"]
    cls = NODE_TYPES.get(name)
    if cls is None:
        raise ArtifactError(f"manifest: unknown node {name!r}.{nearest(str(name), NODE_TYPES)}")
    if version != cls.VERSION:
        raise ArtifactError(
            f"manifest: {name} has version {version!r}, this library reads {cls.VERSION}. "
            "Read the file with the version of nnopt_jax that wrote it."
        )
    fields = {name: _abstract(child, make) for name, child in at["fields"].items()}
    settings = {name: _hashable(value) for name, value in at["static"].items()}
    known = {*cls.names(), *cls.names(is_static=True)}
    if unknown := {*fields, *settings} - known:
        raise ArtifactError(f"manifest: {name} has no field {sorted(unknown)}.")
    return cls(**fields, **settings)


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def dtype_named(name: str) -> Any:
    """Return the dtype for a name that `describe` wrote, PRNG keys included.

    Raises:
        ArtifactError: the dtype does not exist.

    Example:
        >>> from nnopt_jax.arrays.node_description import dtype_named
        >>> dtype_named("bfloat16")
        dtype(bfloat16)
    """
    if isinstance(name, str) and name.startswith("key<"):
        for implementation in ("threefry2x32", "rbg", "unsafe_rbg"):
            dtype = jax.eval_shape(lambda i=implementation: jax.random.key(0, impl=i)).dtype
            if str(dtype) == name:
                return dtype
    try:
        return jnp.dtype(getattr(jnp, name, name))
    except TypeError as error:
        raise ArtifactError(f"manifest: {name!r} is not a dtype.") from error


def check(tree: Any, who: str) -> None:
    """Check the invariants of every node in a tree, using only shapes and static fields.

    Args:
        tree: any pytree of arrays (or `jax.ShapeDtypeStruct`) and nodes.
        who: the caller, named in the error.

    Raises:
        ArtifactError: invariants are broken; the error lists all of them with leaf paths.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Factored
        >>> from nnopt_jax.arrays.node_description import check
        >>> check({"w": Factored(jnp.ones((2, 3)), jnp.ones((4, 5)))}, "load")
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: load: w: Factored has factors (2, 3) and (4, 5)
    """
    problems = Problems(who)
    for path, leaf in flatten(tree, is_node).items():
        if not is_node(leaf):
            continue
        try:
            for text in leaf.problems(leaf.shape):
                problems.add(path, f"{type(leaf).__name__} {text}")
        except (TypeError, AttributeError, ValueError, IndexError) as error:
            problems.add(path, f"{type(leaf).__name__} is malformed ({error!r})")
    problems.raise_as(ArtifactError)
