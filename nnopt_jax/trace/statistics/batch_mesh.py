"""The mesh of sharded arrays, and functions whose sharding the compiler chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnopt_jax.tree.devices import automatic


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh that arrays are sharded over; None if they are on a single device."""
    for x in jax.tree.leaves(tree):
        at = getattr(x, "sharding", None)
        if isinstance(at, NamedSharding) and isinstance(at.mesh, Mesh) and at.mesh.size > 1:
            return at.mesh
    return None


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """Return the sharding that replicates an array on every device; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def replicating(function: Callable[..., Any], mesh: Mesh | None, out: Any) -> Callable[..., Any]:
    """Let the compiler shard a function, and replicate its outcome on all devices.

    Args:
        function: a function of arrays on the mesh.
        mesh: the mesh, or None.
        out: a tree of the structure of the outcome.
    """
    if mesh is None:
        return function
    return automatic(function, mesh, jax.tree.map(lambda _: replicated(mesh), out))
