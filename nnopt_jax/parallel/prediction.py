"""Inference on a mesh of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from nnopt_jax.arrays.input_quantized import rounds_inputs
from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import Problems, ShapeError
from nnopt_jax.parallel.batches import pad_batch, rows_of
from nnopt_jax.parallel.gathering import gathered_at_use
from nnopt_jax.parallel.meshes import (
    batch_spec,
    mesh_context,
    named_shardings,
    shard_count,
    wait_if_simulated,
)
from nnopt_jax.parallel.shard_specs import Shards, check_plan, check_planned
from nnopt_jax.transform.training import takes_expressions
from nnopt_jax.tree.devices import automatic, place
from nnopt_jax.tree.paths import flatten


@dataclasses.dataclass(frozen=True, eq=False)
class Predict:
    """A compiled, sharded model: `outputs = forward(params, batch)`.

    Args:
        plan: the plan of the parameters.
        at: the shardings of parameters and of a batch.
        compiled: the model, compiled by `jax.jit`.
        first: a function `first(outputs, count)` that returns the first rows of outputs.
        shares: the number of shards that the rows of a batch must be divisible by.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> plan = nnopt.parallel.specs({"w": jnp.ones(3)}, nnopt.parallel.mesh(data=8))
        >>> forward = nnopt.parallel.predict(lambda params, x: x @ params["w"], plan)
        >>> forward.shares
        8
    """

    plan: Shards
    at: Any
    compiled: Any
    first: Any
    shares: int

    __repr__ = brief_fields

    def __call__(self, params: Any, batch: Any) -> Any:
        """Run the model; pad a batch that does not divide, and return the outputs of its own rows.

        Raises:
            ShapeError: the parameters do not fit the plan, or an output has another number of rows
                than the batch.
        """
        check_planned("parallel.predict", params, self.plan)
        count = rows_of("parallel.predict", batch)
        if count % self.shares:
            batch, _ = pad_batch(batch, count + self.shares - count % self.shares)
        with mesh_context(self.plan.devices):
            outputs = self.compiled(*place((params, batch), self.at))
        outputs = wait_if_simulated(self.plan.devices, outputs)
        return self.first(outputs, count) if count % self.shares else outputs

    def lower(self, params: Any, batch: Any) -> Any:
        """Lower the model for these shapes, to inspect the compiled program."""
        return self.compiled.lower(params, batch)


def predict(
    apply: Callable[..., Any], plan: Shards, *, batch_axes: Sequence[str] | None = None
) -> Predict:
    """Compile a model for a plan, with rows in parallel and parameters gathered where used.

    Packed leaves are transferred packed, and decoded one layer at a time. If `apply` is an
    `nnopt.on_packed`, products multiply their codes, and round activations if leaves say so.

    Args:
        apply: a function `apply(params, batch) -> outputs`, whose outputs have rows on the first
            axis.
        plan: the plan of the parameters, dense or packed.
        batch_axes: the mesh axes that split the batch; by default `data` and `fsdp`, as far as the
            mesh has them.

    Returns:
        A function of parameters and a batch.

    Raises:
        SelectionError: a batch axis is not in the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.ones((8, 1024))}
        >>> plan = nnopt.parallel.specs(params, nnopt.parallel.mesh(fsdp=8))
        >>> forward = nnopt.parallel.predict(lambda params, x: x @ params["kernel"], plan)
        >>> forward(nnopt.parallel.shard(params, plan), jnp.ones((5, 8))).shape
        (5, 1024)
    """
    who = "parallel.predict"
    check_plan(who, plan)
    mesh, rows = plan.devices, batch_spec(plan.mesh, batch_axes, who)
    out = named_shardings(mesh, rows)
    at = plan.shardings, out

    rounds = takes_expressions(apply) is True
    run = gathered_at_use(apply, plan)

    def forward(params: Any, batch: Any) -> Any:
        if not rounds:
            params = jax.tree.map(_without_rounding, params, is_leaf=is_node)
        outputs = run(params, batch)
        _check_rows(outputs, rows_of(who, batch))
        return outputs

    compiled = jax.jit(automatic(forward, mesh, out), in_shardings=at, out_shardings=out)
    return Predict(plan, at, compiled, _first_rows(mesh), shard_count(mesh, rows))


def _without_rounding(leaf: Any) -> Any:
    return leaf.materialize() if rounds_inputs(leaf) else leaf


def _check_rows(outputs: Any, rows: int) -> None:
    """Raise if outputs do not have the rows of the batch."""
    problems = Problems("parallel.predict")
    for path, x in flatten(outputs).items():
        if np.shape(x)[:1] != (rows,):
            problems.add(path or "the output", f"has shape {np.shape(x)} for a batch of {rows} "
                                               "rows; rows come first")  # fmt: skip
    problems.raise_as(ShapeError)


def _first_rows(mesh: Mesh) -> Any:
    """Return a function that takes the first rows of outputs and replicates them."""

    def first(outputs: Any, count: int) -> Any:
        def cut(outputs: Any) -> Any:
            return jax.tree.map(lambda x: x[:count], outputs)

        return automatic(cut, mesh, named_shardings(mesh, PartitionSpec()))(outputs)

    return jax.jit(first, static_argnums=1)
