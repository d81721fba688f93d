"""The loop of a run: stages in order, rows of metrics, checkpoints, and going on after a stop."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.input_quantized import rounds_inputs
from nnopt_jax.arrays.nodes import is_node, materialize, show
from nnopt_jax.errors import CheckpointError, NonFiniteError
from nnopt_jax.interop.orbax import Checkpoints
from nnopt_jax.recipe.data import batches
from nnopt_jax.recipe.evaluate import evaluate, forward
from nnopt_jax.recipe.measure import measure
from nnopt_jax.recipe.phases import Carry, Phase, make_step
from nnopt_jax.recipe.setup import Setup
from nnopt_jax.recipe.watch import Watch
from nnopt_jax.report.writers import JsonLines
from nnopt_jax.transform import trainable
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array


def resume(setup: Setup, checkpoints: Checkpoints) -> tuple[Carry, int]:
    """Where a run goes on.

    Args:
        setup: what `prepare` returned.
        checkpoints: those of the run.

    Returns:
        The newest checkpoint and how many steps had been made; the initial parameters and 0
        where there is none.

    Raises:
        CheckpointError: the newest checkpoint is damaged, or holds NaN.
    """
    carry = Carry(setup.model.params, setup.model.extra, (), None)
    done = checkpoints.latest()
    if done is None:
        return carry, 0
    for phase in setup.phases:
        carry = phase.abstract_begin(carry, setup.key)
        if done <= phase.last:
            if setup.spread is not None:
                carry = setup.spread.placed(phase, carry)
            break
    carry, _ = checkpoints.restore(carry, step=done)
    if bad := _nonfinite(carry):
        raise CheckpointError(
            f"run: the checkpoint of step {done} in {checkpoints.directory} holds NaN or infinity "
            f"in {', '.join(bad)}. Give --fresh to start again."
        )
    return carry, done


def train(
    setup: Setup, checkpoints: Checkpoints, rows: JsonLines, carry: Carry, done: int, watch: Watch
) -> Carry:
    """Runs the stages that are not done.

    Args:
        setup: what `prepare` returned.
        checkpoints: gets one every `checkpoint_every` steps and at the end of each stage.
        rows: gets one every `log_every` steps and at the end of each epoch.
        carry: what `resume` returned.
        done: steps made so far.
        watch: is told of progress.

    Returns:
        What the last stage left.

    Raises:
        NonFiniteError: training diverged.
    """
    for phase in setup.phases:
        if phase.last <= done:
            continue
        if done <= phase.first:
            stats = measure(setup, phase, carry)
            over = setup.spread
            carry = jax.jit(
                lambda c, s, p=phase: p.begin(c, setup.key, s),
                out_shardings=over.shardings(phase, carry.extra) if over is not None else None,
            )(carry, stats)
            # What jit hands through unchanged is shared; each step gives its carry away.
            carry = jax.tree.map(lambda x: x.copy(), carry)
        log = _Log(setup, phase, rows, watch)
        carry = _train_phase(setup, phase, checkpoints, log, carry, max(done, phase.first))
    return carry


def _train_phase(
    setup: Setup, phase: Phase, checkpoints: Checkpoints, log: _Log, carry: Carry, done: int
) -> Carry:
    recipe = setup.recipe
    place = f"{phase.index + 1}/{len(setup.phases)}"
    log.watch.stage(phase.stage.name, place, phase.steps, done - phase.first)
    step = make_step(
        phase, setup.model, setup.loss, setup.augment, setup.key, setup.teacher, setup.spread
    )
    feed = batches(setup.data.train, recipe.batch_size, setup.order, start=done)
    if setup.spread is not None:
        feed = setup.spread.feed(feed, recipe.batch_size)
    for number in range(done + 1, phase.last + 1):
        x, y = next(feed)
        carry, loss = step(carry, x, y, number)
        log.watch.step(number - phase.first)
        if log.due(number):
            log.write(number, carry, loss)
        if number % recipe.checkpoint_every == 0 or number == phase.last:
            log.require_finite(number, carry, loss)
            checkpoints.save(number, carry)
            log.start_clock(number)
    return carry


class _Log:
    """Writes the rows of one phase."""

    def __init__(self, setup: Setup, phase: Phase, rows: JsonLines, watch: Watch) -> None:
        self.setup, self.phase, self.rows, self.watch = setup, phase, rows, watch
        self.forward = forward(setup.model)
        self.show = jax.jit(lambda params, state: _in_use(phase.tx.encode(params, state)))
        self.sparsity = jax.jit(_sparsity)
        self.since: tuple[int, float] | None = None  # the first steps compile, and do not count

    def start_clock(self, number: int) -> None:
        self.since = number, time.perf_counter()

    def due(self, number: int) -> bool:
        return number % self.setup.recipe.log_every == 0 or self._ends_epoch(number)

    def _ends_epoch(self, number: int) -> bool:
        return (number - self.phase.first) % self.phase.in_epoch == 0

    def write(self, number: int, carry: Carry, loss: Array) -> None:
        self.require_finite(number, carry, loss)
        row: dict[str, Any] = {
            "step": number,
            "stage": self.phase.stage.name,
            "epoch": (number - 1) // self.phase.in_epoch + 1,
            "loss": float(loss),
        }
        if self.since is not None and number > self.since[0]:
            first, start = self.since
            row["step_ms"] = 1000 * (time.perf_counter() - start) / (number - first)
        shown = self.show(carry.params, carry.state)
        row["sparsity"] = float(self.sparsity(shown))
        if self._ends_epoch(number):
            row |= self._errors(shown, carry.extra, number)
        self.rows.append(row)
        self.watch.row(row)
        self.start_clock(number)

    def _errors(self, shown: Any, extra: Any, number: int) -> dict[str, float]:
        """The error on the validation split, and at the end of a stage on the test split."""
        data, metric = self.setup.data, self.setup.metric
        splits = {"valid_error": data.valid}
        if number == self.phase.last:
            splits["test_error"] = data.test
        return {
            name: evaluate(self.forward, metric, shown, extra, split)
            for name, split in splits.items()
            if split is not None
        }

    def require_finite(self, number: int, carry: Carry, loss: Array) -> None:
        moved = trainable(self.phase.tx, carry.params, carry.state)
        bad = _nonfinite(moved)
        if math.isfinite(loss) and not bad:
            return
        leaves = ", ".join(bad) if bad else "no leaf yet; look at the data and the loss"
        raise NonFiniteError(
            f"run: stage {self.phase.stage.name!r} diverged by step {number}: the loss is "
            f"{float(loss):.6g}; NaN or infinity in {leaves}. Try a smaller learning rate, or "
            "clip gradients (optax:chain of optax:clip_by_global_norm and the optimizer)."
        )


def _nonfinite(tree: Any) -> list[str]:
    """Paths of the float leaves that hold NaN or infinity."""
    leaves = flatten(tree)
    fine = jax.device_get(_all_finite(leaves))
    return [path for path, good in fine.items() if not good]


@jax.jit
def _all_finite(leaves: dict[str, Array]) -> dict[str, Array]:
    floats = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {path: jnp.isfinite(leaf).all() for path, leaf in floats.items()}


def _in_use(encoded: Any) -> Any:
    """Dense parameters, but for leaves that round what they are multiplied with."""
    return jax.tree.map(lambda x: x if rounds_inputs(x) else show(x), encoded, is_leaf=is_node)


def _sparsity(shown: Any) -> Array:
    leaves = jax.tree.leaves(materialize(shown))
    zeros = jnp.stack([(leaf == 0).sum() for leaf in leaves]).sum()
    return zeros / sum(leaf.size for leaf in leaves)
