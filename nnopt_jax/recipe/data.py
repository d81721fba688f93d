"""Data as a recipe names it: checked splits, and batches in an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from nnopt_jax.errors import Problems, RecipeError
from nnopt_jax.recipe import resolve
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.typing import Key


class Split(NamedTuple):
    """Inputs (n, ...) and labels (n, ...)."""

    x: Any
    y: Any


class Data(NamedTuple):
    """The splits of a data set; `valid` may be absent."""

    train: Split
    valid: Split | None
    test: Split


def open_data(recipe: Recipe) -> Data:
    """Calls the recipe's data and checks what comes back.

    Args:
        recipe: the recipe.

    Returns:
        The splits.

    Raises:
        RecipeError: the data cannot be read, a split is missing, its inputs and labels differ in
            number, or it does not fill one batch.

    Example:
        >>> from nnopt_jax.recipe.data import open_data
        >>> from nnopt_jax.recipe.load import build
        >>> raw = {"name": "a", "model": "m:f", "stages": [{"name": "train", "epochs": 1}]}
        >>> open_data(build(raw | {"data": "nnopt_jax.zoo.data:digits"})).test.x.shape
        (500, 28, 28, 1)
    """
    made = resolve.call(recipe.data, "data")
    problems = Problems("recipe: data")
    splits = {}
    for name in ("train", "valid", "test"):
        split = getattr(made, name, None)
        if split is None and name == "valid":
            splits[name] = None
            continue
        x, y = getattr(split, "x", None), getattr(split, "y", None)
        if x is None or y is None:
            problems.add(name, f"{recipe.data.source} gave none with arrays x and y")
        elif len(x) != len(y) or not len(x):
            problems.add(name, f"{len(x)} inputs and {len(y)} labels")
        else:
            splits[name] = Split(np.asarray(x), np.asarray(y))
    problems.raise_as(RecipeError)
    count = len(splits["train"].x)
    if count < recipe.batch_size:
        raise RecipeError(
            f"recipe: batch_size: given {recipe.batch_size}, wanted at most {count}, the number "
            "of training examples"
        )
    return Data(**splits)


def batches(split: Split, size: int, key: Key, start: int = 0) -> Iterator[Split]:
    """Endless batches; each epoch has an order of its own, drawn from the key and its number.

    Args:
        split: what is drawn from.
        size: examples in a batch; what does not fill one is left out of the epoch.
        key: fixes all orders.
        start: how many batches to leave out, so that a run goes on where it stopped.

    Yields:
        A batch.

    Example:
        >>> import jax, numpy as np
        >>> from nnopt_jax.recipe.data import Split, batches
        >>> split = Split(np.arange(4), np.arange(4))
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
            yield Split(split.x[chosen], split.y[chosen])
        epoch, skip = epoch + 1, 0
