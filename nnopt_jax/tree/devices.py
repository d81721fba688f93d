"""Devices of arrays: transfer across processes, and meshes with Explicit axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh


def place(tree: Any, at: Any) -> Any:
    """Put a tree on devices by `jax.device_put`, including the devices of other processes.

    For devices of several processes, JAX accepts NumPy arrays, but not typed PRNG keys or arrays
    that are committed to a device. Every process must pass the same values.

    Args:
        tree: a pytree of arrays, numbers and keys.
        at: a sharding for all leaves, or a tree of shardings that is a prefix of `tree`.

    Returns:
        The tree with these shardings.

    Example:
        >>> import jax
        >>> from nnopt_jax.tree.devices import place
        >>> place(jax.random.key(0), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        Array((), dtype=key<fry>) overlaying:
        [0 0]
    """
    shardings = jax.tree.leaves(at)
    if all(one.is_fully_addressable for one in shardings):
        return jax.device_put(tree, at)
    placed = jax.device_put(jax.tree.map(_on_host, tree), at)
    return jax.tree.map(_as_given, tree, placed)


def is_placed(tree: Any, at: Any) -> bool:
    """Return whether compiled code with these shardings takes the arrays of a tree as they are.

    Args:
        tree: a pytree of arrays, numbers and keys.
        at: a sharding for all leaves, or a tuple of shardings, one for each entry of `tree`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.tree.devices import is_placed
        >>> is_placed(jnp.ones(2), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        True
    """
    if isinstance(at, tuple):
        return all(map(is_placed, tree, at))
    if not at.is_fully_addressable:
        return False
    return all(
        not isinstance(x, jax.Array) or isinstance(x, Tracer) or not x.committed or x.sharding == at
        for x in jax.tree.leaves(tree)
    )


def _on_host(x: Any) -> Any:
    if not isinstance(x, jax.Array) or not x.is_fully_addressable:
        return x
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _as_given(x: Any, placed: jax.Array) -> jax.Array:
    if not _is_key(x) or _is_key(placed):
        return placed
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(x))


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_explicit(x: jax.Array) -> bool:
    """Return whether an array, traced or not, is on a mesh with Explicit axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.tree.devices import is_explicit
        >>> is_explicit(jnp.ones(2))
        False
    """
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def automatic(function: Callable[..., Any], mesh: Mesh, out: Any) -> Callable[..., Any]:
    """Return a function whose shardings the compiler chooses, even on an Explicit mesh.

    Args:
        function: a function of arrays on the mesh.
        mesh: the mesh.
        out: a `NamedSharding` for each array that it returns.

    Returns:
        The function, for `jax.jit`.
    """
    # Inside a function that `auto_axes` wraps, the axes are Auto already.
    around = jax.sharding.get_abstract_mesh().axis_types
    if all(kind == AxisType.Auto for kind in (around or mesh.axis_types)):
        return function
    return jax.sharding.auto_axes(function, out_sharding=out)
