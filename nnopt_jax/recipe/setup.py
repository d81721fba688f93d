"""Everything a recipe names, made and checked before any weight moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import Model, adapt
from nnopt_jax.recipe import resolve
from nnopt_jax.recipe.data import Data, open_data
from nnopt_jax.recipe.evaluate import check_classes
from nnopt_jax.recipe.model_graph import model_graph
from nnopt_jax.recipe.phases import Phase, phases
from nnopt_jax.recipe.program import structure
from nnopt_jax.recipe.schema import Call, Recipe
from nnopt_jax.recipe.spread import Spread, spread
from nnopt_jax.transfer import Structure
from nnopt_jax.transform import plan
from nnopt_jax.typing import Key


@dataclass(frozen=True)
class Setup:
    """A recipe made real; nothing is trained yet.

    Args:
        recipe: what was read.
        data: the splits.
        model: the network with its initial parameters.
        phases: the stages.
        loss: `(logits, labels) -> scalar`.
        metric: likewise, the error.
        augment: `(inputs, key) -> inputs`.
        order: key of the order of the batches.
        key: key of dropout and of transforms.
        spread: how the run is spread over devices; None for one device.
        teacher: a `Teacher`, once its run is there.
        structure: what the network computes, where the file is to hold it.
    """

    recipe: Recipe
    data: Data
    model: Model
    phases: list[Phase]
    loss: Callable[..., Any]
    metric: Callable[..., Any]
    augment: Callable[..., Any]
    order: Key
    key: Key
    spread: Spread | None = None
    teacher: Any = None
    structure: Structure | None = None


def prepare(recipe: Recipe, check_rules: bool = True) -> Setup:
    """Makes everything a recipe names and checks that it fits together.

    Args:
        recipe: what was read.
        check_rules: whether to plan every chain, which finds rules that match nothing.

    Returns:
        The setup.

    Raises:
        NnoptError: a name, an argument, the data, a rule or a shape is wrong.

    Example:
        >>> from nnopt_jax.recipe.load import build
        >>> from nnopt_jax.recipe.setup import prepare
        >>> raw = {"name": "a", "stages": [{"name": "train", "epochs": 1}]}
        >>> names = {"model": "nnopt_jax.zoo.lenet:lenet5", "data": "nnopt_jax.zoo.data:digits"}
        >>> prepare(build(raw | names)).phases[0].steps
        31
    """
    resolve.check(recipe)
    data = open_data(recipe)
    init, order, key = jax.random.split(jax.random.key(recipe.seed), 3)
    model = make_model(recipe, data, init)
    check_classes(model, data)
    graph = model_graph(model, jnp.asarray(data.train.x[:2]))
    stages = phases(recipe, len(data.train.x), graph)
    for phase in stages if check_rules else ():
        plan(phase.tx, model.params)
    loss, metric = (function_of(getattr(recipe, name), name) for name in ("loss", "metric"))
    augment = function_of(recipe.augment, "augment") if recipe.augment else lambda x, key: x
    over = spread(recipe, model.params)
    what = structure(model, data) if recipe.program else None
    return Setup(
        recipe, data, model, stages, loss, metric, augment, order, key, over, structure=what
    )


def make_model(recipe: Recipe, data: Data, key: Key) -> Model:
    """Calls the recipe's model and adapts what comes back.

    Args:
        recipe: what was read.
        data: gives a sample of the inputs.
        key: for the initial parameters.

    Returns:
        The model.

    Raises:
        RecipeError: it is no model, or cannot be initialized with such inputs.
    """
    made = resolve.call(recipe.model, "model", passed={"rngs": nnx.Rngs(key), "key": key})
    try:
        return adapt(made, jnp.asarray(data.train.x[:2]), key)
    except RecipeError as error:
        raise RecipeError(f"recipe: model: {recipe.model.source}: {error}") from error
    except Exception as error:
        shape = ", ".join(map(str, data.train.x.shape[1:]))
        raise RecipeError(
            f"recipe: model: {recipe.model.source} does not take inputs of shape (batch, {shape}):"
            f" {type(error).__name__}: {error}"
        ) from error


def function_of(what: Call, key: str) -> Callable[..., Any]:
    """A callable of two arguments that the run gives, its further arguments filled in."""
    function = resolve.find(what.source, key)
    return lambda left, right: function(left, right, **what.kwargs)
