"""Lookup of primitives by name, in every supported version of JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from nnopt_jax.trace.jaxpr import Equation, primitives


def last_step(function: Callable[..., Any], *given: jax.ShapeDtypeStruct) -> Equation:
    """Trace a function and return its last step, without running it on a device.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.primitives.primitive_names import last_step
        >>> last_step(jnp.sin, jax.ShapeDtypeStruct((3,), "float32")).primitive
        sin
    """
    return jax.make_jaxpr(function)(*given).jaxpr.eqns[-1]


def float_shape(*shape: int) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a float32 array.

    Example:
        >>> from nnopt_jax.trace.primitives.primitive_names import float_shape
        >>> float_shape(2, 3)
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def on_mesh(function: Callable[..., Any], out: PartitionSpec) -> Equation:
    """Return the `shard_map` of a function of one number over a mesh with the axis "all"."""
    mesh = AbstractMesh((1,), ("all",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("all"), out_specs=out)
    return last_step(mapped, float_shape(1))


shard_map_p = on_mesh(lambda x: x, PartitionSpec("all")).primitive
ragged_dot_general_p = last_step(
    lax.ragged_dot, float_shape(2, 3), float_shape(1, 3, 4), jax.ShapeDtypeStruct((1,), jnp.int32)
).primitive


def _probes() -> list[Any]:
    """Return primitives that `jax.extend` does not list, found in small programs that use them.

    A version of JAX that lacks one of them traces another primitive, which is listed by its own
    name.
    """
    number, cut = PartitionSpec(), PartitionSpec("all")
    by_platform = functools.partial(lax.platform_dependent, cpu=lambda: 0, default=lambda: 1)
    mapped = [
        on_mesh(lambda x: lax.psum(x, "all"), number),
        on_mesh(lambda x: lax.psum_scatter(x, "all", tiled=True), cut),
        on_mesh(lambda x: lax.pcast(jnp.ones(1), "all", to="varying"), cut),
    ]
    found = [
        *(equation.params["jaxpr"].eqns[-1] for equation in mapped),
        last_step(jax.random.wrap_key_data, jax.ShapeDtypeStruct((2,), jnp.uint32)),
        last_step(lambda: jax.random.key_data(jax.random.key(0))),
        last_step(lambda x: jnp.split(x, 2), float_shape(2)),
        last_step(lambda x: jnp.tile(x, 2), float_shape(2)),
        last_step(lambda x: jnp.stack([x, x]), float_shape(1)),
        last_step(jnp.unstack, float_shape(1)),
        last_step(lax.optimization_barrier, float_shape(1)),
        last_step(lax.erf, float_shape()),
        last_step(lax.composite(lambda x: x + 1, name="nnopt.probe"), float_shape(1)),
        last_step(by_platform),
        jax.make_jaxpr(by_platform)().eqns[0],
    ]
    if hasattr(lax, "empty"):
        found.append(last_step(lambda: lax.empty((1,), jnp.float32)))
    by_hand = shard_map_p, ragged_dot_general_p
    return [*(equation.primitive for equation in found), *by_hand]


def _all() -> dict[str, Any]:
    offered = {name[:-2]: value for name, value in vars(primitives).items() if name[-2:] == "_p"}
    probes = {primitive.name: primitive for primitive in _probes()}
    # Names in `jax.extend` take precedence over those of the probes.
    return probes | {primitive.name: primitive for primitive in offered.values()} | offered


_BY_NAME = _all()


def named(names: str) -> tuple[Any, ...]:
    """Return the primitives with these names; names that this version of JAX lacks are omitted.

    Args:
        names: names as in `jax.extend.core.primitives` without `_p`, separated by spaces.

    Example:
        >>> from nnopt_jax.trace.primitives import named
        >>> named("sin split no_such_primitive")
        (sin, split)
    """
    return tuple(_BY_NAME[name] for name in names.split() if name in _BY_NAME)


Make = TypeVar("Make")


def by_primitive(makers: Mapping[str, Make]) -> dict[Any, Make]:
    """Replace the names in the keys of a dictionary, several in each key, by primitives."""
    return {primitive: make for names, make in makers.items() for primitive in named(names)}
