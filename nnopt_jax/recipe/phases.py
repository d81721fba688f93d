"""Stages made concrete: the chain, the optimizer and the step of each, and where each begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from nnopt_jax.interop.flax import Model
from nnopt_jax.recipe import resolve
from nnopt_jax.recipe.schema import Recipe, Stage
from nnopt_jax.trace import on_packed
from nnopt_jax.transform import Transform, chain, step, trainable, value_and_grad
from nnopt_jax.transform.binding import ModelGraph, binding_of
from nnopt_jax.transform.combine import bound_to
from nnopt_jax.typing import Array, ArrayLike, Key


class Carry(NamedTuple):
    """All that changes while training; a checkpoint holds exactly this.

    Args:
        params: the parameters.
        extra: the model's other variables.
        state: the states of the links, in order.
        opt_state: the optimizer's.
    """

    params: Any
    extra: Any
    state: Any
    opt_state: Any


@dataclass(frozen=True)
class Phase:
    """A stage, ready to run.

    Args:
        index: its place among the stages.
        stage: what the recipe says.
        links: the transforms of this and all earlier stages.
        optimizer: an optax optimizer.
        in_epoch: steps in an epoch.
        first: steps made before this stage.
    """

    index: int
    stage: Stage
    links: tuple[Transform, ...]
    optimizer: Any
    in_epoch: int
    first: int

    @property
    def tx(self) -> Transform:
        """The chain."""
        return chain(*self.links)

    @property
    def steps(self) -> int:
        """Steps of this stage."""
        return self.stage.epochs * self.in_epoch

    @property
    def last(self) -> int:
        """Steps made when this stage has ended."""
        return self.first + self.steps

    def needs(self, made: int) -> tuple[str, ...]:
        """Names of the statistics that the links after the first `made` need at their start."""
        return chain(*self.links[made:]).needs

    def shown(self, carry: Carry) -> Any:
        """The dense parameters as the links of earlier stages show them."""
        return chain(*self.links[: len(carry.state)]).apply(carry.params, carry.state)

    def begin(self, carry: Carry, key: Key, stats: Mapping[str, Any]) -> Carry:
        """Starts the optimizer and the links that are new; earlier links keep their states.

        Args:
            carry: as the stage before left it.
            key: for links that draw numbers.
            stats: what `recipe.measure` returned.

        Returns:
            What the first step takes.
        """
        made = len(carry.state)
        seen = chain(*self.links[:made]).encode(carry.params, carry.state)
        fresh = chain(*self.links[made:]).init(
            seen, stats=stats, key=jax.random.fold_in(key, self.index)
        )
        state = (*carry.state, *fresh)
        opt_state = self.optimizer.init(trainable(self.tx, carry.params, state))
        return Carry(carry.params, carry.extra, state, opt_state)

    def abstract_begin(self, carry: Carry, key: Key) -> Carry:
        """The shapes and dtypes of what `begin` returns; any statistics will do for that."""

        def begin(carry: Carry) -> Carry:
            stats = dict.fromkeys(self.needs(len(carry.state)), self.shown(carry))
            return self.begin(carry, key, stats)

        return jax.eval_shape(begin, carry)


def phases(recipe: Recipe, examples: int, graph: ModelGraph | None = None) -> list[Phase]:
    """Builds every stage of a recipe.

    Args:
        recipe: the recipe.
        examples: size of the training split.
        graph: of the recipe's model; the transforms are bound to it.

    Returns:
        One phase for each stage.

    Raises:
        RecipeError: a transform or an optimizer cannot be made.

    Example:
        >>> from nnopt_jax.recipe.load import build
        >>> from nnopt_jax.recipe.phases import phases
        >>> raw = {"name": "a", "model": "m:f", "data": "m:g", "batch_size": 10}
        >>> recipe = build(raw | {"stages": [{"name": "train", "epochs": 3}]})
        >>> phases(recipe, examples=105)[0].last
        30
    """
    in_epoch = examples // recipe.batch_size
    binding = binding_of("recipe", graph, None, "raise")
    made: list[Phase] = []
    for i, stage in enumerate(recipe.stages):
        steps = stage.epochs * in_epoch
        made_here = [
            resolve.transform(link, f"stages.{i}.transforms.{j}", steps)
            for j, link in enumerate(stage.transforms)
        ]
        # Each by itself may not fit raw parameters: `plan` checks the whole chain.
        links = tuple(bound_to(binding, link) for link in made_here)
        own = stage.optimizer is not None
        key = f"stages.{i}.optimizer" if own else "optimizer"
        optimizer = resolve.call(stage.optimizer or recipe.optimizer, key, steps)
        before = made[-1] if made else None
        chained = (*(before.links if before else ()), *links)
        made.append(Phase(i, stage, chained, optimizer, in_epoch, before.last if before else 0))
    return made


def make_step(
    phase: Phase,
    model: Model,
    loss: Callable[..., Any],
    augment: Callable[..., Any],
    key: Key,
    teacher: Any = None,
    spread: Any = None,
) -> Callable[..., Any]:
    """Compiles one optimizer step of a phase.

    Args:
        phase: the stage.
        model: the network.
        loss: `(logits, labels) -> scalar`.
        augment: `(inputs, key) -> inputs`.
        key: for augmentation and dropout, folded with the step.
        teacher: a `Teacher`, or None.
        spread: the `Spread` of a run on a mesh.

    Returns:
        `f(carry, x, y, number) -> (carry, loss)`; the carry given is used up.
    """
    tx = phase.tx

    @on_packed  # leaves may round what they are multiplied with
    def objective(params: Any, extra: Any, x: Array, y: Array, key: Key, taught: Any) -> Any:
        logits, extra = model.apply(params, extra, x, train=True, key=key)
        alone = loss(logits, y)
        return (teacher.mixed(taught, x, logits, alone) if teacher else alone), extra

    def one(carry: Carry, x: Array, y: Array, number: ArrayLike, taught: Any) -> tuple[Carry, Any]:
        params, extra, state, opt_state = carry
        outer, inner = jax.random.split(jax.random.fold_in(key, number))
        x = augment(x, outer)
        graded = value_and_grad(objective, tx, has_aux=True)
        (value, extra), grads = graded(params, state, extra, x, y, inner, taught)
        moved = trainable(tx, params, state)
        updates, opt_state = phase.optimizer.update(grads.train, opt_state, moved)
        params, state = step(tx, params, state, updates, grads)
        return Carry(params, extra, state, opt_state), value

    taught = teacher.variables if teacher else None
    if spread is not None:
        return spread.compiled(phase, objective, augment, key, taught)
    compiled = jax.jit(one, donate_argnums=0)
    return lambda carry, x, y, number: compiled(carry, x, y, number, taught)
