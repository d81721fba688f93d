"""Arrays on a mesh: where they lie, and functions that leave that to the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnopt_jax.tree.explicit import automatic


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays lie on; None where they lie on one device, or no array has one."""
    for x in jax.tree.leaves(tree):
        at = getattr(x, "sharding", None)
        if isinstance(at, NamedSharding) and isinstance(at.mesh, Mesh) and at.mesh.size > 1:
            return at.mesh
    return None


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """The whole array on every device."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def replicating(function: Callable[..., Any], mesh: Mesh | None, out: Any) -> Callable[..., Any]:
    """`automatic`, of a function whose outcome is to lie on all devices.

    Args:
        function: of arrays on the mesh.
        mesh: the mesh; None for none.
        out: like the function's outcome.
    """
    if mesh is None:
        return function
    return automatic(function, mesh, jax.tree.map(lambda _: replicated(mesh), out))
