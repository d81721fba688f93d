"""Sparsity schedules: sparsities as functions of the number of updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.settings import Settings
from nnopt_jax.typing import ArrayLike, Schedule

_ROUNDING = 1e-6  # tolerance at the ends of a schedule, for rounding
_LATE = 2**30  # a step at which every schedule has ended


def cubic(sparsity: float, steps: int, begin: int = 0, initial: float = 0.0) -> Schedule:
    r"""Return a schedule that prunes fast at first, when many weights are redundant, then slowly.

    $$ s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{n}\right)^3, \qquad
       t_0 \le t \le t_0 + n $$

    Args:
        sparsity: `s_f`, the final fraction of zeros.
        steps: `n`, the number of updates from start to end.
        begin: `t_0`, the number of updates before the start.
        initial: `s_i`, the initial fraction of zeros.

    Returns:
        The schedule: `count -> float32`.

    Raises:
        ValueRangeError: an argument is out of range.

    Example:
        >>> import nnopt_jax as nnopt
        >>> schedule = nnopt.pruning.cubic(0.8, steps=100, begin=10)
        >>> [round(float(schedule(count)), 3) for count in (0, 10, 60, 110, 200)]
        [0.0, 0.0, 0.7, 0.8, 0.8]

    References:
        Zhu and Gupta 2017, To prune, or not to prune, section 3 (1).
    """
    settings = Settings("pruning.cubic")
    settings.share("sparsity", sparsity, schedule=False)
    settings.integer("steps", steps, 1)
    settings.integer("begin", begin, 0)
    settings.share("initial", initial, schedule=False)
    settings.done()

    def schedule(count: ArrayLike) -> jax.Array:
        left = 1.0 - jnp.clip(_since(begin, count).astype(jnp.float32) / steps, 0.0, 1.0)
        return sparsity + (initial - sparsity) * left**3

    return schedule


def one_shot(sparsity: float, step: int) -> Schedule:
    """Return a schedule that prunes everything at once, after some updates of dense training.

    The sparsity is 0 before update `step`, and `sparsity` from there on.

    Args:
        sparsity: the fraction of zeros.
        step: the number of the first update with that sparsity.

    Returns:
        The schedule: `count -> float32`.

    Raises:
        ValueRangeError: an argument is out of range.

    Example:
        >>> import nnopt_jax as nnopt
        >>> schedule = nnopt.pruning.one_shot(0.5, step=10)
        >>> float(schedule(9)), float(schedule(10))
        (0.0, 0.5)

    References:
        Han et al. 2015, Learning both Weights and Connections, section 3.
    """
    settings = Settings("pruning.one_shot")
    settings.share("sparsity", sparsity, schedule=False)
    settings.integer("step", step, 0)
    settings.done()
    return lambda count: jnp.where(_since(step, count) >= 0, jnp.float32(sparsity), jnp.float32(0))


def iterative(sparsity: float, rounds: int, steps: int, begin: int = 0) -> Schedule:
    r"""Return a schedule that prunes the same fraction of the remaining weights in each round.

    $$ s_t = 1 - (1 - s)^{r / R}, \qquad
       r = \min\left(\left\lfloor \frac{t - t_0}{n} \right\rfloor, R\right) $$

    Set `every=steps` in the pruning transform, so that masks are constant within a round, and train
    for some more steps after the last round. With `pruning.rewind`, this schedule finds lottery
    tickets.

    Args:
        sparsity: `s`, the final fraction of zeros.
        rounds: `R`, the number of times that weights are pruned.
        steps: `n`, the updates of a round, at whose end weights are pruned.
        begin: `t_0`, the number of updates before the first round.

    Returns:
        The schedule: `count -> float32`.

    Raises:
        ValueRangeError: an argument is out of range.

    Example:
        >>> import nnopt_jax as nnopt
        >>> schedule = nnopt.pruning.iterative(0.75, rounds=2, steps=100)
        >>> [float(schedule(count)) for count in (0, 99, 100, 199, 200, 500)]
        [0.0, 0.0, 0.5, 0.5, 0.75, 0.75]

    References:
        Frankle and Carbin 2019, The Lottery Ticket Hypothesis, section 1 (iterative pruning).
    """
    settings = Settings("pruning.iterative")
    settings.share("sparsity", sparsity, schedule=False)
    settings.integer("rounds", rounds, 1)
    settings.integer("steps", steps, 1)
    settings.integer("begin", begin, 0)
    settings.done()
    # The values are looked up, because powers that differ by rounding between compilations would
    # look like a change of the sparsity.
    levels = [1.0 - (1.0 - sparsity) ** (done / rounds) for done in range(rounds)] + [sparsity]

    def schedule(count: ArrayLike) -> jax.Array:
        return jnp.asarray(levels, jnp.float32)[jnp.clip(_since(begin, count) // steps, 0, rounds)]

    return schedule


def _since(begin: int, count: ArrayLike) -> jax.Array:
    return jnp.asarray(count, jnp.int32) - begin


def target(sparsity: Any, count: jax.Array | int) -> Any:
    """Return the sparsity after `count` updates."""
    return jnp.clip(jnp.asarray(sparsity(count)), 0.0, 1.0) if callable(sparsity) else sparsity


def final(sparsity: Any) -> float:
    """Return the final sparsity."""
    with jax.ensure_compile_time_eval():
        return float(target(sparsity, _LATE))


def first(sparsity: Any) -> float:
    """Return the sparsity at `init`."""
    with jax.ensure_compile_time_eval():
        return float(target(sparsity, 0))


def check_schedule(settings: Settings, name: str, share: Any) -> None:
    """Check that a schedule is a fraction from 0 to 1 at its start and at its end."""
    if not callable(share):
        return
    for count in (0, _LATE):
        try:
            with jax.ensure_compile_time_eval():
                given = jnp.asarray(share(jnp.int32(count)))
                found = float(given) if not given.ndim else None
        except Exception as error:
            settings.wrong(name, share, f"fails at update {count}: {type(error).__name__}: {error}")
            return
        if found is None or not -_ROUNDING <= found <= 1 + _ROUNDING:
            said = found if found is not None else f"an array of shape {given.shape}"
            settings.wrong(name, share, f"gives {said} at update {count}; let it give 0 to 1.")
            return


def is_due(every: int | None, sparsity: Any, count: jax.Array, held: jax.Array) -> Any:
    """Return whether a new mask is due: every `every` updates, and when the schedule ends.

    Args:
        every: updates between two choices of the mask; None for never.
        sparsity: a number or a schedule.
        count: int32, the number of this update.
        held: the current sparsity.

    Returns:
        A bool, a Python bool if it depends on settings alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.pruning.schedules import is_due
        >>> is_due(5, lambda count: jnp.minimum(0.1 * count, 0.3), jnp.int32(3), jnp.float32(0.1))
        Array(True, dtype=bool)
    """
    if every is None or every == 1:
        return every is not None
    due = count % every == 0
    if callable(sparsity):
        share = target(sparsity, count)
        due |= (held != share) & (target(sparsity, count + 1) == share)
    return due
