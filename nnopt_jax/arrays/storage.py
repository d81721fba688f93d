"""Lossless conversion from training form to storage form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.core import Tracer

from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.nodes import Field, is_node, materialize, store_field
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.errors import CapacityError, CompositionError, SelectionError, nearest
from nnopt_jax.ops.eager import count_true
from nnopt_jax.settings import Settings
from nnopt_jax.tree.paths import flatten, unflatten


def store(tree: Any, *, capacities: Mapping[str, int] | None = None) -> Any:
    """Convert every node of a tree to its storage form.

    `materialize(store(tree))` equals `materialize(tree)` bit for bit: masks become `Sparse`,
    integers held as floats are packed, and arrays that only gradients need are dropped.

    Args:
        tree: any pytree of arrays and nodes.
        capacities: the number of values that each masked leaf keeps, by path, for calls under
            `jax.jit` where it depends on data; a number above the true one is allowed.

    Returns:
        The tree in storage form.

    Raises:
        CapacityError: a count depends on data under `jax.jit` and is missing or too small.
        ValueRangeError: `capacities` holds anything but counts.
        SelectionError: `capacities` names a leaf that does not exist.
        CompositionError: a mask does not have the pattern of its format.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, store
        >>> store({"w": Masked(jnp.arange(4.0), jnp.arange(4) > 1)})
        {'w': Sparse(values float32[2], support 1-bit[4], 18 bits/weight)}
    """
    leaves = flatten(tree, is_node)
    given = _capacities(capacities, leaves)
    stored = {path: _store_leaf(path, leaf, given.get(path)) for path, leaf in leaves.items()}
    stored |= _views(leaves, stored)
    return unflatten(tree, stored, is_node)


def _capacities(given: Any, leaves: Mapping[str, Field]) -> dict[str, int]:
    if given is None:
        return {}
    settings = Settings("store")
    if not isinstance(given, Mapping):
        settings.wrong("capacities", given, "is not a dictionary of counts by path.")
        settings.done()
    for path, count in given.items():
        if path not in leaves:
            raise SelectionError(f"store: capacities name {path!r}.{nearest(str(path), leaves)}")
        settings.integer(f"capacities[{path!r}]", count, 0)
    settings.done()
    return dict(given)


def _views(leaves: Mapping[str, Field], stored: Mapping[str, Field]) -> dict[str, Field]:
    """Return each leaf that is a view of another leaf as a view of that leaf's stored form."""
    paths = {id(leaf): path for path, leaf in leaves.items() if not isinstance(leaf, Reshaped)}
    return {
        path: leaf.replace(base=stored[paths[id(leaf.base)]])
        for path, leaf in leaves.items()
        if isinstance(leaf, Reshaped) and id(leaf.base) in paths
    }


def _store_leaf(path: str, leaf: Field, capacity: int | None) -> Field:
    if capacity is not None:
        leaf = with_capacity(leaf, _check_capacity(path, leaf, capacity))
    try:
        return store_field(leaf)
    except jax.errors.ConcretizationTypeError as error:
        raise CapacityError(
            f"store: {path}: how many values are kept depends on data, which is unknown under "
            f"jax.jit. Pack outside of jit, or give capacities={{{path!r}: <at most this many>}}."
        ) from error
    except CompositionError as error:
        raise CompositionError(f"store: {path}: {error}") from error


def _check_capacity(path: str, leaf: Field, capacity: int) -> int:
    """Return the capacity; raise if it is less than the entries that a concrete mask keeps."""
    masked = find_masked(leaf)
    if masked is None or isinstance(materialize(masked.mask), Tracer):
        return capacity
    kept = count_true(materialize(masked.mask))
    if kept > capacity:
        raise CapacityError(f"store: {path}: keeps {kept} values, capacity is {capacity}.")
    return capacity


def find_masked(field: Field) -> Masked | None:
    """Return the outermost mask of a parameter, if there is one."""
    if not is_node(field) or isinstance(field, Masked):
        return field if is_node(field) else None
    inner = (find_masked(getattr(field, name)) for name in field.SLOTS)
    return next((found for found in inner if found is not None), None)


def with_capacity(field: Field, capacity: int) -> Field:
    """Set the number of values that the masks of a parameter keep."""
    if not is_node(field):
        return field
    slots = {name: with_capacity(getattr(field, name), capacity) for name in field.SLOTS}
    stated = field.replace(**slots)
    return stated.replace(capacity=capacity) if isinstance(stated, Masked) else stated
