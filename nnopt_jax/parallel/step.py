"""The training step, compiled for any mesh, transform and optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import CompositionError
from nnopt_jax.parallel.batches import check_divisible
from nnopt_jax.parallel.gradients import gradient
from nnopt_jax.parallel.meshes import (
    batch_spec,
    mesh_context,
    named_shardings,
    shard_count,
    wait_if_simulated,
)
from nnopt_jax.parallel.shard_specs import Shards, check_plan, check_planned
from nnopt_jax.parallel.train_state import Layout, TrainState, layout
from nnopt_jax.settings import Settings
from nnopt_jax.transform import Transform, chain, step, trainable
from nnopt_jax.transform.training import forward, leaves_without_gradient
from nnopt_jax.transform.validation import check_transforms, described
from nnopt_jax.tree.devices import automatic, is_placed, place
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Key


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """A compiled, sharded training step: `state, loss = step(state, batch)`.

    Args:
        plan: the plan of the parameters.
        layout: the shapes and specs of the training state.
        at: the shardings of a batch, further arguments and a key.
        compiled: the step, compiled by `jax.jit`.
        start: a function that makes the initial state.
        shares: the number of shards that the rows of a batch must be divisible by.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import nnopt_jax as nnopt
        >>> plan = nnopt.parallel.specs({"w": jnp.ones(8)}, nnopt.parallel.mesh(fsdp=8), least=0)
        >>> run = nnopt.parallel.train_step(
        ...     lambda p, x: (x * p["w"]).sum(), optax.sgd(1.0), plan=plan
        ... )
        >>> run.abstract.params["w"].sharding == plan.shardings["w"]
        True
    """

    plan: Shards
    layout: Layout
    at: Any
    compiled: Any
    start: Callable[..., TrainState]
    shares: int

    __repr__ = brief_fields

    def init(self, params: Any, *, key: Key | None = None, stats: Any = None) -> TrainState:
        """Shard parameters, and make the initial states of the transform and the optimizer.

        Args:
            params: the parameters, with the shapes of the plan.
            key: the key of transforms that draw random numbers.
            stats: the statistics of `graph.observe`, for transforms that need them.

        Returns:
            The initial state.

        Raises:
            ShapeError: the parameters do not fit the plan.
        """
        check_planned("parallel.train_step", params, self.plan)
        with mesh_context(self.plan.devices):
            return self.start(params, key, stats)

    @property
    def abstract(self) -> TrainState:
        """The shapes, dtypes and shardings of the state, for `Checkpoints.restore`."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self.layout.shapes,
            self.layout.shardings,
        )

    def __call__(
        self, state: TrainState, batch: Any, *args: Any, key: Key | None = None
    ) -> tuple[TrainState, Any]:
        """Run one optimizer step.

        Args:
            state: the state after the last step; a donated state cannot be used again.
            batch: a pytree of arrays `(rows, ...)`.
            *args: further arguments of the loss, equal on every device.
            key: a key that the loss takes last, a different one for each micro-batch.

        Returns:
            The next state and the loss; with `has_aux`, the pair of the loss and its aux.

        Raises:
            ShapeError: the rows are not divisible by the mesh and the accumulation.
            CompositionError: the state belongs to another step, or was donated.
        """
        check_divisible("parallel.train_step", batch, self.shares,
                          " (parallel.feed(uneven='pad') fills a last one up)")  # fmt: skip
        if self.plan.devices.size > 1 and any(map(_is_donated, jax.tree.leaves(state))):
            _check_state(state, self.layout.shapes)  # running it would end the process
        given = batch, args, key
        given = given if is_placed(given, self.at) else place(given, self.at)
        try:
            with mesh_context(self.plan.devices):
                found = self.compiled(state, *given)
        except Exception:
            # Only then, because comparing the structures takes as long as a small step.
            _check_state(state, self.layout.shapes)
            raise
        return wait_if_simulated(self.plan.devices, found)

    def lower(self, state: TrainState, batch: Any, *args: Any, key: Key | None = None) -> Any:
        """Lower the step for these shapes, to inspect the compiled program."""
        with mesh_context(self.plan.devices):
            return self.compiled.lower(state, batch, args, key)


