"""Measurement of the latency of a compiled function."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

CALLS, FEWEST, SECONDS = 100, 5, 2.0


def milliseconds(function: Callable[..., Any], given: Sequence[Any]) -> float:
    """Return the median time of a call after the first one, which compiles.

    Args:
        function: a function of arrays; it is compiled here.
        given: its arguments, as arrays.

    Returns:
        The median in milliseconds of a hundred calls, or of as many as two seconds allow, but of
        at least five.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.trace.cost.latency import milliseconds
        >>> milliseconds(jnp.sin, [jnp.ones(8)]) > 0
        True
    """
    run, given = jax.jit(function), jax.device_put(list(given))
    jax.block_until_ready(run(*given))
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < FEWEST or (len(times) < CALLS and time.perf_counter() - begin < SECONDS):
        start = time.perf_counter()
        jax.block_until_ready(run(*given))
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
