"""What a loss tells about each parameter, averaged over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.errors import SelectionError, StatisticsError, nearest
from nnopt_jax.transform.inert import blanked
from nnopt_jax.transform.training import filled, floats as floats_of

Loss = Callable[..., jax.Array]


def _gradient(loss: Loss, params: Any, batch: Any) -> Any:
    return jax.grad(loss)(params, batch)


def _fisher(loss: Loss, params: Any, batch: Any) -> Any:
    return jax.tree.map(jnp.square, _gradient(loss, params, batch))


def _hessian_gradient(loss: Loss, params: Any, batch: Any) -> Any:
    slope = _gradient(loss, params, batch)
    return jax.jvp(lambda p: _gradient(loss, p, batch), (params,), (slope,))[1]


KINDS: Mapping[str, Callable[[Loss, Any, Any], Any]] = MappingProxyType(
    {"gradient": _gradient, "fisher": _fisher, "hessian_gradient": _hessian_gradient}
)
"""What can be measured, by name."""


def statistics(
    loss: Loss, params: Any, batches: Iterable[Any], names: Iterable[str] = ("gradient",)
) -> dict[str, Any]:
    r"""Measures what methods judge weights by, as means over batches.

    .. math:: \text{gradient } g = \nabla L, \qquad \text{fisher } g \odot g, \qquad
        \text{hessian\_gradient } H g = \nabla^2 L \, g

    The Fisher information is that of batches as they come; batches of one example give the
    empirical Fisher information itself.

    Args:
        loss: `loss(params, batch) -> scalar`.
        params: a pytree of float arrays; integers are left out of account, as zeros.
        batches: any iterable of batches of one shape; all of them are used.
        names: of `"gradient"`, `"fisher"` and `"hessian_gradient"`; `tx.needs` of a transform.

    Returns:
        A tree of the structure of the parameters, in float32, for each name: what
        `tx.init(params, stats=...)` takes.

    Raises:
        SelectionError: a name is unknown.
        StatisticsError: there is no batch.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> loss = lambda params, x: 0.5 * (params["w"] * x).sum() ** 2
        >>> batches = [jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0])]
        >>> nnopt.statistics(loss, {"w": jnp.array([2.0, 1.0])}, batches)
        {'gradient': {'w': Array([1. , 4.5], dtype=float32)}}

    References:
        Pearlmutter 1994, Fast Exact Multiplication by the Hessian (the product by forward over
        reverse differentiation).
    """
    wanted = tuple(names)
    for name in wanted:
        if name not in KINDS:
            raise SelectionError(f"statistics: no statistic {name!r}.{nearest(name, KINDS)}")

    def of_floats(floats: Any, batch: Any) -> jax.Array:
        return loss(filled(params, floats), batch)

    @jax.jit
    def add(total: Any, floats: Any, batch: Any) -> Any:
        found = {name: KINDS[name](of_floats, floats, batch) for name in wanted}
        found = jax.tree.map(lambda x: x.astype(jnp.float32), found)
        return found if total is None else jax.tree.map(jnp.add, total, found)

    floats = floats_of(params)
    total, count = None, 0
    for batch in batches:
        total, count = add(total, floats, batch), count + 1
    if total is None:
        raise StatisticsError("statistics: there is no batch; give at least one.")
    means = jax.tree.map(lambda x: x / count, total)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), blanked(params))
    return {name: filled(zeros, tree) for name, tree in means.items()}
