"""The gradient of a batch on a mesh: rows in parallel, micro-batches one after another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import CompositionError
from nnopt_jax.parallel.batches import micro_batches
from nnopt_jax.parallel.gathering import gathered_at_use
from nnopt_jax.parallel.meshes import constrain
from nnopt_jax.parallel.shard_specs import Shards
from nnopt_jax.transform.training import Forward, filled
from nnopt_jax.transform.validation import described
from nnopt_jax.typing import Array, ArrayLike, Key


class Weighted(NamedTuple):
    """A sum and its divisor, which a loss may return in place of a mean.

    Sums and weights are added over devices and micro-batches before they are divided, so that
    padded rows and sequences of unequal length count as in one batch on one device.

    Args:
        total: the weighted sum of the losses of all rows.
        weight: the sum of their weights; no gradient flows through it.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.parallel.Weighted(total=6.0, weight=3.0).total
        6.0
    """

    total: ArrayLike
    weight: ArrayLike

    __repr__ = brief_fields


class _Sums(NamedTuple):
    """The loss, weights, aux values and gradients, summed over micro-batches."""

    total: Any
    weight: Any
    aux: Any
    slope: Any


def gradient(
    loss: Callable[..., Any],
    plan: Shards,
    rows: PartitionSpec,
    accumulate: int,
    remat: bool | Callable[..., Any],
    has_aux: bool,
) -> Callable[..., tuple[Any, Any]]:
    """Return a function that differentiates a loss with respect to its parameters.

    Args:
        loss: see `train_step`.
        plan: the plan of the parameters.
        rows: the spec of the rows of a batch.
        accumulate: the number of micro-batches.
        remat: see `train_step`.
        has_aux: see `train_step`.

    Returns:
        `f(forward, batch, args, key) -> (value, slope)` for the result of `forward`; the slope has
        the structure of its `moving`, and is split as the parameters are between steps.
    """
    policy = jax.checkpoint_policies.dots_saveable if remat is True else (remat or None)

    @functools.wraps(loss, updated=())
    def value_of(params: Any, batch: Any, args: Any, key: Key | None) -> tuple[Any, Any]:
        found = loss(params, batch, *args, *(() if key is None else (key,)))
        value, aux = _loss_result(found, has_aux)
        return value.total, (jax.lax.stop_gradient(value.weight), aux)

    value_of_split = gathered_at_use(value_of, plan, policy=policy, is_differentiated=True)

    def sums(ahead: Forward, batch: Any, args: Any, key: Key | None) -> _Sums:
        def of_batch(moving: Any) -> Any:
            return value_of_split(ahead.given(filled(ahead.params, moving)), batch, args, key)

        (total, (weight, aux)), slope = jax.value_and_grad(of_batch, has_aux=True)(ahead.moving)
        return _Sums(total, weight, aux, _split(slope, plan))

    def of_all(ahead: Forward, batch: Any, args: Any, key: Key | None) -> tuple[Any, Any]:
        if accumulate == 1:
            found = sums(ahead, batch, args, key)
        else:
            found = _accumulate(
                lambda micro, own: sums(ahead, micro, args, own),
                micro_batches(batch, accumulate, plan.devices, rows),
                key,
            )
        value = _over(found.total, found.weight)
        slope = jax.tree.map(
            lambda g, x: _over(g, found.weight).astype(x.dtype), found.slope, ahead.moving
        )
        if not has_aux:
            return value, slope
        aux = jax.tree.map(lambda x: x / accumulate, found.aux) if accumulate > 1 else found.aux
        return (value, aux), slope

    return of_all


def _split(slope: Any, plan: Shards) -> Any:
    """Split gradients as the parameters are between steps; those inside of nodes are already."""

    def one(g: Any, spec: PartitionSpec) -> Any:
        return g if g is None or is_node(g) else constrain(g, plan.devices, spec)

    return jax.tree.map(one, slope, plan.logical, is_leaf=lambda x: x is None or is_node(x))


def _loss_result(found: Any, has_aux: bool) -> tuple[Weighted, Any]:
    """Return the result of a loss as a `Weighted`, and its aux value; raise for other results."""
    value, aux = found, None
    if has_aux:
        if isinstance(found, Weighted) or not (isinstance(found, tuple) and len(found) == 2):
            raise CompositionError(
                f"parallel.train_step: the loss returned {described(found)}; with has_aux=True it "
                "is to return the pair (value, aux)."
            )
        value, aux = found
    total, weight = value if isinstance(value, Weighted) else (value, 1.0)
    for name, x in (("value", total), ("weight", weight)):
        if not np.isscalar(x) and getattr(x, "shape", None) != ():
            raise CompositionError(
                f"parallel.train_step: the loss returned {described(x)} for its {name}; give a "
                "scalar, the mean over the rows, or parallel.Weighted(total, weight)."
            )
    weight = jnp.asarray(weight)
    return Weighted(total, weight.astype(jnp.promote_types(weight.dtype, jnp.float32))), aux


def _over(x: Array, weight: Array) -> Array:
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    return x.astype(dtype) / weight.astype(dtype)


def _accumulate(sums: Callable[..., _Sums], micro: Any, key: Key | None) -> _Sums:
    """Sum the loss, weights, aux values and gradients of micro-batches, in float32 at least."""

    def wide(x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise CompositionError(
                "parallel.train_step: the loss returned a PRNG key in aux, which has no mean over "
                "micro-batches; return it apart, or let accumulate be 1."
            )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def one(number: ArrayLike, batch: Any) -> _Sums:
        own = None if key is None else jax.random.fold_in(key, number)
        return jax.tree.map(wide, sums(batch, own))

    def add(before: _Sums, item: Any) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, before, one(*item)), None

    # The first micro-batch runs outside of the loop and gives the sums their shapes and
    # dtypes.
    first = jax.tree.map(lambda x: x[0], micro)
    rest = jax.tree.map(lambda x: x[1:], micro)
    count = jax.tree.leaves(micro)[0].shape[0]
    return jax.lax.scan(add, one(0, first), (jnp.arange(1, count), rest))[0]
