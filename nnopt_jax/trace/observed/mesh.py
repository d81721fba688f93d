"""Arrays on a mesh: where they lie, and functions that leave that to the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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


def automatic(function: Callable[..., Any], mesh: Mesh | None, out: Any) -> Callable[..., Any]:
    """Lets the compiler place what a function computes, on a mesh with Explicit axes too.

    Args:
        function: of arrays on the mesh.
        mesh: the mesh; None for none.
        out: like the function's outcome, of which every array is to lie on all devices.
    """
    around = jax.sharding.get_abstract_mesh().axis_types  # Auto: inside of such a function already
    if mesh is None or all(kind == AxisType.Auto for kind in (around or mesh.axis_types)):
        return function
    return jax.sharding.auto_axes(
        function, out_sharding=jax.tree.map(lambda _: replicated(mesh), out)
    )
