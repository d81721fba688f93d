"""The plan of a run: all objects that a recipe names, made and checked before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnopt_jax.errors import NnoptError, Problems, RecipeError
from nnopt_jax.interop.flax import FlaxModel
from nnopt_jax.recipe import resolver
from nnopt_jax.recipe.inputs import (
    Splits,
    check_classes,
    make_model,
    model_graph,
    open_data,
    structure,
)
from nnopt_jax.recipe.placement import Placement, place_run
from nnopt_jax.recipe.schema import Recipe, Stage
from nnopt_jax.transfer import Structure
from nnopt_jax.transform import Transform, chain, plan, trainable
from nnopt_jax.transform.binding import ModelGraph, binding_of
from nnopt_jax.transform.combine import bound_to
from nnopt_jax.typing import Key, Params

__all__ = ["Carry", "Phase", "RecipePlan", "phases", "prepare"]


class Carry(NamedTuple):
    """The training state: all values that change during training and are checkpointed.

    Args:
        params: the parameters.
        extra: the model's other variables.
        state: the states of the transforms, in order.
        opt_state: the state of the optimizer.
    """

    params: Any
    extra: Any
    state: Any
    opt_state: Any

    def __repr__(self) -> str:
        """Return the number of arrays."""
        counts = (f"{name}: {len(jax.tree.leaves(tree))}" for name, tree in self._asdict().items())
        return f"Carry(arrays of {', '.join(counts)})"


@dataclass(frozen=True, repr=False)
class Phase:
    """A stage of a recipe with its chain and its optimizer.

    Args:
        index: the position of the stage.
        stage: the stage of the recipe.
        links: the transforms of this and all earlier stages.
        optimizer: an optax optimizer.
        in_epoch: the number of steps of an epoch.
        first: the number of steps before this stage.
    """

    index: int
    stage: Stage
    links: tuple[Transform, ...]
    optimizer: Any
    in_epoch: int
    first: int

    @property
    def tx(self) -> Transform:
        """Return the chain of transforms of this and all earlier stages."""
        return chain(*self.links)

    @property
    def steps(self) -> int:
        """Return the number of steps of this stage."""
        return self.stage.epochs * self.in_epoch

    @property
    def last(self) -> int:
        """Return the total number of steps at the end of this stage."""
        return self.first + self.steps

    def __repr__(self) -> str:
        """Return the name, the steps and the number of transforms."""
        chained = f"{len(self.links)} transforms"
        return f"Phase({self.stage.name!r}: steps {self.first} to {self.last}, {chained})"

    def needs(self, begun: int) -> tuple[str, ...]:
        """Return the statistics that the transforms after the first `begun` need, by name."""
        return chain(*self.links[begun:]).needs

    def upstream(self, carry: Carry) -> Params:
        """Return the parameters as the earlier stages encode them, materialized."""
        return chain(*self.links[: len(carry.state)]).apply(carry.params, carry.state)

    def begin(self, carry: Carry, key: Key, stats: Mapping[str, Any]) -> Carry:
        """Initialize the optimizer and the new transforms; earlier transforms keep their states.

        Args:
            carry: the training state at the end of the stage before.
            key: the key of transforms that draw random numbers.
            stats: the statistics that `needs` names.

        Returns:
            The training state for the first step.
        """
        begun = len(carry.state)
        upstream = chain(*self.links[:begun]).encode(carry.params, carry.state)
        fresh = chain(*self.links[begun:]).init(
            upstream, stats=stats, key=jax.random.fold_in(key, self.index)
        )
        state = (*carry.state, *fresh)
        opt_state = self.optimizer.init(trainable(self.tx, carry.params, state))
        return Carry(carry.params, carry.extra, state, opt_state)

    def abstract_begin(self, carry: Carry, key: Key) -> Carry:
        """Return the shapes and dtypes of the result of `begin`, without computing it."""

        def begin(carry: Carry) -> Carry:
            # The shapes of the state do not depend on the values of the statistics,
            # so that the parameters can stand in for them.
            stats = dict.fromkeys(self.needs(len(carry.state)), self.upstream(carry))
            return self.begin(carry, key, stats)

        return jax.eval_shape(begin, carry)


@dataclass(frozen=True, repr=False)
class RecipePlan:
    """A recipe whose names are resolved and checked, ready to train.

    `str` returns a table for each stage.

    Args:
        recipe: the recipe.
        data: the splits.
        model: the network with its initial parameters.
        phases: the stages.
        loss: `(logits, labels) -> scalar`.
        metric: `(logits, labels) -> scalar`, the error.
        augment: `(inputs, key) -> inputs`.
        order: the key of the order of batches.
        key: the key of dropout and of transforms.
        placement: the placement of arrays on a mesh; None for one device.
        teacher: the teacher, once its run has finished.
        structure: the program of the network, if the file is to store it.
    """

    recipe: Recipe
    data: Splits
    model: FlaxModel
    phases: list[Phase]
    loss: Callable[..., Any]
    metric: Callable[..., Any]
    augment: Callable[..., Any]
    order: Key
    key: Key
    placement: Placement | None = None
    teacher: Any = None
    structure: Structure | None = None

    def __repr__(self) -> str:
        """Return the name, the size of the model and the number of steps."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.model.params))
        stages = f"{len(self.phases)} stages, {self.phases[-1].last:,} steps"
        return f"RecipePlan({self.recipe.name!r}: {size:,} parameters, {stages})"

    def __str__(self) -> str:
        """Return the plan of the chain of each stage, leaf by leaf."""
        parts = [] if self.placement is None else [str(self.placement.shards)]
        for phase in self.phases:
            table = plan(phase.tx, self.model.params) if phase.links else "no transforms"
            parts.append(f"Stage {phase.stage.name}: {phase.steps:,} steps, {table}")
        return "\n\n".join(parts)


