"""Pipeline parallelism: blocks on consecutive devices, by GPipe or circular schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from nnopt_jax.arrays.nodes import summary
from nnopt_jax.errors import CompositionError, Problems, ShapeError
from nnopt_jax.parallel.batches import check_divisible, micro_batches
from nnopt_jax.parallel.meshes import (
    batch_spec,
    check_mesh,
    named_shardings,
    shard_count,
    with_automatic_axes,
)
from nnopt_jax.settings import Settings
from nnopt_jax.transform.validation import described
from nnopt_jax.tree.devices import automatic
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array


def stack_stages(blocks: Sequence[Any], stages: int, *, repeats: int = 1) -> Any:
    """Arrange the parameters of blocks for a pipeline.

    Block `l` belongs to stage `(l // K) % stages`; a stage runs K blocks at a time.

    Args:
        blocks: the parameters of each block, in order; trees of one structure and shape.
        stages: the number of devices along the pipeline.
        repeats: the number of times that a batch passes all stages; more repeats mean shorter
            bubbles, but more messages.

    Returns:
        One tree of leaves `(repeats, stages, K, ...)`; its spec is `(None, "stage")`.

    Raises:
        ShapeError: the number of blocks is not divisible, or blocks differ.
        CompositionError: the blocks are not a list.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.parallel import stack_stages
        >>> blocks = [{"scale": jnp.full(3, i, jnp.float32)} for i in range(8)]
        >>> stack_stages(blocks, stages=2, repeats=2)["scale"][:, :, :, 0]
        Array([[[0., 1.],
                [2., 3.]],
        <BLANKLINE>
               [[4., 5.],
                [6., 7.]]], dtype=float32)
    """
    who = "parallel.stack_stages"
    settings = Settings(who)
    settings.integer("stages", stages, 1)
    settings.integer("repeats", repeats, 1)
    settings.done()
    if not isinstance(blocks, Sequence):
        raise CompositionError(f"{who}: blocks are {described(blocks)}; give a list of trees.")
    if not blocks or len(blocks) % (stages * repeats):
        raise ShapeError(
            f"{who}: {len(blocks)} blocks do not divide into {stages} stages x {repeats} repeats; "
            f"their number must be a multiple of {stages * repeats}."
        )
    problems = Problems(who)
    first = {path: summary(leaf) for path, leaf in flatten(blocks[0]).items()}
    for number, block in enumerate(blocks):
        if {path: summary(leaf) for path, leaf in flatten(block).items()} != first:
            problems.add(f"block {number}", "has other leaves, shapes or dtypes than block 0")
    problems.raise_as(ShapeError)
    shape = (repeats, stages, len(blocks) // (stages * repeats))
    return jax.tree.map(lambda *x: jnp.stack(x).reshape(*shape, *x[0].shape), *blocks)


def unstack_stages(staged: Any) -> list[Any]:
    """Return the separate blocks; the inverse of `stack_stages`.

    Args:
        staged: a tree of leaves `(repeats, stages, K, ...)`.

    Returns:
        The blocks in order.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.parallel import stack_stages, unstack_stages
        >>> unstack_stages(stack_stages([{"scale": jnp.ones(2)}] * 4, stages=2))[3]
        {'scale': Array([1., 1.], dtype=float32)}
    """
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), staged)
    count = jax.tree.leaves(flat)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: x[i], flat) for i in range(count)]


def bubble(stages: int, microbatches: int, repeats: int = 1) -> float:
    """Return the bubble: the fraction of time that each stage of a pipeline waits.

    (S - 1) / (R M + S - 1)

    Args:
        stages: S.
        microbatches: M.
        repeats: R.

    Returns:
        A number from 0 to 1.

    Example:
        >>> from nnopt_jax.parallel import bubble
        >>> bubble(stages=4, microbatches=8), bubble(stages=4, microbatches=8, repeats=2)
        (0.2727272727272727, 0.15789473684210525)
    """
    settings = Settings("parallel.bubble")
    for name, value in [("stages", stages), ("microbatches", microbatches), ("repeats", repeats)]:
        settings.integer(name, value, 1)
    settings.done()
    return (stages - 1) / (repeats * microbatches + stages - 1)


def pipeline(
    block: Callable[[Any, Any], Any],
    mesh: Mesh,
    *,
    microbatches: int,
    axis: str = "stage",
    remat: bool = True,
) -> Callable[[Any, Any], Any]:
    """Return a function that applies blocks in order, each on the device that holds it.

    A batch is split into micro-batches; while one is in the second stage, the next is in the first.
    Each stage runs its K blocks and passes the result on; with `repeats`, a micro-batch passes all
    stages that many times. Only the stage axis is manual: inside, batches stay split over `data`,
    and leaves over `model`. The function is differentiable, and its backward pass is a pipeline,
    too.

    Args:
        block: `block(params, x) -> x`; the result has the shapes and dtypes of `x`, an array
            `(rows, ...)` or a pytree of them.
        mesh: the devices.
        microbatches: M; with repeats, at least the number of stages.
        axis: the mesh axis of the stages.
        remat: whether the backward pass recomputes the inner values of a block.

    Returns:
        `f(staged, x) -> x` for leaves as `stack_stages` arranges them.

    Raises:
        ShapeError: rows are not divisible, leaves have another number of stages, or there are too
            few micro-batches.
        ValueRangeError: `axis` is not an axis of the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax import parallel
        >>> mesh = parallel.mesh(data=2, stage=4)
        >>> staged = parallel.stack_stages([{"scale": jnp.array([2.0])}] * 4, stages=4)
        >>> run = parallel.pipeline(lambda p, x: p["scale"] * x, mesh, microbatches=2)
        >>> run(staged, jnp.ones(4))
        Array([16., 16., 16., 16.], dtype=float32)

    References:
        Huang et al., GPipe, arXiv:1811.06965; Narayanan et al. (circular), arXiv:2104.04473.
    """
    who = "parallel.pipeline"
    check_mesh(who, mesh)
    settings = Settings(who)
    settings.integer("microbatches", microbatches, 1)
    settings.choice("axis", axis, tuple(mesh.shape))
    settings.done()
    given, mesh = mesh, with_automatic_axes(mesh)
    rows = batch_spec(mesh, None, who)
    ways = shard_count(mesh, rows) * microbatches
    stages = mesh.shape[axis]
    inner = jax.checkpoint(block) if remat else block

    def run(staged: Any, x: Any) -> Any:
        repeats = _check_staged(who, staged, stages, microbatches)
        check_divisible(who, x, ways, "")
        cut = micro_batches(x, microbatches, mesh, rows)
        turn = jax.shard_map(
            _schedule(inner, axis, stages, microbatches, repeats),
            mesh=mesh,
            in_specs=(PartitionSpec(None, axis), PartitionSpec(), PartitionSpec(axis)),
            out_specs=PartitionSpec(),
            axis_names={axis},
        )
        # The number of the stage is data: the compiler has no index of a manual axis among
        # automatic ones.
        out = turn(staged, cut, jnp.arange(stages))
        return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), out)

    def placed(staged: Any, x: Any) -> Any:
        return automatic(run, given, named_shardings(given, rows))(staged, x)

    return jax.jit(placed)


def _schedule(
    block: Callable[[Any, Any], Any], axis: str, stages: int, count: int, repeats: int
) -> Callable[..., Any]:
    """Return the program that each stage runs: a scan over the ticks of the schedule."""

    def stage(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, p: (block(p, h), None), x, params)[0]

    def run(staged: Any, cut: Any, index: Array) -> Any:
        staged, index = jax.tree.map(lambda a: a[:, 0], staged), index[0]
        cut = jax.tree.map(lambda a: _wide(jax.lax.pcast, a, (axis,), to="varying"), cut)
        ring = [(i, (i + 1) % stages) for i in range(stages)]

        def tick(carry: tuple[Any, Any], now: Array) -> tuple[tuple[Any, Any], Any]:
            arrived, returned = carry
            age = now - index  # negative before the first micro-batch is here: what is made until
            turn, micro = jnp.clip(age // count, 0, repeats - 1), age % count  # then is dropped
            fresh = _at(cut, micro)
            if repeats > 1:
                fresh = _where(turn == 0, fresh, _at(returned, micro))
            out = stage(_at(staged, turn), _where(index == 0, fresh, arrived))
            passed = jax.tree.map(lambda a: jax.lax.ppermute(a, axis, ring), out)
            if repeats > 1:  # the first stage keeps results of the last one until their turn
                slot = (now - (stages - 1)) % count
                kept = _where(now >= stages - 1, passed, _at(returned, slot))
                returned = jax.tree.map(lambda a, new: a.at[slot].set(new), returned, kept)
            return (passed, returned), out

        # Not zeros: if a block has no derivative at zero, the gradient would be NaN, even if
        # dropped.
        start = _at(cut, 0), cut if repeats > 1 else None
        ticks = jnp.arange(count * repeats + stages - 1)
        _, outs = jax.lax.scan(tick, start, ticks)
        last = jax.tree.map(lambda a: a[count * (repeats - 1) + stages - 1 :], outs)
        ours = jax.tree.map(lambda a: jnp.where(index == stages - 1, a, jnp.zeros_like(a)), last)
        return jax.tree.map(lambda a: _wide(jax.lax.psum, a, axis), ours)

    return run


def _wide(message: Callable[..., Array], a: Array, *args: Any, **kwargs: Any) -> Array:
    """Communicate narrow floats as float32, because XLA sums no narrower floats on CPUs."""
    narrow = jnp.issubdtype(a.dtype, jnp.floating) and jnp.finfo(a.dtype).bits < 32
    return message(a.astype(jnp.float32) if narrow else a, *args, **kwargs).astype(a.dtype)


def _at(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, False), tree)


def _where(condition: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _check_staged(who: str, staged: Any, stages: int, microbatches: int) -> int:
    """Return the number of repeats; raise if leaves are not arranged for this pipeline."""
    problems = Problems(who)
    shapes = {path: leaf.shape[:3] for path, leaf in flatten(staged).items()}
    for path, shape in shapes.items():
        if len(shape) < 3 or shape[1] != stages or shape[0] != next(iter(shapes.values()))[0]:
            problems.add(path, f"begins with axes {shape}; wanted (repeats, {stages}, blocks), as "
                               f"stack_stages(blocks, stages={stages}) makes them")  # fmt: skip
    if not shapes:
        problems.add("", "staged holds no leaf; give what stack_stages(blocks) returns")
    problems.raise_as(ShapeError)
    repeats = next(iter(shapes.values()))[0]
    if repeats > 1 and microbatches < stages:
        raise ShapeError(
            f"{who}: {microbatches} micro-batches are fewer than the {stages} stages, which "
            f"repeats do not allow; give microbatches={stages} or more."
        )
    return repeats
