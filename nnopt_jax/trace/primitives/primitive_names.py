"""Primitives by name, in every supported version of JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from nnopt_jax.trace import probed
from nnopt_jax.trace.jaxpr import primitives

_MESH = AbstractMesh((1,), ("all",), axis_types=(AxisType.Auto,))
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)
_FLOATS = jax.ShapeDtypeStruct((1,), jnp.float32)


def _on_mesh(function: Callable[..., Any], out: PartitionSpec = PartitionSpec()) -> Any:  # noqa: B008
    """Return the last primitive of a function that runs on a mesh of one device."""
    mapped = jax.shard_map(function, mesh=_MESH, in_specs=PartitionSpec("all"), out_specs=out)
    return probed.probed(mapped, _FLOATS).params["jaxpr"].eqns[-1].primitive


def _probes() -> list[Any]:
    """Return primitives that `jax.extend` does not offer, from small programs that use them.

    A version without one of them lowers the program to another primitive, whose own name counts.
    """
    found = [
        probed.probed(jax.random.wrap_key_data, _KEY),
        probed.probed(lambda: jax.random.key_data(jax.random.key(0))),
        probed.probed(lambda x: jnp.stack([x, x]), _FLOATS),
        probed.probed(jnp.unstack, _FLOATS),
        probed.probed(lax.composite(lambda x: x + 1, name="nnopt.probe"), _FLOATS),
        probed.probed(lambda: lax.platform_dependent(cpu=lambda: 0, default=lambda: 1)),
        jax.make_jaxpr(lambda: lax.platform_dependent(cpu=lambda: 0, default=lambda: 1))().eqns[0],
    ]
    if hasattr(lax, "empty"):
        found.append(probed.probed(lambda: lax.empty((1,), jnp.float32)))
    on_mesh = [
        _on_mesh(lambda x: lax.psum(x, "all")),
        _on_mesh(lambda x: lax.psum_scatter(x, "all", tiled=True), PartitionSpec("all")),
    ]
    by_hand = (value for name, value in vars(probed).items() if name.endswith("_p"))
    return [*(equation.primitive for equation in found), *on_mesh, *by_hand]


def _all() -> dict[str, Any]:
    offered = {name[:-2]: value for name, value in vars(primitives).items() if name[-2:] == "_p"}
    probes = {primitive.name: primitive for primitive in _probes()}
    return probes | {primitive.name: primitive for primitive in offered.values()} | offered


_BY_NAME = _all()


def named(names: str) -> tuple[Any, ...]:
    """Return the primitives with these names; names that this version of JAX lacks are left out.

    Args:
        names: names as in `jax.extend.core.primitives` without `_p`, separated by spaces.

    Example:
        >>> from nnopt_jax.trace.primitives import named
        >>> named("sin split no_such_primitive")
        (sin, split)
    """
    return tuple(_BY_NAME[name] for name in names.split() if name in _BY_NAME)
