"""What a model does on a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import Model
from nnopt_jax.recipe.data import Data, Split
from nnopt_jax.trace import OnPacked, on_packed
from nnopt_jax.typing import Params

_EVALUATED_AT_ONCE = 1000


def network(model: Model) -> OnPacked:
    """The network in use: `f(params, extra, x) -> logits`, of dense or packed parameters.

    Packed leaves run packed where there is a way; `.report` tells where there is none.

    Example:
        >>> from nnopt_jax.interop.flax import adapt
        >>> from nnopt_jax.recipe.evaluate import network
        >>> float(network(adapt(({}, lambda params, x: 2 * x), None, None))({}, {}, 3.0))
        6.0
    """
    return on_packed(lambda params, extra, x: model.apply(params, extra, x)[0])


def forward(model: Model) -> Callable[..., Any]:
    """`network`, compiled.

    Example:
        >>> from nnopt_jax.interop.flax import adapt
        >>> from nnopt_jax.recipe.evaluate import forward
        >>> float(forward(adapt(({}, lambda params, x: 2 * x), None, None))({}, {}, 3.0))
        6.0
    """
    return jax.jit(network(model))


def evaluate(
    run: Callable[..., Any], metric: Callable[..., Any], params: Params, extra: Any, split: Split
) -> float:
    """The mean of a metric over a split.

    Args:
        run: what `forward` returned.
        metric: `(logits, labels) -> scalar`, a mean over examples.
        params: dense or packed.
        extra: the model's other variables.
        split: inputs and labels.

    Returns:
        The mean, each example counted once.
    """
    total = 0.0
    for start in range(0, len(split.x), _EVALUATED_AT_ONCE):
        part = slice(start, start + _EVALUATED_AT_ONCE)
        x, y = split.x[part], split.y[part]
        total += float(metric(run(params, extra, x), y)) * len(x)
    return total / len(split.x)


def check_classes(model: Model, data: Data) -> None:
    """Compares the labels of a classifier with its logits, before anything is trained.

    Raises:
        RecipeError: a label has no logit, or the model does not take the inputs.
    """
    params, extra, x = jax.eval_shape(lambda: (model.params, model.extra, data.train.x[:2]))
    try:
        logits = jax.eval_shape(model.apply, params, extra, x)[0]
    except Exception as error:
        raise RecipeError(
            f"recipe: model: does not take inputs of shape (batch, "
            f"{', '.join(map(str, x.shape[1:]))}): {type(error).__name__}: {error}"
        ) from error
    labels = data.train.y
    if not jnp.issubdtype(labels.dtype, jnp.integer) or logits.ndim != labels.ndim + 1:
        return
    classes = logits.shape[-1]
    for name, split in data._asdict().items():
        if split is None:
            continue
        low, high = int(split.y.min()), int(split.y.max())
        if low < 0:
            raise RecipeError(
                f"recipe: data: the labels of the {name} split go from {low} to {high}. Number "
                "the classes from 0."
            )
        if high >= classes:
            raise RecipeError(
                f"recipe: model: gives {classes} logits, and the labels of the {name} split go "
                f"from {low} to {high}. Give the model {high + 1} classes, e.g. "
                f"--set model.classes={high + 1}"
            )
