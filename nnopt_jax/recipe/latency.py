"""How long a call of a network takes: dense against packed, in turns, and as it is served."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.arrays.prepacking import prepack
from nnopt_jax.report.summary import Latency
from nnopt_jax.typing import Params

ROUNDS, SECONDS, FEWEST = 100, 4.0, 5


def latency(
    run: Callable[..., Any],
    dense: Params,
    packed: Params,
    *rest: Any,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> Latency:
    """Times a compiled function on dense and on packed parameters, a call of each in turn.

    The speed of a shared machine drifts within seconds; of two calls side by side it is nearly the
    same. Each round begins with the other one. The first call of each compiles and is not counted.

    Args:
        run: `run(params, *rest)`.
        dense: arrays.
        packed: the same, packed.
        *rest: further arguments.
        rounds: calls of each, at most.
        seconds: after which no round begins, once there are five.

    Returns:
        The `Latency`.

    Example:
        >>> from nnopt_jax.recipe.latency import latency
        >>> latency(lambda params: params, 1, 2, rounds=5).dense < 1000
        True
    """
    both = dense, packed
    for params in both:
        jax.block_until_ready(run(params, *rest))
    times: tuple[list[float], list[float]] = [], []
    begin = time.perf_counter()
    while len(times[0]) < rounds:
        if len(times[0]) >= FEWEST and time.perf_counter() - begin > seconds:
            break
        first = len(times[0]) % 2
        for which in (first, 1 - first):
            start = time.perf_counter()
            jax.block_until_ready(run(both[which], *rest))
            times[which].append(1000 * (time.perf_counter() - start))
    ours, theirs = times
    return Latency(
        statistics.median(ours),
        statistics.median(theirs),
        min(ours),
        min(theirs),
        statistics.median(a / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True)),
    )


def laid_out(packed: Params) -> Params | None:
    """Packed parameters as `nnopt.prepack` readies them for serving.

    Returns:
        What `prepack(packed, dense=True)` makes; None where it changes no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.recipe.latency import laid_out
        >>> laid_out({"bias": jnp.zeros(3)}) is None
        True
    """
    ready = prepack(packed, dense=True)
    pairs = zip(*(jax.tree.leaves(tree, is_leaf=is_node) for tree in (packed, ready)), strict=True)
    return ready if any(one is not other for one, other in pairs) else None
