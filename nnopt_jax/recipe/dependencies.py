"""The runs that a recipe depends on: a teacher, and a network for a warm start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nnopt_jax import artifact
from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.errors import NnoptError, RecipeError
from nnopt_jax.interop.flax import FlaxModel
from nnopt_jax.recipe import resolver
from nnopt_jax.recipe.inputs import Splits, make_model, output_shape, variables_of
from nnopt_jax.recipe.reader import load
from nnopt_jax.recipe.recipe_plan import RecipePlan
from nnopt_jax.recipe.run_folder import RunFolder
from nnopt_jax.recipe.schema import Distill, Recipe, WarmStart
from nnopt_jax.transfer import deepen, graft, layer_map, select_layers
from nnopt_jax.transfer.structure.place import layers_at
from nnopt_jax.typing import Array, Params

__all__ = ["Dependency", "Teacher", "finished_model", "required_runs", "warm_start"]


class Dependency(NamedTuple):
    """A run that another run needs.

    Args:
        key: the key under which the recipe names it.
        folder: the folder of the run.
        recipe: the recipe to run first; None if the run is finished.
    """

    key: str
    folder: Path
    recipe: Recipe | None

    def model(self, data: Splits) -> FlaxModel:
        """Load the network of the run, with dense parameters.

        Args:
            data: the data of the dependent run, for a sample of the inputs.

        Raises:
            RecipeError: the run is not finished.
            ArtifactError: the file of the run is damaged.
        """
        folder = RunFolder(self.folder)
        recipe = folder.finished_recipe()
        if recipe is None:
            raise RecipeError(
                f"recipe: {self.key}: {self.folder} holds no finished run. Give the folder of one, "
                "or a recipe, which is run first."
            )
        model = finished_model(recipe, folder.artifact, data)
        return model._replace(params=materialize(model.params))


def finished_model(recipe: Recipe, file: Path, data: Splits) -> FlaxModel:
    """Load the network of a finished run.

    Args:
        recipe: the recipe of the run.
        file: the file that the run wrote.
        data: the data, for a sample of the inputs.

    Returns:
        The network, with parameters packed as in the file.

    Raises:
        RecipeError: the network cannot be made.
        ArtifactError: the file is damaged.
    """
    model = make_model(recipe, data, jax.random.key(recipe.seed))
    params, extra = variables_of(artifact.load(file), model.extra)
    return model._replace(params=params, extra=extra)


def required_runs(recipe: Recipe) -> Iterator[Dependency]:
    """Yield the runs that a recipe depends on, and check those that must run first.

    Args:
        recipe: the recipe.

    Yields:
        The run of the teacher and the run of the warm start, if there are any.

    Raises:
        RecipeError: a name is neither the folder of a finished run nor a valid recipe.

    Example:
        >>> from nnopt_jax.recipe import build
        >>> raw = {"name": "a", "model": "m:f", "data": "m:g", "start": {"run": "nowhere.yaml"}}
        >>> list(required_runs(build(raw | {"stages": [{"name": "train", "epochs": 1}]})))
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: start.run: recipe: cannot read nowhere.yaml: ...
    """
    for key, named in _named_runs(recipe):
        if Path(named).is_dir():
            yield Dependency(key, Path(named), None)
            continue
        into = Path(recipe.folder) / ("teacher" if key == "distill.teacher" else "start")
        try:
            needed = replace(load(named), output=str(into))
            _check_acyclic(named, needed, (recipe,))
        except RecipeError as error:
            raise RecipeError(f"recipe: {key}: {error}") from error
        resolver.check(needed)
        yield Dependency(key, into, needed)


def _named_runs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the key and the path of each run that a recipe depends on."""
    if recipe.distill is not None:
        yield "distill.teacher", recipe.distill.teacher
    if recipe.start is not None:
        yield "start.run", recipe.start.run


