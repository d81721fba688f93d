"""Smaller parameters, and the smaller function of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import CompositionError, Problems
from nnopt_jax.trace.grouped.analysis import Analysis, Outputs, Place, analyse
from nnopt_jax.trace.grouped.choice import Keep, checked
from nnopt_jax.trace.grouped.graph import Groups
from nnopt_jax.trace.grouped.run import Running
from nnopt_jax.trace.traced import require_function
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Params, Path, Shape

_NAME = "shrink"


@dataclasses.dataclass(frozen=True, eq=False)
class SmallerFunction:
    """A function of parameters, as a function of the smaller ones.

    It is traced when it is called, at its old widths and the shapes of the other arguments, and
    computed step by step without what was removed: write `jax.jit(small.apply)`, once.

    Args:
        function: of the parameters as they were.
        shapes: of its leaves.
        kept: where elements are left, of the axes that lose some.
        outputs: the part of what it returns that keeps its widths.

    Example:
        >>> SmallerFunction(lambda p, x: p * x, {"": (1,)}, {}, lambda found: found).widths
        {'': (1,)}
    """

    function: Callable[..., Any]
    shapes: Mapping[Path, Shape]
    kept: Mapping[Place, np.ndarray]
    outputs: Outputs = dataclasses.field(repr=False)

    @property
    def widths(self) -> dict[Path, Shape]:
        """The shapes of the leaves that are left."""
        return {
            path: tuple(
                int(self.kept[path, axis].sum()) if (path, axis) in self.kept else size
                for axis, size in enumerate(shape)
            )
            for path, shape in self.shapes.items()
        }

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Computes what the function does with zeros in place of what was removed.

        Args:
            params: the smaller tree.
            *args: as for the function, of any batch size.
            **kwargs: likewise.

        Raises:
            ShapeError: a leaf is not of the smaller shape; all are named.
            CompositionError: at these arguments the function needs what was removed.
        """
        leaves = checked("shrunk", self.widths, params)
        old = {
            path: jax.ShapeDtypeStruct(self.shapes[path], x.dtype) if path in leaves else x
            for path, x in flatten(params).items()
        }
        analysis = analyse(self.function, (unflatten(params, old), *args), kwargs, self.outputs)
        running = Running(analysis.book, lambda: self._removed(analysis))
        given, small = analysis.traced, iter(leaves.values())
        values = [
            next(small) if argument == 0 else value
            for argument, value in zip(given.arguments, given.values, strict=True)
        ]
        return given.outcome(running.run(analysis.reading, values))

    def _removed(self, analysis: Analysis) -> np.ndarray:
        """Of every label whether it goes: units go of which every element does."""
        analysis.book.settle()
        places, rows = analysis.elements()
        gone = np.zeros(len(rows), bool)
        for number, place in enumerate(places):
            if place in self.kept:
                own = rows[:, 1] == number
                gone[own] = ~self.kept[place][rows[own, 3]]
        stays = np.zeros(analysis.book.size, bool)
        stays[rows[~gone, 0]] = True
        units = np.unique(rows[:, 0])
        found = analysis.book.removed(units[~stays[units]])
        wrong = Problems(_NAME)
        for place, labels in analysis.labels.items():
            kept = self.kept.get(place)
            left = ~found[labels]
            if not (left.all() if kept is None else np.array_equal(left, kept)):
                reason = analysis.book.reason(labels)
                why = "" if reason is None else f" ({reason})"
                text = f"axis {place[1]} does not go with the rest at these arguments{why}."
                wrong.add(place[0], text)
        wrong.raise_as(CompositionError)
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """What `shrink` returns.

    Args:
        params: the smaller tree.
        apply: the smaller function, of `(params, *args, **kwargs)`.

    Example:
        >>> Shrunk({}, SmallerFunction(lambda p, x: x, {}, {}, lambda found: found)).widths
        {}
    """

    params: Params
    apply: SmallerFunction

    @property
    def widths(self) -> dict[Path, Shape]:
        """The new shape of every leaf by path, for a constructor of the model's own."""
        return self.apply.widths


def shrink(apply: Callable[..., Any], graph: Groups, params: Params, keep: Keep) -> Shrunk:
    """Takes units out: smaller parameters, and a smaller function that computes the same.

    The same as what? As the model with zeros in place of all elements of the removed units,
    `apply(graph.mask(params, keep), ...)`, up to the order of sums. The function is found by
    tracing `apply` anew at its old widths whenever it is called with new shapes, and computing
    each step at the smaller ones; the model is not rebuilt, and need not know of it. Gradients,
    `jit`, `vmap`, `jax.checkpoint` and `jax.export` go through it, and functions with derivative
    rules of their own keep them.

    Args:
        apply: the function that was read.
        graph: what `groups` found.
        params: arrays, of the shapes that were read.
        keep: by name of a dimension the units that stay, as booleans for all or as numbers;
            dimensions that are not named stay whole.

    Returns:
        The `Shrunk`: `.params`, `.apply`, and `.widths` by path.

    Raises:
        SelectionError: a dimension or a leaf is not known; all are named.
        ShapeError: a leaf has another shape than was read; all are named.
        ValueRangeError: units are given wrongly, or none would be left; all are named.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> apply = lambda p, x: jax.nn.relu(x @ p["fc1"]) @ p["fc2"]
        >>> params = {"fc1": jnp.ones((3, 4)), "fc2": jnp.arange(4.0)[:, None]}
        >>> graph = nnopt.groups(apply, params, jnp.ones((1, 3)))
        >>> small = nnopt.shrink(apply, graph, params, {"fc1:1": [1, 3]})
        >>> small.widths
        {'fc1': (3, 2), 'fc2': (2, 1)}
        >>> jax.jit(small.apply)(small.params, jnp.ones((5, 3)))[0]
        Array([12.], dtype=float32)
    """
    require_function(_NAME, apply)
    kept = graph.kept(keep, _NAME)
    leaves = dict(graph.leaves(params, _NAME))
    for (path, axis), left in kept.items():
        leaves[path] = jnp.take(jnp.asarray(leaves[path]), np.flatnonzero(left), axis)
    function = SmallerFunction(apply, graph.shapes, kept, graph.outputs)
    return Shrunk(unflatten(params, flatten(params) | leaves), function)
