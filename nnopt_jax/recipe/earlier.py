"""Runs that a recipe builds upon: there already, or run first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax

from nnopt_jax import artifact
from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import Model
from nnopt_jax.recipe import resolve
from nnopt_jax.recipe.data import Data
from nnopt_jax.recipe.folder import Folder
from nnopt_jax.recipe.load import load
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.recipe.setup import make_model


class Earlier(NamedTuple):
    """A run that another needs.

    Args:
        key: where the recipe names it.
        folder: of the run.
        recipe: to be run first; None where the run is there.
    """

    key: str
    folder: Path
    recipe: Recipe | None

    def network(self, data: Data) -> Model:
        """The network that the run has left, its parameters dense.

        Args:
            data: of the run that needs it; gives a sample of the inputs.

        Returns:
            The network; its variables are those of the file.

        Raises:
            RecipeError: there is no finished run.
            ArtifactError: its file is damaged.
        """
        of = Folder(self.folder)
        recipe = of.held()
        if recipe is None:
            raise RecipeError(
                f"recipe: {self.key}: {self.folder} holds no finished run. Give the folder of one, "
                "or a recipe, which is run first."
            )
        model = left(recipe, of.artifact, data)
        return model._replace(params=materialize(model.params))


def left(recipe: Recipe, file: Path, data: Data) -> Model:
    """The network of a finished run.

    Args:
        recipe: of the run.
        file: what it has written.
        data: gives a sample of the inputs.

    Returns:
        The network; its parameters are packed as they are in the file.

    Raises:
        RecipeError: the network cannot be made.
        ArtifactError: the file is damaged.
    """
    model = make_model(recipe, data, jax.random.key(recipe.seed))
    loaded = artifact.load(file)
    rest = set(model.extra) - {"rngs"}
    params = loaded["params"] if rest else loaded
    extra = {name: loaded[name] if name in rest else x for name, x in model.extra.items()}
    return model._replace(params=params, extra=extra)


def earlier(recipe: Recipe) -> Iterator[Earlier]:
    """Names the runs that a recipe builds upon, and checks those that are to be run first.

    Args:
        recipe: what was read.

    Yields:
        A teacher, and the run that the network starts from, where there are such.

    Raises:
        RecipeError: neither a folder nor a right recipe is there.

    Example:
        >>> from nnopt_jax.recipe.load import build
        >>> raw = {"name": "a", "model": "m:f", "data": "m:g", "start": {"run": "nowhere.yaml"}}
        >>> list(earlier(build(raw | {"stages": [{"name": "train", "epochs": 1}]})))
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: start.run: recipe: cannot read nowhere.yaml: ...
    """
    for key, named in _named(recipe):
        yield _earlier(key, named, recipe)


def _named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The runs that a recipe names, and where."""
    if recipe.distill is not None:
        yield "distill.teacher", recipe.distill.teacher
    if recipe.start is not None:
        yield "start.run", recipe.start.run


def _earlier(key: str, named: str, recipe: Recipe) -> Earlier:
    if Path(named).is_dir():
        return Earlier(key, Path(named), None)
    into = Path(recipe.folder) / ("teacher" if key == "distill.teacher" else "start")
    try:
        made = replace(load(named), output=str(into))
        _require_an_end(named, made, (recipe,))
    except RecipeError as error:
        raise RecipeError(f"recipe: {key}: {error}") from error
    resolve.check(made)
    return Earlier(key, into, made)


def _require_an_end(name: str, recipe: Recipe, above: tuple[Recipe, ...]) -> None:
    """Wants no recipe to build upon itself, by way of others either."""
    if any(replace(recipe, output=other.output) == other for other in above):
        raise RecipeError(f"{name} is this recipe itself, or builds upon it. Name another.")
    for _, named in _named(recipe):
        if not Path(named).is_dir():
            _require_an_end(named, load(named), (*above, recipe))
