"""The data and the network of a recipe: loading, checking, batching and evaluation.

A seed determines the order of the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nnopt_jax.errors import Problems, RecipeError
from nnopt_jax.interop.flax import FlaxModel, adapt
from nnopt_jax.recipe.resolver import call
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.trace import Graph, OnPacked, graph, on_packed
from nnopt_jax.transfer import Structure, capture
from nnopt_jax.typing import Key, Params

__all__ = [
    "Examples",
    "Splits",
    "batches",
    "check_classes",
    "evaluate",
    "file_tree",
    "make_model",
    "model_graph",
    "network",
    "open_data",
    "output_shape",
    "structure",
    "variables_of",
]

# Bounds the memory of the activations during an evaluation.
_EVALUATED_AT_ONCE = 1000


class Examples(NamedTuple):
    """Inputs (n, ...) and labels (n, ...) of a split or of a batch.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.recipe.inputs import Examples
        >>> Examples(np.ones((4, 28, 28)), np.arange(4, dtype=np.int32))
        Examples(x=float64[4,28,28], y=int32[4])
    """

    x: Any
    y: Any

    def __repr__(self) -> str:
        """Return the shapes of inputs and labels."""
        shapes = ("x" + str(list(np.shape(a))).replace(" ", "") for a in self)
        x, y = (f"{a.dtype}{shape[1:]}" for a, shape in zip(self, shapes, strict=True))
        return f"Examples(x={x}, y={y})"


class Splits(NamedTuple):
    """The splits of a data set; `valid` may be None."""

    train: Examples
    valid: Examples | None
    test: Examples


def open_data(recipe: Recipe) -> Splits:
    """Load the data of a recipe and check it.

    Args:
        recipe: the recipe.

    Returns:
        The splits.

    Raises:
        RecipeError: the data cannot be read, a split is missing, its inputs and labels differ in
            number, or it has fewer examples than a batch.

    Example:
        >>> from nnopt_jax.recipe import build
        >>> from nnopt_jax.recipe.inputs import open_data
        >>> raw = {"name": "a", "model": "m:f", "stages": [{"name": "train", "epochs": 1}]}
        >>> open_data(build(raw | {"data": "nnopt_jax.zoo.data:digits"})).test
        Examples(x=float32[500,28,28,1], y=int32[500])
    """
    made = call(recipe.data, "data")
    problems = Problems("recipe: data")
    splits: dict[str, Any] = {"valid": None}
    for name in ("train", "valid", "test"):
        split = getattr(made, name, None)
        if split is None and name == "valid":
            continue
        x, y = getattr(split, "x", None), getattr(split, "y", None)
        if x is None or y is None:
            problems.add(name, f"{recipe.data.source} gave none with arrays x and y")
        elif len(x) != len(y) or not len(x):
            problems.add(name, f"{len(x)} inputs and {len(y)} labels")
        else:
            splits[name] = Examples(np.asarray(x), np.asarray(y))
    problems.raise_as(RecipeError)
    count = len(splits["train"].x)
    if count < recipe.batch_size:
        raise RecipeError(
            f"recipe: batch_size: given {recipe.batch_size}, wanted at most {count}, the number "
            "of training examples"
        )
    return Splits(**splits)


def batches(split: Examples, size: int, key: Key, start: int = 0) -> Iterator[Examples]:
    """Yield batches without end; the key and the number of an epoch determine its order.

    Args:
        split: the examples that batches are drawn from.
        size: examples in a batch; the rest of an epoch that does not fill a batch is skipped.
        key: the key that determines all orders.
        start: the number of batches to skip, to continue a run where it stopped.

    Yields:
        A batch.

    Example:
        >>> import jax, numpy as np
        >>> from nnopt_jax.recipe.inputs import Examples, batches
        >>> split = Examples(np.arange(4), np.arange(4))
        >>> drawn = batches(split, 2, jax.random.key(0))
        >>> sorted([*next(drawn).x, *next(drawn).x])
        [np.int64(0), np.int64(1), np.int64(2), np.int64(3)]
    """
    in_epoch = len(split.x) // size
    epoch, skip = divmod(start, in_epoch)
    while True:
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), len(split.x)))
        for i in range(skip, in_epoch):
            chosen = order[i * size : (i + 1) * size]
            yield Examples(split.x[chosen], split.y[chosen])
        epoch, skip = epoch + 1, 0


def network(model: FlaxModel) -> OnPacked:
    """Return the inference function `f(params, extra, x) -> logits`, which takes packed leaves.

    Packed leaves run packed where possible; `.report` lists those that are materialized.

    Example:
        >>> from nnopt_jax.interop.flax import adapt
        >>> from nnopt_jax.recipe.inputs import network
        >>> float(network(adapt(({}, lambda params, x: 2 * x), None, None))({}, {}, 3.0))
        6.0
    """
    return on_packed(lambda params, extra, x: model.apply(params, extra, x)[0])


def evaluate(
    run: Callable[..., Any], metric: Callable[..., Any], params: Params, extra: Any, split: Examples
) -> float:
    """Return the mean of a metric over a split.

    Args:
        run: the result of `network`, compiled.
        metric: `(logits, labels) -> scalar`, a mean over examples.
        params: dense or packed.
        extra: the model's other variables.
        split: inputs and labels.

    Returns:
        The mean, each example counted once.
    """
    total = 0.0
    for start in range(0, len(split.x), _EVALUATED_AT_ONCE):
        x, y = (array[start : start + _EVALUATED_AT_ONCE] for array in split)
        total += float(metric(run(params, extra, x), y)) * len(x)
    return total / len(split.x)


def output_shape(model: FlaxModel, data: Splits, subject: str) -> jax.ShapeDtypeStruct:
    """Return the shape of the network's output for two examples.

    Args:
        model: the network.
        data: the data, for a sample of the inputs.
        subject: the name of the network in errors.

    Raises:
        RecipeError: the network does not take the inputs.
    """
    variables = model.params, model.extra, data.train.x[:2]
    try:
        return jax.eval_shape(lambda v: model.apply(*v)[0], variables)
    except Exception as error:
        raise RecipeError(f"recipe: {subject} {_does_not_take(data, error)}") from error


def _does_not_take(data: Splits, error: Exception) -> str:
    shape = ", ".join(["batch", *map(str, data.train.x.shape[1:])])
    return f"does not take inputs of shape ({shape}): {type(error).__name__}: {error}"


def check_classes(model: FlaxModel, data: Splits) -> None:
    """Check, before training, that each label of a classifier has a logit.

    Raises:
        RecipeError: a label has no logit, or the model does not take the inputs.
    """
    logits, labels = output_shape(model, data, "model:"), data.train.y
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


def make_model(recipe: Recipe, data: Splits, key: Key) -> FlaxModel:
    """Make the model of a recipe and adapt it to the interface of the runner.

    Args:
        recipe: the recipe.
        data: gives a sample of the inputs.
        key: the key of the initial parameters.

    Returns:
        The model.

    Raises:
        RecipeError: the result is not a model, or cannot be initialized with such inputs.
    """
    made = call(recipe.model, "model", passed={"rngs": nnx.Rngs(key), "key": key})
    try:
        return adapt(made, jnp.asarray(data.train.x[:2]), key)
    except RecipeError as error:
        raise RecipeError(f"recipe: model: {recipe.model.source}: {error}") from error
    except Exception as error:
        problem = _does_not_take(data, error)
        raise RecipeError(f"recipe: model: {recipe.model.source} {problem}") from error


def model_graph(model: FlaxModel, inputs: Any) -> Graph:
    """Return the graph of the network at inference, traced for inputs of a given shape.

    Args:
        model: the network.
        inputs: a batch of inputs, or its shape and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.interop.flax import adapt
        >>> model = adapt(({"w": jnp.ones((3, 2))}, lambda params, x: x @ params["w"]), None, None)
        >>> model_graph(model, jnp.ones((4, 3))).axes["w"]
        Axes(0, 1)
    """

    def apply(params: Any, x: jax.Array) -> Any:
        return model.apply(params, model.extra, x, train=False, key=None)[0]

    return graph(apply, model.params, inputs)


def file_tree(params: Params, extra: Mapping[str, Any]) -> Any:
    """Return the tree that the file of a run stores.

    Args:
        params: dense or packed.
        extra: other variables; random streams are omitted, because only training uses them.

    Returns:
        The parameters, or `{"params": ..., ...}` if there are other variables.

    Example:
        >>> from nnopt_jax.recipe.inputs import file_tree
        >>> file_tree(1, {"rngs": 2}), file_tree(1, {"batch_stats": 3})
        (1, {'params': 1, 'batch_stats': 3})
    """
    others = {name: tree for name, tree in extra.items() if name != "rngs"}
    return {"params": params, **others} if others else params


def structure(model: FlaxModel, data: Splits) -> Structure:
    """Capture the program of a new network at inference, for batches of any size.

    Args:
        model: the network, with its initial parameters.
        data: the data, for the shape and dtype of the inputs.

    Returns:
        The structure of the tree that `file_tree` makes.

    Raises:
        RecipeError: the network cannot be written as a program.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.interop.flax import adapt
        >>> from nnopt_jax.recipe.inputs import Examples, Splits
        >>> split = Examples(jnp.ones((4, 3)), jnp.ones(4))
        >>> model = adapt(({"w": jnp.ones(3)}, lambda params, x: x @ params["w"]), None, None)
        >>> structure(model, Splits(split, None, split)).parameters
        {'w': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """

    def apply(tree: Any, x: Any) -> Any:
        params, extra = variables_of(tree, model.extra)
        return model.apply(params, extra, x, train=False, key=None)[0]

    x = data.train.x
    sample = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    try:
        return capture(apply, file_tree(model.params, model.extra), sample, shapes=["b, ..."])
    except Exception as error:
        raise RecipeError(
            f"recipe: program: the model cannot be written as a program for batches of any size: "
            f"{type(error).__name__}: {error}"
        ) from error


def variables_of(tree: Any, extra: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return parameters and other variables from a stored tree; the inverse of `file_tree`.

    Random streams, which the file omits, are those of `extra`.

    Example:
        >>> from nnopt_jax.recipe.inputs import variables_of
        >>> variables_of({"params": 1, "batch_stats": 3}, {"rngs": 2, "batch_stats": 0})
        (1, {'rngs': 2, 'batch_stats': 3})
    """
    if not set(extra) - {"rngs"}:
        return tree, dict(extra)
    return tree["params"], {name: extra[name] if name == "rngs" else tree[name] for name in extra}
