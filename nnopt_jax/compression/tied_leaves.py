"""Tied leaves: weights that are used in several places."""

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
    r"""Replace weights by those of other leaves, such as an output layer's by an embedding's.

    $$ \hat W_{target} = \hat W_{source} \quad \text{or} \quad \hat W_{source}^T $$

    The gradients of both uses reach the source and the scores of earlier transforms. The target's
    own parameter is no longer used, and its gradient is zero. A file stores the weights once.
    Statistics of `graph.observe` are those of the source's own use.

    Put this transform last in a chain. Earlier transforms act on the source, and the target uses
    their result (masks, tables, grids, factors); they must exclude the target, because their work
    on it would be lost. Later transforms act on each leaf separately, and leaves that they change
    differently are stored separately.

    Args:
        pairs: maps the path of a target to the path of its source.
        transpose: whether targets are sources with reversed axes.

    Returns:
        The transform, which replaces the target by a view of the source.

    Raises:
        ValueRangeError: `pairs` is not a mapping of paths, or names a leaf on both sides.
        SelectionError: at `init`, a leaf does not exist.
        ShapeError: at `init`, shapes or dtypes differ.
        CompositionError: at `init`, an earlier transform has encoded a target.

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
