"""Leaves of a tree as NumPy arrays and back, bit for bit; and how much they may take."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import Node, Sparse, is_node
from nnopt_jax.arrays.node_description import dtype_named
from nnopt_jax.artifact.streams import Slot
from nnopt_jax.errors import ArtifactError, Problems, SelectionError
from nnopt_jax.tree.paths import flatten, path_string

_KEYS = ("threefry2x32", "rbg", "unsafe_rbg")
_LEAVE = "leave it out of the tree, or give it as metadata"
_WRAPPED = (jax.tree_util.GetAttrKey("value"),)


def plain(tree: Any) -> Any:
    """Replaces every container a file does not know by the dictionary of its fields.

    Args:
        tree: any pytree of arrays and nodes.

    Returns:
        Dictionaries with string keys, lists, tuples, None, nodes and arrays; a wrapper around a
        lone `value`, as NNX has, becomes the value.

    Raises:
        SelectionError: two children of a container would get the same name.

    Example:
        >>> import collections
        >>> Layer = collections.namedtuple("Layer", "kernel bias")
        >>> plain([Layer(1.0, None), {3: 2.0}])
        [{'bias': None, 'kernel': 1.0}, {'3': 2.0}]
    """
    if tree is None or is_node(tree) or jax.tree_util.all_leaves([tree]):
        return tree
    if type(tree) in (list, tuple):
        return type(tree)(plain(child) for child in tree)
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if [keys for keys, _ in keyed] == [_WRAPPED]:
        return plain(keyed[0][1])
    named = {path_string(keys): plain(child) for keys, child in keyed}
    if len(named) < len(keyed):
        keys = [path_string(keys) for keys, _ in keyed]
        raise SelectionError(f"save: children of one container are called alike: {sorted(keys)}.")
    return dict(sorted(named.items()))


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_numeric(dtype: Any) -> bool:
    """Whether a file holds such arrays: numbers, truth values and keys."""
    return _is_key(dtype) or dtype == np.bool_ or jnp.issubdtype(dtype, jnp.number)


def require_storable(tree: Any) -> None:
    """Refuses leaves that `load` would refuse, before anything is written.

    Raises:
        ArtifactError: there are some; all are named.

    Example:
        >>> require_storable({"name": "net", "w": np.ones(2)})
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: save: name: is a str, no array of numbers; leave it out of \
the tree, or give it as metadata
    """
    problems = Problems("save")
    for path, leaf in flatten(tree).items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and not isinstance(leaf, (bool, int, float, complex)):
            problems.add(path, f"is a {type(leaf).__name__}, no array of numbers; {_LEAVE}")
        elif dtype is not None and not _is_numeric(dtype):
            problems.add(path, f"is an array of {dtype}, not of numbers; {_LEAVE}")
        elif isinstance(dtype, np.dtype) and not dtype.isnative:
            problems.add(path, f"is in the byte order {dtype.str}; give x.astype(x.dtype.type)")
    problems.raise_as(ArtifactError)


def stored(leaf: Any) -> np.ndarray:
    """A leaf as NumPy; keys as the integers they are made of.

    Example:
        >>> stored(jax.random.key(7))
        array([0, 7], dtype=uint32)
    """
    if hasattr(leaf, "dtype") and _is_key(leaf.dtype):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))


def loaded(array: np.ndarray, like: jax.ShapeDtypeStruct) -> Any:
    """Undoes `stored`: a JAX array, or NumPy's where JAX would cut a type of 64 bits short."""
    if _is_key(like.dtype):
        name = next(
            name for name in _KEYS if dtype_named(str(like.dtype)) == _key_struct(name).dtype
        )
        return jax.random.wrap_key_data(jnp.asarray(array), impl=name)
    cut = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    return array if cut else jnp.asarray(array)


def _key_struct(implementation: str) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0, impl=implementation))


def struct(dtype: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """An abstract array, of numbers only.

    Raises:
        ArtifactError: the dtype holds anything but numbers, truth values or keys.

    Example:
        >>> struct("object", (2,))
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: load: arrays of 'object' are not numbers.
    """
    known = dtype_named(dtype)
    if not _is_numeric(known):
        raise ArtifactError(f"load: arrays of {dtype!r} are not numbers.")
    return jax.ShapeDtypeStruct(shape, known)


def slot_tree(tree: Any) -> Any:
    """The tree with a `Slot` for each array, abstract or not."""
    leaves, structure = jax.tree.flatten(tree)
    slots = []
    for index, leaf in enumerate(leaves):
        if not hasattr(leaf, "dtype"):
            leaf = jnp.asarray(leaf)
        shape, dtype = tuple(leaf.shape), leaf.dtype
        if _is_key(dtype):
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = data.shape, data.dtype
        slots.append(Slot(index, shape, dtype))
    return jax.tree.unflatten(structure, slots)


def declared_bytes(tree: Any) -> int:
    """Bytes of all arrays of an abstract tree, and of the masks that decoding spreads out.

    Example:
        >>> declared_bytes({"w": struct("float32", (2, 3))})
        24
    """
    slots = jax.tree.leaves(slot_tree(tree))
    total = sum(math.prod(slot.shape) * np.dtype(slot.dtype).itemsize for slot in slots)
    return total + sum(map(_spread, jax.tree.leaves(tree, is_leaf=is_node)))


def _spread(field: Any) -> int:
    """Elements of the masks of an expression."""
    if not isinstance(field, Node):
        return 0
    inner = sum(_spread(inner) for _, inner in field.fields())
    return inner + (field.size if isinstance(field, Sparse) else 0)


def require_numbers(tree: Any) -> None:
    """Refuses nodes whose own settings name no shape or no dtype of numbers.

    Raises:
        ArtifactError: there is one.
    """
    for leaf in jax.tree.leaves(tree, is_leaf=is_node):
        if isinstance(leaf, Node):
            if not all(type(size) is int and size >= 0 for size in leaf.shape):
                raise ArtifactError(f"load: {leaf.shape!r} is not a shape.")
            struct(leaf.dtype if isinstance(leaf.dtype, str) else leaf.dtype.name, leaf.shape)
            require_numbers([field for _, field in leaf.fields()])
