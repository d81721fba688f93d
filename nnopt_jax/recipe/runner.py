"""The runner: dependencies, stages with checkpoints, and the result."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from nnopt_jax.errors import CheckpointError
from nnopt_jax.interop.orbax import Checkpoints
from nnopt_jax.recipe.dependencies import required_runs, with_dependencies
from nnopt_jax.recipe.inputs import Examples, batches
from nnopt_jax.recipe.measurement import finalize
from nnopt_jax.recipe.metrics_log import Callback, MetricsLog, nonfinite
from nnopt_jax.recipe.recipe_plan import Carry, Phase, RecipePlan, prepare
from nnopt_jax.recipe.run_folder import JsonLines, RunFolder, write_atomically
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.report.html import page
from nnopt_jax.report.result import Result
from nnopt_jax.trace import graph, on_packed
from nnopt_jax.transform import step, trainable, value_and_grad
from nnopt_jax.typing import ArrayLike, Key

__all__ = ["make_step", "run", "statistics_of"]


def run(recipe: Recipe, *, fresh: bool = False, callback: Callback | None = None) -> Result | None:
    """Run a recipe to its end, or continue an interrupted run.

    The folder then holds `model.nnopt`, `metrics.jsonl`, `report.html`, `result.json`,
    `recipe.yaml` and `checkpoints/`. After a kill at any moment, the same call continues from the
    newest checkpoint and ends with the same parameters, bit for bit.

    Args:
        recipe: the recipe.
        fresh: whether to remove the files of an earlier run in the folder.
        callback: called as the run proceeds.

    Returns:
        The result; None on all but the first of several processes.

    Raises:
        NnoptError: the recipe is wrong, training diverged, or the disk is full.

    Example:
        >>> from nnopt_jax import recipe
        >>> recipe.run(recipe.load("configs/pruning/magnitude.yaml"))  # doctest: +SKIP
    """
    callback = callback or Callback()
    folder = RunFolder(recipe.folder)
    if not fresh:
        folder.check_same(recipe)
        if (result := folder.finished()) is not None:
            callback.note(f"{folder.path} holds the finished run; --fresh starts it again")
            return result
    required = list(required_runs(recipe))
    plan = prepare(recipe)
    writes = jax.process_index() == 0  # all processes write checkpoints, one writes files
    if writes:
        folder.claim(recipe, fresh)
    for dependency in required:
        if dependency.recipe is not None:
            run(dependency.recipe, fresh=fresh, callback=callback)
    plan = with_dependencies(plan, required)
    with Checkpoints(folder.checkpoints) as checkpoints:
        runner = _Runner(plan, checkpoints, folder, writes, callback)
        carry = runner.train()
        if plan.placement is not None:  # Every process reads all arrays unsharded.
            anywhere = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), carry)
            carry, _ = checkpoints.restore(anywhere)
    result = None
    if writes:
        result = finalize(plan, carry, runner.rows.rows, folder)
        write_atomically(folder.report, page(result))
        write_atomically(folder.result, json.dumps(result.to_json()))
    if jax.process_count() > 1:  # no process may read a file before it is written
        multihost_utils.sync_global_devices(str(folder.path))
    return result


class _Runner:
    """The training loop of a run over its stages.

    Args:
        plan: the plan of the run.
        checkpoints: the store of checkpoints, written every `checkpoint_every` steps and after each
            stage.
        folder: the folder of the run.
        writes: whether this process writes rows of metrics.
        callback: called as the run goes on.
    """

    def __init__(
        self,
        plan: RecipePlan,
        checkpoints: Checkpoints,
        folder: RunFolder,
        writes: bool,
        callback: Callback,
    ) -> None:
        self.plan, self.checkpoints = plan, checkpoints
        self.done = checkpoints.latest() or 0
        self.rows = JsonLines(folder.metrics, upto=self.done, writes=writes)
        self.log = MetricsLog(plan, self.rows, callback)

    def train(self) -> Carry:
        """Run the unfinished stages, and return the final training state."""
        carry = self._resume()
        for phase in self.plan.phases:
            if phase.last > self.done:
                # A checkpoint from inside of the stage already holds its
                # optimizer and its transforms.
                carry = self._begin(phase, carry) if self.done <= phase.first else carry
                carry = self._train_phase(phase, carry)
        return carry

    def _resume(self) -> Carry:
        """Return the newest checkpoint, or the initial parameters without a checkpoint."""
        carry = Carry(self.plan.model.params, self.plan.model.extra, (), None)
        if not self.done:
            return carry
        for phase in self.plan.phases:
            carry = phase.abstract_begin(carry, self.plan.key)
            # A checkpoint from the end of a stage has the structure of that stage:
            # the next one begins after it.
            if self.done <= phase.last:
                if self.plan.placement is not None:
                    carry = self.plan.placement.placed(phase, carry)
                break
        carry, _ = self.checkpoints.restore(carry, step=self.done)
        if bad := nonfinite(carry):
            raise CheckpointError(
                f"run: the checkpoint of step {self.done} in {self.checkpoints.directory} holds "
                f"NaN or infinity in {', '.join(bad)}. Give --fresh to start again."
            )
        self.log.callback.note(f"continuing after step {self.done}")
        return carry

    def _begin(self, phase: Phase, carry: Carry) -> Carry:
        stats, placement = statistics_of(self.plan, phase, carry), self.plan.placement
        carry = jax.jit(
            lambda carry, stats: phase.begin(carry, self.plan.key, stats),
            out_shardings=None if placement is None else placement.shardings(phase, carry),
        )(carry, stats)
        # `jit` returns unchanged inputs as the same buffers, which a step that donates its carry
        # must not share.
        return jax.tree.map(lambda x: x.copy(), carry)

    def _train_phase(self, phase: Phase, carry: Carry) -> Carry:
        plan, recipe, done = self.plan, self.plan.recipe, max(self.done, phase.first)
        self.log.begin(phase, done - phase.first)
        one_step = make_step(plan, phase)
        feed = batches(plan.data.train, recipe.batch_size, plan.order, start=done)
        if plan.placement is not None:
            feed = plan.placement.feed(feed, recipe.batch_size)
        for number in range(done + 1, phase.last + 1):
            carry, loss = one_step(carry, *next(feed), number)
            self.log.step(number, carry, loss)
            if number % recipe.checkpoint_every == 0 or number == phase.last:
                # Checked before the write, so that no checkpoint holds NaN.
                self.log.check_finite(number, carry, loss)
                self.checkpoints.save(number, carry)
                # The time of writing a checkpoint does not count as the time of a
                # step.
                self.log.start_clock(number)
        return carry


def statistics_of(plan: RecipePlan, phase: Phase, carry: Carry) -> Mapping[str, Any]:
    """Average the statistics that new transforms need over the first batches of a stage.

    Args:
        plan: the plan of the run.
        phase: the stage that is about to begin.
        carry: the training state at the end of the stage before.

    Returns:
        The statistics for `tx.init(params, stats=...)`, measured at the parameters that earlier
        transforms encode; empty if the new transforms need none.
    """
    names = phase.needs(len(carry.state))
    if not names:
        return {}

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits, _ = plan.model.apply(params, carry.extra, x, train=False, key=None)
        return plan.loss(logits, y)

    feed = batches(plan.data.train, plan.recipe.batch_size, plan.order, start=phase.first)
    chosen = [tuple(batch) for batch in itertools.islice(feed, phase.stage.statistics)]
    params = phase.upstream(carry)
    return graph(loss, params, *chosen[0]).observe(params, chosen, names)


def make_step(plan: RecipePlan, phase: Phase) -> Callable[..., Any]:
    """Compile one optimizer step of a phase.

    Args:
        plan: the plan of the run.
        phase: the stage.

    Returns:
        `f(carry, x, y, number) -> (carry, loss)`; it donates the carry.
    """
    tx, model, teacher = phase.tx, plan.model, plan.teacher
    taught = teacher.variables if teacher else None

    @on_packed  # leaves may round the inputs of their product
    def objective(params: Any, batch: Examples, extra: Any, taught: Any, key: Key) -> Any:
        outer, inner = jax.random.split(key)
        x = plan.augment(batch.x, outer)
        logits, extra = model.apply(params, extra, x, train=True, key=inner)
        loss = plan.loss(logits, batch.y)
        return (teacher.mixed(taught, x, logits, loss) if teacher else loss), extra

    def one(carry: Carry, batch: Examples, number: ArrayLike, taught: Any) -> tuple[Carry, Any]:
        params, extra, state, opt_state = carry
        key = jax.random.fold_in(plan.key, number)
        graded = value_and_grad(objective, tx, has_aux=True)
        (value, extra), grads = graded(params, state, batch, extra, taught, key)
        updates, opt_state = phase.optimizer.update(
            grads.train, opt_state, trainable(tx, params, state)
        )
        params, state = step(tx, params, state, updates, grads)
        return Carry(params, extra, state, opt_state), value

    if plan.placement is not None:
        placed = plan.placement.train_step(phase, objective)
        return lambda carry, x, y, number: placed(
            carry, Examples(x, y), taught, jax.random.fold_in(plan.key, number)
        )
    compiled = jax.jit(one, donate_argnums=0)
    return lambda carry, x, y, number: compiled(carry, Examples(x, y), number, taught)
