"""Support for leaves that are not arrays, such as functions and names in modules."""

from __future__ import annotations

from typing import Any

import jax

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.tree.paths import flatten


def is_inert(leaf: Any) -> bool:
    """Return whether a leaf is neither an array, a node nor a Python number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> is_inert(jax.nn.relu), is_inert("same"), is_inert(jnp.ones(2)), is_inert(0.5)
        (True, True, False, False)
    """
    if is_node(leaf) or isinstance(leaf, bool | int | float | complex):
        return False
    return isinstance(leaf, type) or not (hasattr(leaf, "dtype") and hasattr(leaf, "shape"))


def without_inert(params: Any) -> Any:
    """Leave out leaves that are not arrays, such as activation functions.

    Parameters that consist of arrays are returned as they are. Otherwise the arrays are returned
    as a dictionary by path, so that every leaf keeps its name.

    Example:
        >>> without_inert({"act": len, "layer": {"kernel": 1.0}})
        {'layer/kernel': 1.0}
    """
    leaves = flatten(params, is_node)
    if not any(map(is_inert, leaves.values())):
        return params
    return {path: leaf for path, leaf in leaves.items() if not is_inert(leaf)}


def blanked(tree: Any) -> Any:
    """Return a tree with None in place of leaves that are not arrays.

    Example:
        >>> blanked({"act": len, "kernel": 1.0})
        {'act': None, 'kernel': 1.0}
    """
    return jax.tree.map(lambda x: None if is_inert(x) else x, tree, is_leaf=is_node)
