"""Primitives by name, in every supported version of JAX."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from nnopt_jax.trace import probed
from nnopt_jax.trace.jaxpr import primitives


def _probes() -> list[Any]:
    """Return primitives that `jax.extend` does not offer, from small programs that use them.

    A version of JAX without one of them traces another primitive, which is entered by its own name.
    """
    number, cut = PartitionSpec(), PartitionSpec("all")
    by_platform = functools.partial(lax.platform_dependent, cpu=lambda: 0, default=lambda: 1)
    on_mesh = [
        probed.on_mesh(lambda x: lax.psum(x, "all"), number),
        probed.on_mesh(lambda x: lax.psum_scatter(x, "all", tiled=True), cut),
        probed.on_mesh(lambda x: lax.pcast(jnp.ones(1), "all", to="varying"), cut),
    ]
    found = [
        *(equation.params["jaxpr"].eqns[-1] for equation in on_mesh),
        probed.probed(jax.random.wrap_key_data, jax.ShapeDtypeStruct((2,), jnp.uint32)),
        probed.probed(lambda: jax.random.key_data(jax.random.key(0))),
        probed.probed(lambda x: jnp.split(x, 2), probed.floats(2)),
        probed.probed(lambda x: jnp.tile(x, 2), probed.floats(2)),
        probed.probed(lambda x: jnp.stack([x, x]), probed.floats(1)),
        probed.probed(jnp.unstack, probed.floats(1)),
        probed.probed(lax.optimization_barrier, probed.floats(1)),
        probed.probed(lax.erf, probed.floats()),
        probed.probed(lax.composite(lambda x: x + 1, name="nnopt.probe"), probed.floats(1)),
        probed.probed(by_platform),
        jax.make_jaxpr(by_platform)().eqns[0],
    ]
    if hasattr(lax, "empty"):
        found.append(probed.probed(lambda: lax.empty((1,), jnp.float32)))
    by_hand = probed.shard_map_p, probed.ragged_dot_general_p
    return [*(equation.primitive for equation in found), *by_hand]


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


Make = TypeVar("Make")


def by_primitive(makers: Mapping[str, Make]) -> dict[Any, Make]:
    """Return makers by primitive, from makers by names in the form that `named` takes."""
    return {primitive: make for names, make in makers.items() for primitive in named(names)}
