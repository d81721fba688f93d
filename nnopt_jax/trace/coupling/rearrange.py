"""Masking, permutation and removal of the units of parameters, such as channels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.columns import Tabular, counted
from nnopt_jax.errors import CompositionError, Problems, ValueRangeError
from nnopt_jax.trace.coupling.axis_coupling import CoupledAxes, Keep, check_leaves, dimensions_of
from nnopt_jax.trace.coupling.coupling_analysis import Analysis, Place, analyze_coupling
from nnopt_jax.trace.coupling.smaller_run import SmallerRun
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.traced import Outputs, Traced, everything, name_of, trace
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Params, Path, Shape


def mask_units(coupled: CoupledAxes, params: Params, keep: Keep) -> Params:
    """Set the elements of all removed units in parameters to zero.

    Args:
        coupled: the dependency graph.
        params: arrays.
        keep: the units to keep, by the name of a dimension, as `graph.shrink` takes them.
    """
    leaves = dict(coupled.leaves(params, "graph.mask"))
    for (path, axis), kept in coupled.masks(keep, "graph.mask").items():
        # Aligned with the axis, the mask broadcasts over the axes before and after it.
        shape = (-1,) + (1,) * (len(coupled.shapes[path]) - axis - 1)
        leaf = jnp.asarray(leaves[path])
        stays = jnp.broadcast_to(kept.reshape(shape), leaf.shape)
        leaves[path] = jnp.where(stays, leaf, jnp.zeros((), leaf.dtype))
    return unflatten(params, flatten(params) | leaves)


def permute_units(coupled: CoupledAxes, params: Params, order: Mapping[str, Any]) -> Params:
    """Permute units in all parameters that they belong to.

    Args:
        coupled: the dependency graph.
        params: arrays.
        order: by the name of a dimension, the unit number that moves to each position.
    """
    leaves = dict(coupled.leaves(params, "graph.permute"))
    known = dimensions_of("graph.permute", coupled.dimensions, order)
    wrong = Problems("graph.permute")
    for name, dimension in known.items():
        moved = np.asarray(order[name])
        if not np.array_equal(np.sort(moved), np.arange(dimension.size)):
            wrong.add(name, f"is not a permutation of {dimension.size} units.")
        elif not dimension.exchangeable:
            wrong.add(name, "its units meet different constants; they cannot change places.")
    wrong.raise_as(ValueRangeError)
    for name, dimension in known.items():
        for (path, axis), at in dimension.indices.items():
            # Elements that belong to no unit of the dimension keep their places.
            new = np.arange(coupled.shapes[path][axis])
            new[at.ravel()] = at[np.asarray(order[name])].ravel()
            leaves[path] = jnp.take(jnp.asarray(leaves[path]), new, axis)
    return unflatten(params, flatten(params) | leaves)


NAME = "graph.shrink"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SmallerFunction(Tabular):
    """A function of shrunk parameters, derived from a function of the original ones.

    A call traces the function at the original widths and the shapes of the other arguments, and
    computes it step by step without the removed units. Compile it once with `jax.jit(small.apply)`.

    Args:
        function: the function of the original parameters.
        shapes: the original shapes of the leaves.
        kept: which elements stay, for the axes that lose some.
        outputs: selects the part of its result that keeps its widths.
        table: the rules of the primitives.

    Example:
        >>> SmallerFunction(lambda p, x: p * x, {"": (1,)}, {}).widths
        {'': (1,)}
    """

    function: Callable[..., Any]
    shapes: Mapping[Path, Shape]
    kept: Mapping[Place, np.ndarray]
    outputs: Outputs = dataclasses.field(default=everything, repr=False)
    table: Table = dataclasses.field(default=TABLE, repr=False)

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        leaves = len({path for path, _ in self.kept})
        return f"{name_of(self.function)}, {counted(leaves, 'leaf', 'leaves')} smaller"

    @property
    def widths(self) -> dict[Path, Shape]:
        """The shapes of the smaller leaves, by path."""
        return {
            path: tuple(
                int(self.kept[path, axis].sum()) if (path, axis) in self.kept else size
                for axis, size in enumerate(shape)
            )
            for path, shape in self.shapes.items()
        }

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Return the function's result on shrunk parameters, as with zeros for removed units.

        Args:
            params: the smaller tree.
            *args: the other arguments of the function, at any batch size.
            **kwargs: its keyword arguments.

        Raises:
            ShapeError: a leaf does not have the smaller shape; the message lists all.
            CompositionError: for these arguments, the function needs units that were removed.
        """
        leaves = check_leaves("shrunk", self.widths, params)
        old = {
            path: jax.ShapeDtypeStruct(self.shapes[path], x.dtype) if path in leaves else x
            for path, x in flatten(params).items()
        }
        full = unflatten(params, old), *args
        # At the original widths, since the code of the function may contain them.
        given = trace(self.function, full, kwargs, self.outputs, self.table)
        analysis = analyze_coupling(given)
        running = SmallerRun(analysis.domain, lambda: self._removed_labels(analysis))
        small = given.with_parameters(leaves.values())
        return given.outcome(running.run(given.program, small.values))

    def _removed_labels(self, analysis: Analysis) -> np.ndarray:
        """Return a mask of removed labels; a unit is removed if all its elements are."""
        # This runs again when derivative rules, analyzed during the run, have added labels.
        analysis.sets.propagate()
        places, rows = analysis.elements()
        gone = np.zeros(len(rows), bool)
        for number, place in enumerate(places):
            if place in self.kept:
                own = rows[:, 1] == number
                gone[own] = ~self.kept[place][rows[own, 3]]
        stays = np.zeros(analysis.sets.size, bool)
        stays[rows[~gone, 0]] = True
        # A unit that keeps any element stays; the check below reports such a mismatch.
        units = np.unique(rows[:, 0])
        found = analysis.sets.removed_labels(units[~stays[units]])
        wrong = Problems(NAME)
        for place, labels in analysis.labels.items():
            kept = self.kept.get(place)
            left = ~found[labels]
            if not (left.all() if kept is None else np.array_equal(left, kept)):
                reason = analysis.sets.reason(labels)
                why = "" if reason is None else f" ({reason})"
                text = f"axis {place[1]} does not go with the rest at these arguments{why}."
                wrong.add(place[0], text)
        wrong.raise_as(CompositionError)
        return found


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShrunkModel(Tabular):
    """The result of `graph.shrink`: smaller parameters, and the function that takes them.

    Args:
        params: the smaller tree.
        apply: the smaller function, called as `apply(params, *args, **kwargs)`.

    Example:
        >>> ShrunkModel({}, SmallerFunction(lambda p, x: x, {}, {})).widths
        {}
    """

    params: Params
    apply: SmallerFunction

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        before, after = (
            sum(map(math.prod, shapes.values())) for shapes in (self.apply.shapes, self.widths)
        )
        return f"{before:,} -> {after:,} parameters"

    @property
    def widths(self) -> dict[Path, Shape]:
        """The new shape of each leaf by path, for the constructor of a narrower model."""
        return self.apply.widths


def shrink(
    function: Callable[..., Any], given: Traced, coupled: CoupledAxes, params: Params, keep: Keep
) -> ShrunkModel:
    """Remove units from parameters, and derive the function of the smaller parameters.

    Args:
        function: the function of the original parameters.
        given: the traced function.
        coupled: its dependency graph.
        params: arrays.
        keep: the units to keep, by the name of a dimension, as `graph.shrink` takes them.
    """
    kept = coupled.masks(keep, NAME)
    leaves = dict(coupled.leaves(params, NAME))
    for (path, axis), left in kept.items():
        leaves[path] = jnp.take(jnp.asarray(leaves[path]), np.flatnonzero(left), axis)
    smaller = SmallerFunction(function, coupled.shapes, kept, given.outputs, given.table)
    return ShrunkModel(unflatten(params, flatten(params) | leaves), smaller)
