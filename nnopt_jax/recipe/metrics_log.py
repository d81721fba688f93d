"""Progress reports of a run: rows of metrics, and calls of a `Callback`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.input_quantized import rounds_inputs
from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.errors import NonFiniteError
from nnopt_jax.recipe.inputs import evaluate, network
from nnopt_jax.recipe.recipe_plan import Carry, Phase, RecipePlan
from nnopt_jax.recipe.run_folder import JsonLines
from nnopt_jax.transform import trainable
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array

__all__ = ["Callback", "MetricsLog", "nonfinite"]


class Callback:
    """The observer of a run, whose methods do nothing unless a subclass overrides them.

    Example:
        >>> from nnopt_jax.recipe import Callback
        >>> Callback().row({"step": 1, "loss": 0.5})
    """

    def stage(self, name: str, place: str, steps: int, done: int) -> None:
        """Handle the start of a stage; `place` is its position, such as "2/3"."""

    def step(self, done: int) -> None:
        """Handle the number of finished steps of the stage."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Handle a row that was written to `metrics.jsonl`."""

    def note(self, text: str) -> None:
        """Handle a one-line remark for the user."""


class MetricsLog:
    """The metrics log of a run: measures, checks and writes its rows.

    Args:
        plan: the plan of the run.
        rows: the file of rows.
        callback: called with every row.
    """

    phase: Phase

    def __init__(self, plan: RecipePlan, rows: JsonLines, callback: Callback) -> None:
        self.plan, self.rows, self.callback = plan, rows, callback
        self._forward = jax.jit(network(plan.model))
        self._sparsity = jax.jit(_sparsity)

    def begin(self, phase: Phase, done: int) -> None:
        """Start or resume a phase after `done` finished steps."""
        self.phase = phase
        self._encode = jax.jit(
            lambda params, state: _materialize_weights(phase.tx.encode(params, state))
        )
        self._since: tuple[int, float] | None = None  # the first steps only compile
        place = f"{phase.index + 1}/{len(self.plan.phases)}"
        self.callback.stage(phase.stage.name, place, phase.steps, done)

    def start_clock(self, number: int) -> None:
        """Restart the clock that measures the mean time of a step."""
        self._since = number, time.perf_counter()

    def step(self, number: int, carry: Carry, loss: Array) -> None:
        """Write a row of metrics at the end of an epoch and every `log_every` steps."""
        self.callback.step(number - self.phase.first)
        ends_epoch = (number - self.phase.first) % self.phase.in_epoch == 0
        if ends_epoch or number % self.plan.recipe.log_every == 0:
            self._write(number, carry, loss, ends_epoch)

    def _write(self, number: int, carry: Carry, loss: Array, ends_epoch: bool) -> None:
        self.check_finite(number, carry, loss)
        row: dict[str, Any] = {
            "step": number,
            "stage": self.phase.stage.name,
            "epoch": (number - 1) // self.phase.in_epoch + 1,
            "loss": float(loss),
        }
        if self._since is not None and number > self._since[0]:
            first, start = self._since
            row["step_ms"] = 1000 * (time.perf_counter() - start) / (number - first)
        params = self._encode(carry.params, carry.state)
        row["sparsity"] = float(self._sparsity(params))
        data, metric = self.plan.data, self.plan.metric
        if ends_epoch and data.valid is not None:
            row["valid_error"] = evaluate(self._forward, metric, params, carry.extra, data.valid)
        if number == self.phase.last:
            row["test_error"] = evaluate(self._forward, metric, params, carry.extra, data.test)
        self.rows.append(row)
        self.callback.row(row)
        self.start_clock(number)

    def check_finite(self, number: int, carry: Carry, loss: Array) -> None:
        """Raise if training has diverged.

        Raises:
            NonFiniteError: the loss or a trained leaf holds NaN or infinity.
        """
        bad = nonfinite(trainable(self.phase.tx, carry.params, carry.state))
        if math.isfinite(loss) and not bad:
            return
        leaves = ", ".join(bad) if bad else "no leaf yet; look at the data and the loss"
        raise NonFiniteError(
            f"run: stage {self.phase.stage.name!r} diverged by step {number}: the loss is "
            f"{float(loss):.6g}; NaN or infinity in {leaves}. Try a smaller learning rate, or "
            "clip gradients (optax:chain of optax:clip_by_global_norm and the optimizer)."
        )


def nonfinite(tree: Any) -> list[str]:
    """Return the paths of the float leaves that hold NaN or infinity.

    Example:
        >>> import jax.numpy as jnp
        >>> nonfinite({"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(2)})
        ['a']
    """
    finite = jax.device_get(_all_finite(flatten(tree)))
    return [path for path, good in finite.items() if not good]


@jax.jit
def _all_finite(leaves: dict[str, Array]) -> dict[str, Array]:
    floats = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {path: jnp.isfinite(leaf).all() for path, leaf in floats.items()}


def _materialize_weights(encoded: Any) -> Any:
    """Materialize leaves, except those that round the inputs of their product."""
    return jax.tree.map(
        lambda x: x if rounds_inputs(x) else materialize(x), encoded, is_leaf=is_node
    )


def _sparsity(params: Any) -> Array:
    leaves = jax.tree.leaves(materialize(params))
    zeros = jnp.stack([(leaf == 0).sum() for leaf in leaves]).sum()
    return zeros / sum(leaf.size for leaf in leaves)