def _check_acyclic(name: str, recipe: Recipe, above: tuple[Recipe, ...]) -> None:
    """Check that no recipe depends on itself, directly or through others."""
    if any(replace(recipe, output=other.output) == other for other in above):
        raise RecipeError(f"{name} is this recipe itself, or builds upon it. Name another.")
    for _, named in _named_runs(recipe):
        if not Path(named).is_dir():
            _check_acyclic(named, load(named), (*above, recipe))


def with_dependencies(plan: RecipePlan, required: list[Dependency]) -> RecipePlan:
    """Return the plan with its teacher, and with the parameters of its warm start."""
    recipe, found = plan.recipe, {one.key: one.model(plan.data) for one in required}
    if recipe.start is not None:
        source = found["start.run"].params
        plan = replace(plan, model=warm_start(recipe.start, source, plan.model))
    if recipe.distill is not None:
        teacher = _load_teacher(recipe.distill, found["distill.teacher"], plan)
        plan = replace(plan, teacher=teacher)
    return plan


def warm_start(start: WarmStart, source: Params, model: FlaxModel) -> FlaxModel:
    """Copy the parameters of another network into a new one.

    Args:
        start: the warm-start settings of the recipe.
        source: the parameters of the other network.
        model: the new network, which determines the number of layers.

    Returns:
        The network with those parameters and its own other variables.

    Raises:
        RecipeError: the named layers do not exist, or the chosen ones do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.interop.flax import FlaxModel
        >>> from nnopt_jax.recipe import WarmStart
        >>> params = {f"block_{i}": {"w": jnp.full(1, float(i))} for i in range(4)}
        >>> fresh = FlaxModel(
        ...     {"block_0": {"w": jnp.ones(1)}, "block_1": {"w": jnp.ones(1)}}, {}, None
        ... )
        >>> warm_start(WarmStart("runs/deep", "block_{index}"), params, fresh).params["block_1"]
        {'w': Array([2.], dtype=float32)}
    """
    try:
        if (place := start.layers) is not None:
            trees = (source, model.params)
            there, wanted = (len(layers_at("layers", tree, place)) for tree in trees)
            numbers = layer_map(there, wanted, start.how)  # pyright: ignore[reportArgumentType]
            if start.zero:
                source = deepen(source, place, numbers, zero=start.zero)
            else:
                source = select_layers(source, place, numbers)
        return model._replace(params=graft(model.params, source).params)
    except NnoptError as error:
        raise RecipeError(f"recipe: start: {error}") from error


@dataclass(frozen=True)
class Teacher:
    """A network whose outputs the student imitates.

    Args:
        variables: parameters and other variables, as `model.apply` takes them.
        model: the network of the teacher.
        loss: `(student's logits, teacher's logits) -> scalar`.
        weight: the weight of that loss; the loss of the labels has the rest.
    """

    variables: tuple[Any, Any] = field(repr=False)
    model: FlaxModel = field(repr=False)
    loss: Callable[..., Any]
    weight: float

    def mixed(self, variables: Any, x: Array, logits: Array, alone: Array) -> Array:
        """Return the weighted mean of the distillation loss and the loss of the labels.

        Args:
            variables: the teacher's variables, an argument so that a compiled step does not hold a
                copy.
            x: the inputs of the student.
            logits: the student's logits.
            alone: the loss of the labels alone.

        Returns:
            A scalar.
        """
        theirs, _ = self.model.apply(variables[0], variables[1], x, train=False, key=None)
        return self.weight * self.loss(logits, theirs) + (1 - self.weight) * alone


def _load_teacher(distill: Distill, model: FlaxModel, plan: RecipePlan) -> Teacher:
    mine = output_shape(plan.model, plan.data, "model:").shape
    theirs = output_shape(model, plan.data, "distill.teacher: the teacher").shape
    if mine != theirs:
        raise RecipeError(
            f"recipe: distill.teacher: gives logits of shape {theirs} for two images, the student "
            f"{mine}. Teach networks of the same classes."
        )
    loss = resolver.bind(distill.loss, "distill.loss")
    return Teacher((model.params, model.extra), model, loss, distill.weight)