class _Failures:
    """A collector of errors of independent checks, which raises them together."""

    def __init__(self) -> None:
        self.found: list[NnoptError] = []

    @contextmanager
    def check(self) -> Iterator[None]:
        """Catch and collect an error of the `with` block."""
        try:
            yield
        except NnoptError as error:
            self.found.append(error)

    def done(self) -> None:
        """Raise the collected errors, if any: one error unchanged, several as one."""
        if len(self.found) == 1:
            raise self.found[0]
        problems = Problems("recipe")
        for error in self.found:
            problems.add("", str(error).removeprefix("recipe: "))
        problems.raise_as(RecipeError)


def prepare(recipe: Recipe, check_rules: bool = True) -> RecipePlan:
    """Make all objects that a recipe names, and check that they fit together.

    Args:
        recipe: the recipe.
        check_rules: whether to plan every chain, which finds rules without a match.

    Returns:
        The plan of the run.

    Raises:
        NnoptError: a name, an argument, the data, a rule or a shape is wrong; one `RecipeError`
            reports several problems together.

    Example:
        >>> from nnopt_jax.recipe import build, prepare
        >>> raw = {"name": "a", "stages": [{"name": "train", "epochs": 1}]}
        >>> names = {"model": "nnopt_jax.zoo.lenet:lenet5", "data": "nnopt_jax.zoo.data:digits"}
        >>> prepare(build(raw | names))
        RecipePlan('a': 431,080 parameters, 1 stages, 31 steps)
    """
    resolver.check(recipe)
    data = open_data(recipe)
    init, order, key = jax.random.split(jax.random.key(recipe.seed), 3)
    model = make_model(recipe, data, init)
    check_classes(model, data)
    failures, placement, program = _Failures(), None, None
    bound = model_graph(model, jnp.asarray(data.train.x[:2]))
    stages = _phases(recipe, len(data.train.x), bound, failures)
    if check_rules and not failures.found:
        with failures.check():  # A later chain contains the earlier ones, and their mistakes.
            for phase in stages:
                plan(phase.tx, model.params)
    if recipe.parallel is not None or jax.process_count() > 1:
        with failures.check():
            placement = place_run(recipe.parallel, recipe.batch_size, model.params)
    with failures.check():
        program = structure(model, data) if recipe.program else None
    failures.done()
    loss, metric = (resolver.bind(getattr(recipe, name), name) for name in ("loss", "metric"))
    augment = resolver.bind(recipe.augment, "augment") if recipe.augment else lambda x, key: x
    return RecipePlan(
        recipe, data, model, stages, loss, metric, augment, order, key, placement, None, program
    )


def phases(recipe: Recipe, examples: int, graph: ModelGraph | None = None) -> list[Phase]:
    """Make the chain and the optimizer of every stage of a recipe.

    Args:
        recipe: the recipe.
        examples: the size of the training split.
        graph: the graph of the recipe's model, to which the transforms are bound.

    Returns:
        One phase for each stage.

    Raises:
        NnoptError: transforms or optimizers cannot be made; all are reported together.

    Example:
        >>> from nnopt_jax.recipe import build
        >>> from nnopt_jax.recipe.recipe_plan import phases
        >>> raw = {"name": "a", "model": "m:f", "data": "m:g", "batch_size": 10}
        >>> phases(build(raw | {"stages": [{"name": "train", "epochs": 3}]}), examples=105)
        [Phase('train': steps 0 to 30, 0 transforms)]
    """
    failures = _Failures()
    made = _phases(recipe, examples, graph, failures)
    failures.done()
    return made


def _phases(
    recipe: Recipe, examples: int, graph: ModelGraph | None, failures: _Failures
) -> list[Phase]:
    in_epoch = examples // recipe.batch_size
    binding = binding_of("recipe", graph, None, "raise")
    links: list[Transform] = []
    made: list[Phase] = []
    for i, stage in enumerate(recipe.stages):
        steps = stage.epochs * in_epoch
        for j, what in enumerate(stage.transforms):
            with failures.check():
                link = resolver.call(what, f"stages.{i}.transforms.{j}", steps)
                # A transform alone may not fit raw parameters, so `plan` checks the whole chain.
                links.append(bound_to(binding, link))
        key = "optimizer" if stage.optimizer is None else f"stages.{i}.optimizer"
        optimizer = None
        with failures.check():
            optimizer = resolver.call(stage.optimizer or recipe.optimizer, key, steps)
        first = made[-1].last if made else 0
        made.append(Phase(i, stage, tuple(links), optimizer, in_epoch, first))
    return made
