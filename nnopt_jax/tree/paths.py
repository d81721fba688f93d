"""Names of leaves, such as `encoder/layers_0/kernel`, as used in rules, tables and errors."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax

from nnopt_jax.errors import SelectionError

IsLeaf = Callable[[Any], bool]


def path_string(key_path: tuple[Any, ...]) -> str:
    """Return a JAX key path as a string, such as `a/b/kernel`.

    Dictionary keys, attributes, and list positions are joined by `/`. The attribute `value` that
    an NNX variable adds at the end is dropped, so Linen and NNX name the same leaf alike.

    Args:
        key_path: the keys, as `jax.tree_util.tree_flatten_with_path` returns them.

    Returns:
        The path; empty for a tree that is itself a leaf.

    Example:
        >>> import jax
        >>> from nnopt_jax.tree.paths import path_string
        >>> flat, _ = jax.tree_util.tree_flatten_with_path({"a": [1.0, {"kernel": 2.0}]})
        >>> [path_string(keys) for keys, _ in flat]
        ['a/0', 'a/1/kernel']
    """
    if key_path and key_path[-1] == jax.tree_util.GetAttrKey("value"):
        key_path = key_path[:-1]
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def flatten(tree: Any, is_leaf: IsLeaf | None = None) -> dict[str, Any]:
    """Return the leaves of a tree by path, in JAX's order.

    Args:
        tree: any pytree.
        is_leaf: a function that decides which inner nodes count as leaves.

    Returns:
        A dictionary from path to leaf.

    Raises:
        SelectionError: two leaves have the same path (for example because a key contains `/`), or
            the keys of a dictionary cannot be sorted.

    Example:
        >>> from nnopt_jax.tree.paths import flatten
        >>> flatten({"dense": {"bias": 0.0, "kernel": 1.0}})
        {'dense/bias': 0.0, 'dense/kernel': 1.0}
    """
    try:
        flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    except ValueError as error:
        raise SelectionError(
            f"tree.flatten: {error} Give the keys of a dictionary one type, str."
        ) from error
    leaves = {path_string(keys): leaf for keys, leaf in flat}
    if len(leaves) != len(flat):
        counts = collections.Counter(path_string(keys) for keys, _ in flat)
        twice = sorted(path for path, count in counts.items() if count > 1)
        raise SelectionError(
            f"tree.flatten: paths {', '.join(map(repr, twice))} name more than one leaf. "
            "Rename a key so that every leaf has a path of its own."
        )
    return leaves


def unflatten(tree: Any, leaves: Mapping[str, Any], is_leaf: IsLeaf | None = None) -> Any:
    """Return a tree with the structure of `tree` and other leaves.

    Args:
        tree: the pytree that determines the structure.
        leaves: one entry for each leaf of `tree`, in the order of `flatten`.
        is_leaf: see `flatten`.

    Returns:
        A tree of the structure of `tree` with the given leaves.

    Example:
        >>> from nnopt_jax.tree.paths import flatten, unflatten
        >>> tree = {"dense": {"bias": 0.0, "kernel": 1.0}}
        >>> unflatten(tree, {path: leaf + 1 for path, leaf in flatten(tree).items()})
        {'dense': {'bias': 1.0, 'kernel': 2.0}}
    """
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=is_leaf), list(leaves.values()))


def _signature(leaf: Any) -> str:
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return type(leaf).__name__
    return f"{dtype}[{','.join(map(str, shape))}]"


def diff(left: Any, right: Any, is_leaf: IsLeaf | None = None) -> list[str]:
    """List the differences in paths, shapes and dtypes of two trees.

    Args:
        left: any pytree of arrays or `jax.ShapeDtypeStruct`.
        right: the other pytree.
        is_leaf: a function that decides which inner nodes count as leaves.

    Returns:
        One line for each difference; empty if the trees agree.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.tree.paths import diff
        >>> for line in diff({"a": jnp.ones(2), "b": 1}, {"a": jnp.ones(3), "c": 1}):
        ...     print(line)
        a: float32[2] against float32[3]
        b: only on the left (int)
        c: only on the right (int)
    """
    ours, theirs = flatten(left, is_leaf), flatten(right, is_leaf)
    lines = []
    for path, leaf in ours.items():
        if path not in theirs:
            lines.append(f"{path}: only on the left ({_signature(leaf)})")
        elif _signature(leaf) != _signature(theirs[path]):
            lines.append(f"{path}: {_signature(leaf)} against {_signature(theirs[path])}")
    lines += [
        f"{path}: only on the right ({_signature(leaf)})"
        for path, leaf in theirs.items()
        if path not in ours
    ]
    return lines
