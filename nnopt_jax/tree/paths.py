"""One way to name a leaf: `encoder/layers_0/kernel`, the same in rules, tables and errors."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax

from nnopt_jax.errors import SelectionError

IsLeaf = Callable[[Any], bool]


def path_string(key_path: tuple[Any, ...]) -> str:
    """Writes a JAX key path as `a/b/kernel`.

    Dictionary keys, attributes, and list positions are joined by `/`. The attribute `value` that
    an NNX variable adds at the end is dropped, so Linen and NNX name the same leaf alike.

    Args:
        key_path: the keys, as `jax.tree_util.tree_flatten_with_path` gives them.

    Returns:
        The path; the empty string for a tree that is itself one leaf.

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
    """Lists the leaves of a tree by path, in JAX's own order.

    Args:
        tree: any pytree.
        is_leaf: says which inner nodes count as leaves.

    Returns:
        A dictionary from path to leaf.

    Raises:
        SelectionError: two leaves have the same path (a key that holds a `/`, say), or keys of a
            dictionary cannot be sorted.

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
    """Puts leaves, given by path, into the structure of `tree`.

    Args:
        tree: the pytree whose structure is wanted.
        leaves: one entry for each leaf of `tree`, in the order `flatten` gives.
        is_leaf: as it was given to `flatten`.

    Returns:
        A tree of the structure of `tree` with the given leaves.

    Example:
        >>> from nnopt_jax.tree.paths import flatten, unflatten
        >>> tree = {"dense": {"bias": 0.0, "kernel": 1.0}}
        >>> unflatten(tree, {path: leaf + 1 for path, leaf in flatten(tree).items()})
        {'dense': {'bias': 1.0, 'kernel': 2.0}}
    """
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=is_leaf), list(leaves.values()))
