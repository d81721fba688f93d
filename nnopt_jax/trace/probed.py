"""Primitives that `jax.extend` does not offer, read off small programs that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from nnopt_jax.trace.jaxpr import Equation


def probed(function: Callable[..., Any], *given: jax.ShapeDtypeStruct) -> Equation:
    """The last step of a function; no device is touched.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.probed import probed
        >>> probed(jnp.sin, jax.ShapeDtypeStruct((3,), "float32")).primitive
        sin
    """
    return jax.make_jaxpr(function)(*given).jaxpr.eqns[-1]


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


_MESH = AbstractMesh((1,), ("all",), axis_types=(AxisType.Auto,))
_SPEC = PartitionSpec("all")
_GROUPS = jax.ShapeDtypeStruct((1,), jnp.int32)
_on_each = jax.shard_map(
    lambda x: lax.pcast(jnp.ones(1), "all", to="varying"),
    mesh=_MESH, in_specs=_SPEC, out_specs=_SPEC,
)  # fmt: skip
_shard_map = probed(_on_each, _floats(1))

split_p = probed(lambda x: jnp.split(x, 2), _floats(2)).primitive
tile_p = probed(lambda x: jnp.tile(x, 2), _floats(2)).primitive
optimization_barrier_p = probed(lax.optimization_barrier, _floats(1)).primitive
ragged_dot_general_p = probed(
    lax.ragged_dot, _floats(2, 3), _floats(1, 3, 4), _GROUPS
).primitive  # fmt: skip
erf_p = probed(lax.erf, _floats()).primitive
shard_map_p = _shard_map.primitive
pvary_p = _shard_map.params["jaxpr"].eqns[-1].primitive
