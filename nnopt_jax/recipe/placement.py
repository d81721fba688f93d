"""The placement of a run's arrays on a mesh of devices, and its training step there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nnopt_jax import parallel
from nnopt_jax.errors import NnoptError, RecipeError
from nnopt_jax.parallel.batches import check_divisible
from nnopt_jax.parallel.meshes import batch_spec, shard_count
from nnopt_jax.parallel.train_state import layout
from nnopt_jax.recipe.inputs import Examples
from nnopt_jax.recipe.schema import Parallel
from nnopt_jax.settings import Settings

__all__ = ["Placement", "place_run"]


@dataclass(frozen=True)
class Placement:
    """The placement of a run on a mesh.

    Args:
        wanted: the parallelism settings of the recipe.
        shards: the sharding of the parameters.
    """

    wanted: Parallel
    shards: parallel.Shards

    def train_step(self, phase: Any, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Compile an optimizer step on the mesh.

        Args:
            phase: the phase of the run.
            loss: `(params, batch, extra, teacher's variables, key) -> (scalar, extra)`.

        Returns:
            `f(carry, batch, teacher's variables, key) -> (carry, loss)`; it donates the carry.
        """
        run = parallel.train_step(
            loss,
            phase.optimizer,
            phase.tx,
            plan=self.shards,
            accumulate=self.wanted.accumulate,
            remat=self.wanted.remat,
            has_aux=True,
        )

        def step(carry: Any, batch: Examples, taught: Any, key: Any) -> tuple[Any, Any]:
            now = parallel.TrainState(carry.params, carry.state, carry.opt_state)
            now, (value, extra) = run(now, batch, carry.extra, taught, key=key)
            moved = {"params": now.params, "state": now.state, "opt_state": now.opt_state}
            return carry._replace(extra=extra, **moved), value

        return step

    def shardings(self, phase: Any, carry: Any) -> Any:
        """Return the sharding of every array of a phase's training state."""
        at = layout(phase.tx, phase.optimizer, self.shards).shardings
        whole = NamedSharding(self.shards.devices, PartitionSpec())
        extra = jax.tree.map(lambda _: whole, carry.extra)
        return carry._replace(params=at.params, extra=extra, state=at.state, opt_state=at.opt_state)

    def placed(self, phase: Any, carry: Any) -> Any:
        """Return the shapes, dtypes and shardings of a phase's training state."""
        return jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
            carry,
            self.shardings(phase, carry),
        )

    def feed(self, batches: Iterator[Examples], size: int) -> Iterator[Examples]:
        """Put each batch on its devices; each process reads only its own rows."""
        rows = parallel.process_rows(size, self.shards.devices)
        return parallel.feed((Examples(x[rows], y[rows]) for x, y in batches), self.shards.devices)


def place_run(wanted: Parallel | None, batch_size: int, params: Any) -> Placement:
    """Plan the placement of a run on a mesh.

    Args:
        wanted: the parallelism settings of the recipe; by default the batch is split over all
            devices.
        batch_size: the number of examples in a step.
        params: the parameters.

    Returns:
        The placement.

    Raises:
        RecipeError: the mesh, a rule or the batch size does not fit.

    Example:
        >>> from nnopt_jax.recipe import Parallel
        >>> place_run(Parallel({"data": 3}), 12, {})
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: parallel: parallel.mesh: data=3 takes 3 devices, ...
    """
    wanted = wanted or Parallel({"data": -1})
    settings = Settings("parallel")
    settings.integer("accumulate", wanted.accumulate, 1)
    if "devices" in wanted.mesh:
        settings.wrong("mesh", wanted.mesh, "calls an axis 'devices'; give it another name.")
    try:
        settings.done()
        mesh = parallel.mesh(**wanted.mesh)
        rules = [(rule.where, rule.split) for rule in wanted.rules]
        shards = parallel.specs(params, mesh, rules, fsdp=wanted.fsdp, least=wanted.least)
        ways = shard_count(mesh, batch_spec(mesh, None, "batch_size")) * wanted.accumulate
        # Rows without features suffice for the check.
        check_divisible("batch_size", np.empty((batch_size, 0)), ways, "")
    except NnoptError as error:
        raise RecipeError(f"recipe: parallel: {error}") from error
    return Placement(wanted, shards)
