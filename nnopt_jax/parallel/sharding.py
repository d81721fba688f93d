"""Placement of parameters by a plan, and initialization in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.errors import Problems, ShapeError, nearest
from nnopt_jax.parallel.meshes import settled
from nnopt_jax.parallel.shard_specs import Shards, check_plan
from nnopt_jax.tree.devices import place
from nnopt_jax.tree.paths import flatten


def shard(params: Any, plan: Shards) -> Any:
    """Place parameters as a plan says.

    Args:
        params: arrays of NumPy or JAX, on any devices, of the shapes of the plan. With several
            processes each gives the same values.
        plan: the result of `nnopt.parallel.specs`.

    Returns:
        The same tree; each device holds its share.

    Raises:
        ShapeError: leaves are missing, are too many, or have other shapes; all are listed.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.ones((8, 1024))}
        >>> plan = nnopt.parallel.specs(params, nnopt.parallel.mesh(fsdp=8))
        >>> nnopt.parallel.shard(params, plan)["kernel"].addressable_shards[0].data.shape
        (8, 128)
    """
    check_planned("parallel.shard", params, plan)
    return settled(plan.devices, place(params, plan.shardings))


def sharded_init(init: Callable[..., Any], plan: Shards) -> Callable[..., Any]:
    """Compile an initializer, so that no device ever holds whole parameters.

    Args:
        init: the function that makes the parameters.
        plan: the plan of `jax.eval_shape(init, ...)`.

    Returns:
        `init`, compiled; its result is split as the plan says.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> init = lambda key: {"kernel": jax.random.normal(key, (8, 1024))}
        >>> key = jax.random.key(0)
        >>> plan = nnopt.parallel.specs(jax.eval_shape(init, key), nnopt.parallel.mesh(fsdp=8))
        >>> nnopt.parallel.sharded_init(init, plan)(key)["kernel"].sharding.shard_shape((8, 1024))
        (8, 128)
    """
    return jax.jit(init, out_shardings=plan.shardings)


def check_planned(who: str, params: Any, plan: Shards) -> None:
    """Raise if parameters do not have the paths, shapes and dtypes of a plan."""
    check_plan(who, plan)
    wanted, given = flatten(plan.params, is_node), flatten(params, is_node)
    problems = Problems(who)
    for path in wanted.keys() - given.keys():
        problems.add(path, f"is in the plan and not in the parameters.{nearest(path, given)}")
    for path in given.keys() - wanted.keys():
        problems.add(path, f"is not in the plan.{nearest(path, wanted)} Plan again with specs()")
    for path in wanted.keys() & given.keys():
        if summary(wanted[path]) != summary(given[path]):
            problems.add(path, f"is {summary(given[path])}, planned for {summary(wanted[path])}; "
                               "plan again with specs()")  # fmt: skip
    problems.found.sort()
    problems.raise_as(ShapeError)
