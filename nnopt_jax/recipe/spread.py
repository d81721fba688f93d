"""How a run is spread over devices: the plan, the step, and where what it keeps lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nnopt_jax import parallel
from nnopt_jax.errors import NnoptError, RecipeError
from nnopt_jax.parallel.data import require_divisible
from nnopt_jax.parallel.layout import layout
from nnopt_jax.parallel.mesh import batch_spec, shares
from nnopt_jax.recipe.data import Split
from nnopt_jax.recipe.phases import Carry, Phase
from nnopt_jax.recipe.schema import Parallel, Recipe
from nnopt_jax.settings import Settings
from nnopt_jax.typing import Array, ArrayLike, Key


@dataclass(frozen=True)
class Spread:
    """A run on a mesh.

    Args:
        wanted: what the recipe says.
        plan: how its parameters are split.
    """

    wanted: Parallel
    plan: parallel.Shards

    def compiled(
        self,
        phase: Phase,
        objective: Callable[..., Any],
        augment: Callable[..., Any],
        key: Key,
        taught: Any,
    ) -> Callable[..., Any]:
        """One optimizer step of a phase, as `make_step` returns it.

        Args:
            phase: the stage.
            objective: `(params, extra, x, y, key, taught) -> (scalar, extra)`.
            augment: `(inputs, key) -> inputs`.
            key: for augmentation and dropout, folded with the step.
            taught: the teacher's variables.

        Returns:
            `f(carry, x, y, number) -> (carry, loss)`; the carry given is used up.
        """

        def loss(params: Any, batch: Split, extra: Any, taught: Any, key: Key) -> Any:
            outer, inner = jax.random.split(key)
            return objective(params, extra, augment(batch.x, outer), batch.y, inner, taught)

        run = parallel.train_step(
            loss,
            phase.optimizer,
            phase.tx,
            plan=self.plan,
            accumulate=self.wanted.accumulate,
            remat=self.wanted.remat,
            has_aux=True,
        )

        def one(carry: Carry, x: Array, y: Array, number: ArrayLike) -> tuple[Carry, Any]:
            now = parallel.TrainState(carry.params, carry.state, carry.opt_state)
            own = jax.random.fold_in(key, number)
            now, (value, extra) = run(now, Split(x, y), carry.extra, taught, key=own)
            return Carry(now.params, extra, now.state, now.opt_state), value

        return one

    def shardings(self, phase: Phase, extra: Any) -> Carry:
        """Where a phase's carry lies."""
        at = layout(phase.tx, phase.optimizer, self.plan).shardings
        whole = NamedSharding(self.plan.devices, PartitionSpec())
        return Carry(at.params, jax.tree.map(lambda _: whole, extra), at.state, at.opt_state)

    def placed(self, phase: Phase, carry: Carry) -> Carry:
        """The shapes of a phase's carry, with where its arrays lie."""
        return jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
            carry,
            self.shardings(phase, carry.extra),
        )

    def feed(self, batches: Iterator[Split], size: int) -> Iterator[Split]:
        """The batches, each on its devices; a process reads the rows of its own."""
        rows = parallel.process_rows(size, self.plan.devices)
        return parallel.feed((Split(x[rows], y[rows]) for x, y in batches), self.plan.devices)


def spread(recipe: Recipe, params: Any) -> Spread | None:
    """Plans a run's mesh.

    Args:
        recipe: the recipe; where it says nothing of a mesh and there are several processes, the
            batch is split over all devices.
        params: the parameters.

    Returns:
        The plan; None for a run on one device.

    Raises:
        RecipeError: the mesh, a rule or the size of the batch does not fit.

    Example:
        >>> from nnopt_jax.recipe.load import build
        >>> raw = {"name": "a", "model": "m:f", "data": "m:g", "parallel": {"mesh": {"data": 3}}}
        >>> spread(build(raw | {"stages": [{"name": "train", "epochs": 1}]}), {})
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: parallel: parallel.mesh: data=3 takes 3 devices, ...
    """
    wanted = recipe.parallel
    if wanted is None and jax.process_count() == 1:
        return None
    wanted = wanted or Parallel({"data": -1})
    settings = Settings("parallel")
    settings.integer("accumulate", wanted.accumulate, 1)
    if "devices" in wanted.mesh:
        settings.wrong("mesh", wanted.mesh, "calls an axis 'devices'; give it another name.")
    try:
        settings.done()
        mesh = parallel.mesh(**wanted.mesh)
        rules = [(rule.where, rule.split) for rule in wanted.rules]
        plan = parallel.specs(params, mesh, rules, fsdp=wanted.fsdp, least=wanted.least)
        ways = shares(mesh, batch_spec(mesh, None, "batch_size")) * wanted.accumulate
        require_divisible("batch_size", np.empty((recipe.batch_size, 0)), ways, "")
    except NnoptError as error:
        raise RecipeError(f"recipe: parallel: {error}") from error
    return Spread(wanted, plan)
