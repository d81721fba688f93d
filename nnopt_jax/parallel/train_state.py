"""The training state and its specs: parameters, and states of transform and optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.tree_util import GetAttrKey, tree_leaves_with_path

from nnopt_jax.arrays.nodes import is_spec
from nnopt_jax.columns import brief_fields
from nnopt_jax.parallel.meshes import named_shardings
from nnopt_jax.parallel.parameter import optimizer_specs
from nnopt_jax.parallel.shard_specs import Shards, bytes_per_device
from nnopt_jax.transform import State, Transform, state_specs, trainable
from nnopt_jax.transform.base import abstract_state


class TrainState(NamedTuple):
    """The training state, a pytree that is checkpointed as a whole.

    Args:
        params: the parameters.
        state: the state of the transform.
        opt_state: the state of the optimizer.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.parallel.TrainState(params=1, state=(), opt_state=2).params
        1
    """

    params: Any
    state: Any
    opt_state: Any

    __repr__ = brief_fields


class Layout(NamedTuple):
    """The shapes and specs of a `TrainState`.

    Args:
        mesh: the devices, or an `AbstractMesh`.
        shapes: the shape and dtype of every array.
        specs: the `PartitionSpec` of every array.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import nnopt_jax as nnopt
        >>> plan = nnopt.parallel.specs({"w": jnp.ones((8, 1024))}, nnopt.parallel.mesh(fsdp=8))
        >>> run = nnopt.parallel.train_step(lambda p, x: p["w"].sum(), optax.adam(1e-3), plan=plan)
        >>> run.layout.device_bytes
        TrainState(params=4096, state=0, opt_state=8196)
    """

    mesh: Any
    shapes: TrainState
    specs: TrainState

    __repr__ = brief_fields

    @property
    def shardings(self) -> TrainState:
        """The `NamedSharding` of every array."""
        return named_shardings(self.mesh, self.specs)

    @property
    def device_bytes(self) -> TrainState:
        """The bytes of parameters, state and optimizer state on one device."""
        return TrainState(
            *(
                bytes_per_device(shapes, specs, self.mesh)
                for shapes, specs in zip(self.shapes, self.specs, strict=True)
            )
        )


def layout(tx: Transform, optimizer: Any, plan: Shards) -> Layout:
    """Derive the specs of the training state from the plan of the parameters.

    Args:
        tx: the transform.
        optimizer: an optax optimizer.
        plan: the plan of the parameters.

    Returns:
        The shapes, specs and shardings of the training state.

    Example:
        >>> import jax, optax
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.parallel.train_state import layout
        >>> on_paper = jax.sharding.AbstractMesh((512,), ("fsdp",))
        >>> params = {"kernel": jax.ShapeDtypeStruct((8192, 8192), "bfloat16")}
        >>> plan = nnopt.parallel.specs(params, on_paper)
        >>> layout(nnopt.chain(), optax.adamw(1e-3), plan).device_bytes
        TrainState(params=262144, state=0, opt_state=524292)
    """
    state = abstract_state(tx, plan.params)
    moved = jax.eval_shape(lambda p, s: trainable(tx, p, s), plan.params, state)
    opt_state = jax.eval_shape(optimizer.init, moved)
    like = state_specs(tx, plan.params, plan.logical, plan.mesh)  # pyright: ignore[reportArgumentType]
    split = jax.tree.map(plan.split_further, state, like)
    learned = jax.tree.map(lambda s: s.learned, split, is_leaf=lambda x: isinstance(x, State))
    known = {
        (GetAttrKey(name), *keys): spec
        for name, tree in (("params", plan.specs), ("learned", learned))
        for keys, spec in tree_leaves_with_path(tree, is_leaf=is_spec)
    }
    specs = TrainState(
        plan.specs, split, optimizer_specs(opt_state, moved, known, plan.split_further)
    )
    return Layout(plan.mesh, TrainState(plan.params, state, opt_state), specs)
