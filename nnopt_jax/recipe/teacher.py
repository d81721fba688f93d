"""The network of a finished run, as a teacher of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import Model
from nnopt_jax.recipe.data import Data
from nnopt_jax.recipe.schema import Distill
from nnopt_jax.recipe.setup import Setup, function_of
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


def load_teacher(distill: Distill, model: Model, setup: Setup) -> Teacher:
    """Makes a teacher of the network that a run has left.

    Args:
        distill: what the recipe says.
        model: the network, trained.
        setup: of the student.

    Returns:
        The teacher.

    Raises:
        RecipeError: the network does not take the student's inputs, or gives logits of another
            shape.
    """
    _require_same_logits(model, setup)
    loss = function_of(distill.loss, "distill.loss")
    return Teacher((model.params, model.extra), model, loss, distill.weight)


def _require_same_logits(model: Model, setup: Setup) -> None:
    mine = _logits(setup.model, setup.data, "the student")
    theirs = _logits(model, setup.data, "the teacher")
    if mine != theirs:
        raise RecipeError(
            f"recipe: distill.teacher: gives logits of shape {theirs} for two images, the student "
            f"{mine}. Teach networks of the same classes."
        )


def _logits(model: Model, data: Data, who: str) -> tuple[int, ...]:
    x = jnp.asarray(data.train.x[:2])
    variables = model.params, model.extra
    try:
        return jax.eval_shape(lambda v, x: model.apply(v[0], v[1], x)[0], variables, x).shape
    except Exception as error:
        raise RecipeError(
            f"recipe: distill.teacher: {who} does not take inputs of shape {x.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
