"""The network of a finished run, as a teacher of another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax import artifact
from nnopt_jax.arrays.base import materialize
from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import Model
from nnopt_jax.recipe import resolve
from nnopt_jax.recipe.data import Data
from nnopt_jax.recipe.folder import Folder
from nnopt_jax.recipe.load import build
from nnopt_jax.recipe.schema import Distill
from nnopt_jax.recipe.setup import Setup, make_model
from nnopt_jax.recipe.yaml import parse
from nnopt_jax.typing import Array


@dataclass(frozen=True)
class Teacher:
    """What a student is to be like.

    Args:
        variables: parameters and others, as `model.apply` takes them.
        model: the network.
        loss: `(student's logits, teacher's logits) -> scalar`.
        weight: of that loss; the labels' loss has the rest.
    """

    variables: tuple[Any, Any]
    model: Model
    loss: Callable[..., Any]
    weight: float

    def mixed(self, variables: Any, x: Array, logits: Array, alone: Array) -> Array:
        """The loss of a batch.

        Args:
            variables: those of the teacher; an argument, so that a compiled step holds no copy.
            x: the inputs as the student saw them.
            logits: the student's.
            alone: the loss of the labels.

        Returns:
            A scalar.
        """
        said, _ = self.model.apply(variables[0], variables[1], x, train=False, key=None)
        return self.weight * self.loss(logits, said) + (1 - self.weight) * alone


def load_teacher(distill: Distill, folder: Path, setup: Setup) -> Teacher:
    """Reads the network that a run has left.

    Args:
        distill: what the recipe says.
        folder: of the finished run.
        setup: of the student.

    Returns:
        The teacher.

    Raises:
        RecipeError: there is no finished run, or its network does not take the student's inputs
            or gives logits of another shape.
        ArtifactError: its file is damaged.

    Example:
        >>> from pathlib import Path
        >>> from nnopt_jax.recipe.schema import Distill
        >>> load_teacher(Distill("runs/none"), Path("runs/none"), None)
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: distill.teacher: runs/none holds no finished run. ...
    """
    of = Folder(folder)
    if not (of.recipe.is_file() and of.artifact.is_file()):
        raise RecipeError(
            f"recipe: distill.teacher: {folder} holds no finished run. Give the folder of one, or "
            "a recipe, which is run first."
        )
    recipe = build(parse(of.recipe.read_text(encoding="utf-8"), str(of.recipe)))
    model = make_model(recipe, setup.data, jax.random.key(recipe.seed))
    loaded = materialize(artifact.load(of.artifact))
    rest = set(model.extra) - {"rngs"}
    params = loaded["params"] if rest else loaded
    extra = {name: loaded[name] if name in rest else x for name, x in model.extra.items()}
    _require_same_logits(model, (params, extra), setup, folder)
    function = resolve.find(distill.loss.source, "distill.loss")
    loss = functools.partial(_called, function, distill.loss.kwargs)
    return Teacher(
        (params, extra),
        model,
        loss,
        distill.weight,
    )


def _called(function: Callable[..., Any], kwargs: Mapping[str, Any], mine: Any, theirs: Any) -> Any:
    return function(mine, theirs, **kwargs)


def _require_same_logits(
    model: Model, variables: tuple[Any, Any], setup: Setup, folder: Path
) -> None:
    mine, theirs = (
        _logits(setup.model, (setup.model.params, setup.model.extra), setup.data, "the student"),
        _logits(model, variables, setup.data, f"the network of {folder}"),
    )
    if mine != theirs:
        raise RecipeError(
            f"recipe: distill.teacher: {folder} gives logits of shape {theirs} for two images, the "
            f"student {mine}. Teach networks of the same classes."
        )


def _logits(model: Model, variables: tuple[Any, Any], data: Data, who: str) -> tuple[int, ...]:
    x = jnp.asarray(data.train.x[:2])
    try:
        return jax.eval_shape(lambda v, x: model.apply(v[0], v[1], x)[0], variables, x).shape
    except Exception as error:
        raise RecipeError(
            f"recipe: distill.teacher: {who} does not take inputs of shape {x.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
