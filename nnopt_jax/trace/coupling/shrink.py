"""Smaller parameters, and the smaller function of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import CompositionError, Problems
from nnopt_jax.trace.coupling.analysis import Analysis, Outputs, Place, analyse
from nnopt_jax.trace.coupling.choice import Keep, checked
from nnopt_jax.trace.coupling.coupled_axes import CoupledAxes
from nnopt_jax.trace.coupling.smaller_run import SmallerRun
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.traced import traced
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Params, Path, Shape

NAME = "graph.shrink"


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
        table: where primitives are described.

    Example:
        >>> SmallerFunction(lambda p, x: p * x, {"": (1,)}, {}, lambda found: found).widths
        {'': (1,)}
    """

    function: Callable[..., Any]
    shapes: Mapping[Path, Shape]
    kept: Mapping[Place, np.ndarray]
    outputs: Outputs = dataclasses.field(repr=False)
    table: Table = dataclasses.field(default=TABLE, repr=False)

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
        given = traced(self.function, (unflatten(params, old), *args), kwargs)
        analysis = analyse(given, self.outputs, self.table)
        running = SmallerRun(analysis.domain, lambda: self._removed(analysis))
        small = given.with_parameters(leaves.values())
        return given.outcome(running.run(given.program, small.values))

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
        wrong = Problems(NAME)
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
class ShrunkModel:
    """What `graph.shrink` returns: smaller parameters, and the function of them.

    Args:
        params: the smaller tree.
        apply: the smaller function, of `(params, *args, **kwargs)`.

    Example:
        >>> ShrunkModel({}, SmallerFunction(lambda p, x: x, {}, {}, lambda found: found)).widths
        {}
    """

    params: Params
    apply: SmallerFunction

    @property
    def widths(self) -> dict[Path, Shape]:
        """The new shape of each leaf by path, for the constructor of a narrower model."""
        return self.apply.widths


def shrink(
    function: Callable[..., Any],
    coupled: CoupledAxes,
    outputs: Outputs,
    params: Params,
    keep: Keep,
    table: Table = TABLE,
) -> ShrunkModel:
    """Remove units from parameters and from the function of them.

    Args:
        function: of the parameters as they are.
        coupled: its units.
        outputs: the part of what it returns that keeps its widths.
        params: arrays.
        keep: by name of a dimension the units that stay.
        table: where primitives are described.
    """
    kept = coupled.kept(keep, NAME)
    leaves = dict(coupled.leaves(params, NAME))
    for (path, axis), left in kept.items():
        leaves[path] = jnp.take(jnp.asarray(leaves[path]), np.flatnonzero(left), axis)
    smaller = SmallerFunction(function, coupled.shapes, kept, outputs, table)
    return ShrunkModel(unflatten(params, flatten(params) | leaves), smaller)
