"""Models of one architecture, leaf beside leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import is_node, materialize, summary
from nnopt_jax.errors import Problems, SelectionError, ShapeError, nearest
from nnopt_jax.settings import Settings, single
from nnopt_jax.transform.given import require_values
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Array, Params


def merged(
    who: str, models: Sequence[Params], merge: Callable[..., Any], names: Sequence[str] = ()
) -> Params:
    """Merges models leaf by leaf, in float32, and casts once.

    Complex numbers are two reals each. Leaves that hold neither (counters, masks) are those of the
    first model.

    Args:
        who: the method's public name.
        models: trees of arrays or expressions, with the same paths and shapes.
        merge: float32 arrays, one of each model, to the merged one.
        names: how errors call the models; default: model 0, model 1, ...

    Returns:
        A tree of arrays of the structure and dtypes of the first model.

    Raises:
        SelectionError: a model lacks leaves of the first, or has others.
        ShapeError: shapes differ.
        CompositionError: leaves are no arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> merged("demo", [{"w": jnp.ones(2)}, {"w": jnp.zeros(2)}], lambda a, b: a - 2 * b)
        {'w': Array([1., 1.], dtype=float32)}
    """
    leaves = aligned(who, models, names)
    found: dict[str, Any] = {}
    for path, leaf in leaves[0].items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            found[path] = _like(merge(*(reals(one[path]) for one in leaves)), leaf.dtype)
        else:
            found[path] = materialize(leaf)
    return unflatten(models[0], found, is_node)


def reals(leaf: Any) -> Array:
    """A leaf in float32; of complex numbers the two parts, along a last axis."""
    x = materialize(leaf)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], -1)
    return x.astype(jnp.float32)


def _like(x: Array, dtype: Any) -> Array:
    """Undoes `reals`."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = jax.lax.complex(x[..., 0], x[..., 1])
    return x.astype(dtype)


def _kind(leaf: Any) -> str:
    """What numbers a leaf holds."""
    for kind in (jnp.floating, jnp.complexfloating):
        if jnp.issubdtype(leaf.dtype, kind):
            return kind.__name__
    return "none to be merged"


def aligned(who: str, models: Sequence[Params], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The leaves of each model by path; raises as `merged` does, all differences at once."""
    leaves = [flatten(model, is_node) for model in models]
    called = [*names, *(f"model {number}" for number in range(len(names), len(models)))]
    for name, one in zip(called, leaves, strict=True):
        require_values(f"{who}: {name}", one)
    first, lost, misfit = leaves[0], Problems(who), Problems(who)
    for name, other in zip(called[1:], leaves[1:], strict=True):
        for path in first.keys() - other.keys():
            lost.add(path, f"is not in {name}.{nearest(path, other.keys() - first.keys())}")
        for path in other.keys() - first.keys():
            lost.add(path, f"is in {name}, not in {called[0]}.{nearest(path, first)}")
        for path in (path for path in first if path in other):
            if first[path].shape != other[path].shape:
                text = f"is {summary(first[path])} in {called[0]}, {summary(other[path])} in {name}"
                misfit.add(path, f"{text}; graft() makes shapes fit")
            elif _kind(first[path]) != _kind(other[path]):
                text = f"is {summary(first[path])} in {called[0]}, {summary(other[path])} in {name}"
                misfit.add(path, f"{text}; cast one of them")
    lost.found.sort()
    lost.raise_as(SelectionError)
    misfit.raise_as(ShapeError)
    return leaves


def listed(settings: Settings, models: Any) -> list[Any]:
    """The models as a list; a single model is none."""
    if isinstance(models, Mapping) or not isinstance(models, Iterable):
        settings.wrong("models", type(models), "is not a list; give models one by one, [a, b].")
        settings.done()
    return list(models)


def check_weights(
    settings: Settings, weights: Any, count: int, *, some: bool = True
) -> list[float]:
    """One finite number for each model; a single one stands for all."""
    if isinstance(weights, jax.Array | np.ndarray) and weights.ndim:
        weights = list(weights)
    values = [weights] * count if not isinstance(weights, Sequence) else weights
    values = [single(value) for value in values]
    if len(values) != count:
        settings.wrong("weights", weights, f"has {len(values)} values for {count} models.")
    for value in values:
        settings.number("weights", value, -1e30, 1e30)
    settings.done()
    if some and not sum(values):
        settings.wrong("weights", weights, "sums to zero, by which it is divided.")
    settings.done()
    return [float(value) for value in values]
