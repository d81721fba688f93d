"""Masking and permutation of the units of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import Problems, ValueRangeError
from nnopt_jax.trace.coupling.choice import Keep, dimensions_of
from nnopt_jax.trace.coupling.coupled_axes import CoupledAxes
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Params


def mask_units(coupled: CoupledAxes, params: Params, keep: Keep) -> Params:
    """Set all elements of removed units to zero.

    Args:
        coupled: the dependency graph.
        params: arrays.
        keep: the units that stay, by the name of a dimension.
    """
    leaves = dict(coupled.leaves(params, "graph.mask"))
    for (path, axis), kept in coupled.kept(keep, "graph.mask").items():
        shape = (-1,) + (1,) * (len(coupled.shapes[path]) - axis - 1)
        leaf = jnp.asarray(leaves[path])
        along = jnp.broadcast_to(kept.reshape(shape), leaf.shape)
        leaves[path] = jnp.where(along, leaf, jnp.zeros((), leaf.dtype))
    return unflatten(params, flatten(params) | leaves)


def permute_units(coupled: CoupledAxes, params: Params, order: Mapping[str, Any]) -> Params:
    """Permute units in all arrays that they belong to.

    Args:
        coupled: the dependency graph.
        params: arrays.
        order: by the name of a dimension the number of the unit that comes to each place.
    """
    leaves = dict(coupled.leaves(params, "graph.permute"))
    known = dimensions_of("graph.permute", coupled.dimensions, order)
    wrong = Problems("graph.permute")
    for name, dimension in known.items():
        moved = np.asarray(order[name])
        if not np.array_equal(np.sort(moved), np.arange(dimension.size)):
            wrong.add(name, f"is not a permutation of {dimension.size} units.")
        elif not dimension.exchangeable:
            wrong.add(name, "its units meet constants that differ; they cannot change places.")
    wrong.raise_as(ValueRangeError)
    for name, dimension in known.items():
        for (path, axis), at in dimension.indices.items():
            new = np.arange(coupled.shapes[path][axis])
            new[at.ravel()] = at[np.asarray(order[name])].ravel()
            leaves[path] = jnp.take(jnp.asarray(leaves[path]), new, axis)
    return unflatten(params, flatten(params) | leaves)
