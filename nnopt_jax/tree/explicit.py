"""Meshes with Explicit axes, over which where an array lies is part of its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh


def is_explicit(x: jax.Array) -> bool:
    """Whether the type of an array, traced or not, says where it lies.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.tree.explicit import is_explicit
        >>> is_explicit(jnp.ones(2))
        False
    """
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def automatic(function: Callable[..., Any], mesh: Mesh, out: Any) -> Callable[..., Any]:
    """Lets the compiler place what a function computes, on a mesh with Explicit axes too.

    Args:
        function: of arrays on the mesh.
        mesh: the mesh.
        out: a `NamedSharding` for each array that it returns.

    Returns:
        The function, to be compiled.
    """
    around = jax.sharding.get_abstract_mesh().axis_types  # Auto: inside of such a function already
    if all(kind == AxisType.Auto for kind in (around or mesh.axis_types)):
        return function
    return jax.sharding.auto_axes(function, out_sharding=out)
