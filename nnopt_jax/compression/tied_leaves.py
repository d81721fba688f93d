"""Tied leaves: the weights of one place, used in another as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.errors import CompositionError, Problems, SelectionError, ShapeError, nearest
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import Leaves
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.paths import flatten, unflatten

_NAME = "compression.tie"


@recorded
def tie(pairs: Mapping[str, str], *, transpose: bool = False) -> Transform:
    r"""Tie leaves to others: output layers to embeddings, layers to layers that they repeat.

    $$ \hat W_{target} = \hat W_{source} \quad \text{or} \quad \hat W_{source}^T $$

    The gradient of both uses reaches the source, and the scores of transforms before it. The
    target's own parameter is not used any more, and its gradient is zero. A file holds the weights
    once. Statistics of `graph.observe` are those of the source's own use.

    Put it last in a chain. Transforms before it act on the source, and what they make of it (masks,
    tables, grids, factors) is shown at the target too; they must leave the target out, because
    what they made of it would be lost. Transforms after it act on each of the leaves by itself:
    what they change apart is stored apart.

    Args:
        pairs: path of the source by path of the target.
        transpose: whether targets show their sources with the axes reversed.

    Returns:
        The transform. It puts a view of the source in the target's place.

    Raises:
        ValueRangeError: `pairs` is not a mapping of paths, or names a leaf on both sides.
        SelectionError: at `init`, where there is no such leaf.
        ShapeError: at `init`, where shapes or dtypes differ.
        CompositionError: at `init`, where an earlier transform has encoded a target.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.compression.tie({"head/kernel": "embed/embedding"}, transpose=True)
        >>> params = {
        ...     "embed": {"embedding": jnp.array([[1.0, 2.0]])},
        ...     "head": {"kernel": jnp.zeros((2, 1))},
        ... }
        >>> tx.apply(params, tx.init(params))["head"]["kernel"]
        Array([[1.],
               [2.]], dtype=float32)

    References:
        Press and Wolf 2017, Using the Output Embedding to Improve Language Models, section 2.
    """
    _check(pairs, transpose)
    pairs = dict(pairs)
    named = {*pairs, *pairs.values()}

    def encode(leaves: Leaves, state: State, train: bool) -> Leaves:
        del state, train
        return {target: _view(leaves[source], transpose) for target, source in pairs.items()}

    def back(slopes: Any) -> Any:
        leaves = flatten(slopes)
        for target, source in pairs.items():
            if source in leaves and target in leaves:
                more = leaves[target].T if transpose else leaves[target]
                leaves[source] = leaves[source] + more
        return unflatten(slopes, leaves)

    def build(binding: Binding) -> Transform:
        tx = wrapping(
            _NAME,
            lambda path, leaf: path in named,
            init=lambda leaves, start: ({}, dict.fromkeys(leaves)),
            encode=encode,
            binding=binding,
        )

        def check(params: Any) -> None:
            _check_leaves(flatten(params, is_node), pairs, transpose)

        def init(params: Any, **given: Any) -> State:
            check(params)
            return tx.init(params, **given)

        return dataclasses.replace(tx, init=init, back=back, check=check)

    return bindable(build)


def _view(source: Any, transpose: bool) -> Reshaped:
    return Reshaped.of(source, tuple(range(source.ndim))[::-1] if transpose else ())


def _check(pairs: Any, transpose: Any) -> None:
    settings = Settings(_NAME)
    settings.flag("transpose", transpose)
    if not (isinstance(pairs, Mapping) and pairs) or not all(
        isinstance(path, str) for pair in pairs.items() for path in pair
    ):
        settings.wrong("pairs", pairs, "is not a mapping {path of a target: path of its source}.")
    else:
        for target, source in pairs.items():
            if source in pairs:
                text = f"names {source} as a source, which is tied itself, to {pairs[source]}."
                settings.wrong("pairs", {target: source}, text)
    settings.done()


def _check_leaves(leaves: Leaves, pairs: Mapping[str, str], transpose: bool) -> None:
    lost, misfit, encoded = Problems(_NAME), Problems(_NAME), Problems(_NAME)
    for path in dict.fromkeys(path for pair in pairs.items() for path in pair):
        if path not in leaves:
            lost.add("", f"there is no leaf {path!r}.{nearest(path, leaves)}")
    lost.raise_as(SelectionError)
    for target, source in pairs.items():
        shape = leaves[source].shape[::-1] if transpose else leaves[source].shape
        if (leaves[target].shape, leaves[target].dtype) != (shape, leaves[source].dtype):
            origin = f"{source} is {summary(leaves[source])}{', transposed' if transpose else ''}"
            misfit.add(target, f"is {summary(leaves[target])}, and its source {origin}")
        if is_node(leaves[target]):
            text = f"an earlier transform made {summary(leaves[target])} of it, which would be lost"
            encoded.add(target, f"{text}; leave it out there with where=")
    misfit.raise_as(ShapeError)
    encoded.raise_as(CompositionError)
