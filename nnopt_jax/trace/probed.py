"""Primitives that `jax.extend` does not offer, found by tracing small programs that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from nnopt_jax.trace.jaxpr import Equation


def probed(function: Callable[..., Any], *given: jax.ShapeDtypeStruct) -> Equation:
    """Trace a function and return its last step, without running it on a device.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.probed import probed
        >>> probed(jnp.sin, jax.ShapeDtypeStruct((3,), "float32")).primitive
        sin
    """
    return jax.make_jaxpr(function)(*given).jaxpr.eqns[-1]


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a float32 array.

    Example:
        >>> from nnopt_jax.trace.probed import floats
        >>> floats(2, 3)
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def on_mesh(function: Callable[..., Any], out: PartitionSpec) -> Equation:
    """Return the step that maps a function of one number over a mesh with the axis "all"."""
    mesh = AbstractMesh((1,), ("all",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("all"), out_specs=out)
    return probed(mapped, floats(1))


shard_map_p = on_mesh(lambda x: x, PartitionSpec("all")).primitive
ragged_dot_general_p = probed(
    lax.ragged_dot, floats(2, 3), floats(1, 3, 4), jax.ShapeDtypeStruct((1,), jnp.int32)
).primitive