def train_step(
    loss: Callable[..., Any],
    optimizer: Any,
    tx: Transform | None = None,
    *,
    plan: Shards,
    accumulate: int = 1,
    remat: bool | Callable[..., Any] = False,
    donate: bool = True,
    has_aux: bool = False,
    batch_axes: Sequence[str] | None = None,
) -> TrainStep:
    """Build the training step for a plan: data, tensor and parameter parallelism in one program.

    The batch is split by rows. Parameters and the states of transform and optimizer are split by
    the plan. Parameters are gathered where the loss uses them, a stack of layers one layer at a
    time and packed leaves packed, and again in the backward pass; gradients are reduced to shards
    where they arise. Frozen leaves get no gradient. The mesh may have Auto or Explicit axes.

    Args:
        loss: a function `loss(params, batch, *args) -> scalar`, the mean over rows, or `Weighted`,
            whose mean over all rows is exact for rows of different weights. It gets the dense
            parameters of `tx`; for `nnopt.on_packed` see `nnopt.value_and_grad`.
        optimizer: an optax optimizer; one that takes `value`, such as `reduce_on_plateau`, gets the
            loss.
        tx: the transform; by default none.
        plan: the result of `nnopt.parallel.specs`.
        accumulate: the number of micro-batches of a batch, one after another; their gradients are
            summed in float32.
        remat: what the backward pass recomputes, layer by layer, where the model does not itself
            recompute: True stores only results of matrix products; or a policy of
            `jax.checkpoint_policies`.
        donate: whether the memory of a state is reused for the next one.
        has_aux: whether the loss returns `(value, aux)`; with micro-batches, aux is averaged, in
            float32 at least.
        batch_axes: the mesh axes that split the batch; by default `data` and `fsdp`, as far as the
            mesh has them.

    Returns:
        The training step.

    Raises:
        ValueRangeError: a setting is out of range.
        SelectionError: a batch axis is not in the mesh.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.zeros((1024, 8))}
        >>> plan = nnopt.parallel.specs(params, nnopt.parallel.mesh(data=2, fsdp=4))
        >>> loss = lambda params, x: ((x @ params["kernel"] - 1.0) ** 2).mean()
        >>> run = nnopt.parallel.train_step(loss, optax.sgd(0.1), plan=plan, accumulate=2)
        >>> state = run.init(params)
        >>> state, value = run(state, jnp.ones((16, 1024)))
        >>> value, state.params["kernel"].addressable_shards[0].data.shape
        (Array(1., dtype=float32), (256, 8))

    References:
        Rajbhandari et al., ZeRO, arXiv:1910.02054; Shoeybi et al., Megatron-LM, arXiv:1909.08053;
        Xu et al., GSPMD, arXiv:2105.04663.
    """
    import optax

    who = "parallel.train_step"
    check_plan(who, plan)
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        raise CompositionError(
            f"{who}: optimizer is {described(optimizer)}; give one of optax, optax.adamw(1e-3)."
        )
    if tx is not None:
        check_transforms(who, [tx])
    settings = Settings(who)
    settings.integer("accumulate", accumulate, 1)
    settings.flag("donate", donate)
    if not isinstance(remat, bool) and not callable(remat):
        settings.wrong("remat", remat, "is neither a flag nor a policy.")
    settings.done()
    tx = chain() if tx is None else tx
    mesh, rows = plan.devices, batch_spec(plan.mesh, batch_axes, who)
    state_layout = layout(tx, optimizer, plan)
    still = leaves_without_gradient(tx, plan.params, state_layout.shapes.state)
    update = optax.with_extra_args_support(optimizer).update
    differentiate = gradient(loss, plan, rows, accumulate, remat, has_aux)

    def one(now: TrainState, batch: Any, args: Any, key: Key | None) -> tuple[TrainState, Any]:
        ahead = forward(tx, now.params, now.state, loss, still)
        value, slope = differentiate(ahead, batch, args, key)
        grads = ahead.pull_back(slope)
        moved = trainable(tx, now.params, now.state)
        cost = value[0] if has_aux else value
        updates: Any
        updates, opt_state = update(grads.train, now.opt_state, moved, value=cost)
        params, state = step(tx, now.params, now.state, updates, grads)
        return TrainState(params, state, opt_state), value

    whole = named_shardings(mesh, PartitionSpec())
    at, out = (named_shardings(mesh, rows), whole, whole), (state_layout.shardings, whole)
    compiled = jax.jit(
        automatic(one, mesh, out),
        in_shardings=(state_layout.shardings, *at),
        out_shardings=out,
        donate_argnums=(0,) if donate else (),
    )
    start = _sharded_start(tx, optimizer, state_layout)
    return TrainStep(plan, state_layout, at, compiled, start, shard_count(mesh, rows) * accumulate)


def _check_state(state: TrainState, wanted: TrainState) -> None:
    """Raise if a state was donated or belongs to another step."""
    if jax.tree.structure(state) != jax.tree.structure(wanted):
        raise CompositionError(
            "parallel.train_step: the state is not of this step; give what init(params), the step "
            "before, or Checkpoints.restore(run.abstract) returned."
        )
    if any(map(_is_donated, jax.tree.leaves(state))):
        path = next(path for path, x in flatten(state).items() if _is_donated(x))
        raise CompositionError(
            f"parallel.train_step: {path} of the state was given away to an earlier step; go on "
            "with what that step returned, or let donate=False keep both."
        )


def _is_donated(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted()


def _sharded_start(
    tx: Transform, optimizer: Any, state_layout: Layout
) -> Callable[..., TrainState]:
    """Return a function that makes the initial state, sharded from the beginning."""

    def start(params: Any, key: Key | None, stats: Any) -> TrainState:
        at = state_layout.shardings
        # Copied, because a shard may be memory of the caller, which the first step would donate.
        params = jax.tree.map(jnp.copy, place(params, at.params))
        stats = dict(stats) if isinstance(stats, Mapping) else stats
        stats, key = place((stats, key), NamedSharding(state_layout.mesh, PartitionSpec()))
        state = jax.jit(lambda p, s, k: tx.init(p, stats=s, key=k), out_shardings=at.state)(
            params, stats, key
        )
        opt_state = jax.jit(
            lambda p, s: optimizer.init(trainable(tx, p, s)), out_shardings=at.opt_state
        )(params, state)
        return wait_if_simulated(state_layout.mesh, TrainState(params, state, opt_state))

    return start
