"""Times several functions against each other, in turns, in one process.

On a shared machine the speed drifts by tens of percent within seconds, so that times taken one
after the other do not compare. Here each round calls every function once, in alternating order, and
a ratio is the median over rounds of the two times of the same round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """What was measured of one function, in seconds, and as a ratio to the base."""

    median: float
    best: float
    ratio: float

    def __str__(self) -> str:
        """One line, in milliseconds."""
        times = f"{1e3 * self.median:9.3f} ms  (best {1e3 * self.best:9.3f})"
        return f"{times}  {self.ratio:6.3f} x base"


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    *,
    base: str | None = None,
    rounds: int = 25,
    shortest: float = 1e-3,
    budget: float = 60.0,
) -> dict[str, Timing]:
    """Times functions without arguments in turns.

    Args:
        functions: by name; JAX results are waited for.
        base: the name that ratios refer to; default: the first.
        rounds: rounds at most, each calling every function once (or a few times, see `shortest`).
        shortest: seconds; quicker functions are called several times in a round.
        budget: seconds after which no further round starts, once there are five.

    Returns:
        By name: the median and the least time of a call, and the median over rounds of the ratio of
        its time to that of the base (below 1 is faster).
    """
    base = next(iter(functions)) if base is None else base
    repeats = {}
    for name, function in functions.items():
        jax.block_until_ready(function())  # compiles
        repeats[name] = max(1, math.ceil(shortest / max(_time(function, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for i in range(rounds):
        for name in list(functions)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(_time(functions[name], repeats[name]))
        if i >= 4 and time.perf_counter() - begin > budget:
            break
    return {
        name: Timing(
            statistics.median(taken),
            min(taken),
            statistics.median(a / b for a, b in zip(taken, times[base], strict=True)),
        )
        for name, taken in times.items()
    }


def show(title: str, timings: Mapping[str, Timing]) -> None:
    """Prints a title and one line for each function."""
    print(title)
    width = max(map(len, timings))
    for name, timing in timings.items():
        print(f"  {name:{width}}  {timing}", flush=True)


def _time(function: Callable[[], Any], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(function())
    return (time.perf_counter() - begin) / repeats
