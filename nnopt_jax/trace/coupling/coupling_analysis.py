"""The analysis of coupled axes: which elements of parameters must be removed together."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.columns import Tabular, counted
from nnopt_jax.errors import ShapeError
from nnopt_jax.trace.abstract_walk import Walk
from nnopt_jax.trace.coupling.coupling_domain import Coupling
from nnopt_jax.trace.coupling.labels import Labels, LabelSets
from nnopt_jax.trace.coupling.remains import Value
from nnopt_jax.trace.traced import Traced
from nnopt_jax.typing import Path, Shape

Place = tuple[Path, int]
"""An axis of a leaf: the path and the number of the axis."""


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The result of the coupling analysis: the labels of all elements of the leaves.

    Args:
        traced: the function.
        domain: the labels, and the notes of each step.
        shapes: the shapes of the leaves of the first argument.
        labels: the labels of each axis of these leaves.
    """

    traced: Traced
    domain: Coupling
    shapes: dict[Path, Shape]
    labels: dict[Place, Labels]

    @property
    def sets(self) -> LabelSets:
        """The labels, and the sets of elements that they stand for."""
        return self.domain.sets

    def elements(self) -> tuple[list[Place], np.ndarray]:
        """List the positions of every unit on the axes of the leaves.

        Returns:
            The places, and rows of four numbers: the unit, the place, the role of the unit there,
            and the position.
        """
        places, found = list(self.labels), []
        for number, labels in enumerate(self.labels.values()):
            at, unit, role = self.sets.units(labels)
            found.append(np.stack([unit, np.full(len(at), number), role, at], 1))
        return places, np.concatenate(found) if found else np.zeros((0, 4), np.int64)


def analyze_coupling(given: Traced) -> Analysis:
    """Find which elements of a function's parameters must be removed together.

    Args:
        given: the function; its parameters are the first argument.
    """
    domain = Coupling(table=given.table)
    sets = domain.sets
    inputs, shapes, labels = [], {}, {}
    for path, argument, variable in zip(
        given.paths, given.arguments, given.program.jaxpr.invars, strict=True
    ):
        shape = _numbers(path, variable.aval.shape)
        if argument == 0:
            value = _parameter(sets, shape, variable.aval.dtype)
            shapes[path] = shape
            labels |= {(path, axis): found for axis, found in enumerate(value.axes)}
        else:
            value = Value.fixed(sets, shape, f"input {path}")
        inputs.append(value)
    found = Walk(domain, given.table).run(given.program, inputs)
    # The result of the model keeps its widths.
    for value in given.selected(found):
        for own in value.axes:
            sets.fix(own, "output")
    sets.propagate()
    return Analysis(given, domain, shapes, labels)


def _numbers(path: Path, shape: Any) -> Shape:
    if not all(isinstance(size, int) for size in shape):
        raise ShapeError(
            f"graph.coupled: {path}: has shape {shape}, and elements are followed one by one. "
            "Give sizes that are numbers; to export a shrunk function for any batch, map it: "
            "jax.vmap(lambda row: small.apply(params, row[None])[0])(rows)."
        )
    return tuple(shape)


def _parameter(sets: LabelSets, shape: Shape, dtype: Any) -> Value:
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return Value.fixed(sets, shape, "no numbers")
    value = Value(tuple(map(sets.new_labels, shape)), (0.0,) * len(shape), parameter=True)
    for labels in value.axes:
        if len(labels) == 1:
            sets.fix(labels, "a single element")
    return value


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dimension(Tabular):
    """A set of units on the same axes of the same leaves, such as the hidden units of a layer.

    Args:
        name: one of its members, such as `layer/kernel:1`.
        size: the number of units.
        indices: by (path, axis) an integer array (units, elements) of the positions of each unit.
        exchangeable: whether units may be permuted; False if constants differ between units, such
            as the angles of rotary embeddings.
        consumed: the members that consume the units, such as rows of the next kernel; zeros in
            these alone mask a unit.
        counted: whether any operation other than a product with weights sums over the units, such
            as layer normalization or attention scores, whose result would change with more units.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.trace import Dimension
        >>> Dimension("fc/kernel:1", 2, {("fc/kernel", 1): np.array([[0], [1]])}).members
        (('fc/kernel', 1),)
    """

    name: str
    size: int
    indices: Mapping[Place, np.ndarray]
    exchangeable: bool = True
    consumed: frozenset[Place] = frozenset()
    counted: bool = False

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        axes = counted(len(self.indices), "axis", "axes")
        return f"{self.name!r}, {counted(self.size, 'unit')} on {axes}"

    @property
    def members(self) -> tuple[Place, ...]:
        """The member axes of the dimension, as (path, axis)."""
        return tuple(self.indices)

    @property
    def elements(self) -> int:
        """The number of positions that one unit has, summed over all member axes."""
        return sum(at.shape[1] for at in self.indices.values())


_UNIT, _PLACE, _ROLE, _AT = range(4)


def dimensions(analysis: Analysis) -> tuple[Dimension, ...]:
    """Group units that lie on the same axes of the same leaves into dimensions.

    Units of one dimension have equally many elements, in equal roles, on the same axes. Heads and
    their dimensions may share axes; their roles distinguish them.

    Args:
        analysis: the analysis of a function.

    Returns:
        The dimensions in the order of the leaves, and on one axis the outer ones first; units in
        the order of their positions on the first member.
    """
    places, rows = analysis.elements()
    kind = _kinds(rows)
    # Sorted by kind, place, unit and position, each dimension is a block of rows.
    order = np.lexsort((rows[:, _AT], rows[:, _UNIT], rows[:, _PLACE], kind))
    rows, kind = rows[order], kind[order]
    found = []
    for own in _pieces(rows, kind):
        units = np.unique(own[:, _UNIT])
        if len(units) == 1:  # a single unit cannot be removed
            continue
        parts = _pieces(own, own[:, _PLACE])
        indices = {part[0, _PLACE]: part[:, _AT].reshape(len(units), -1) for part in parts}
        first = np.argsort(next(iter(indices.values()))[:, 0], kind="stable")
        indices = {place: at[first] for place, at in indices.items()}
        found.append((indices, units))
    # On one axis, the units of an outer dimension are farther apart.
    found.sort(key=lambda each: [(place, at[0, 0], -at[1, 0]) for place, at in each[0].items()])
    named = [({places[at]: x for at, x in indices.items()}, units) for indices, units in found]
    names = _names(analysis, [indices for indices, _ in named])
    return tuple(_dimension(analysis, name, *each) for name, each in zip(names, named, strict=True))


def _dimension(
    analysis: Analysis, name: str, indices: Mapping[Place, np.ndarray], units: np.ndarray
) -> Dimension:
    sets = analysis.sets
    return Dimension(
        name,
        len(units),
        indices,
        exchangeable=not sets.is_ordered(units).any(),
        consumed=frozenset(p for p in indices if sets.is_consumed(analysis.labels[p])),
        counted=bool(sets.is_counted(units).any()),
    )


def _pieces(rows: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
    """Split an array of rows where the key changes from one row to the next."""
    return np.split(rows, np.flatnonzero(np.diff(key)) + 1) if len(rows) else []


def _kinds(rows: np.ndarray) -> np.ndarray:
    """Return for each row a number for the kind of its unit: its axes, roles and element counts."""
    if not len(rows):
        return np.zeros(0, np.int64)
    # Rows are encoded as single numbers, which sort ten times as fast.
    _, role = np.unique(rows[:, _ROLE], return_inverse=True)
    parts = rows[:, _PLACE] * (role.max() + 1) + role
    _, first, counts = np.unique(
        rows[:, _UNIT] * (parts.max() + 1) + parts, return_index=True, return_counts=True
    )
    units, start = np.unique(rows[first, _UNIT], return_index=True)
    _, part = np.unique(parts[first] * (counts.max() + 1) + counts, return_inverse=True)
    # A kind is a set of parts, identified by a sum of random words; the order is arbitrary.
    words = np.random.default_rng(0).integers(1 << 63, size=part.max() + 1, dtype=np.uint64)
    _, kind = np.unique(np.add.reduceat(words[part], start), return_inverse=True)
    return kind[np.searchsorted(units, rows[:, _UNIT])]


def _names(analysis: Analysis, found: Sequence[Mapping[Place, np.ndarray]]) -> list[str]:
    """Name each dimension after a kernel that produces its units, rather than a consumer."""
    names: list[str] = []
    for indices in found:

        def least(place: Place, indices: Mapping[Place, np.ndarray] = indices) -> tuple[int, ...]:
            shape = analysis.shapes[place[0]]
            part = np.unique(indices[place]).size < shape[place[1]]
            # False comes first: producers, then axes of a single dimension, then kernels.
            return analysis.sets.is_consumed(analysis.labels[place]), part, -len(shape)

        path, axis = min(indices, key=least)
        names.append(f"{path}:{axis}")
    counts: collections.Counter[str] = collections.Counter()
    for at, name in enumerate(names):
        counts[name] += 1
        names[at] = name if counts[name] == 1 else f"{name}#{counts[name]}"
    return names


def frozen_axes(analysis: Analysis, known: Sequence[Dimension]) -> dict[Place, str]:
    """Return for each axis that is in no dimension the reason why it cannot shrink."""
    free = {place for dimension in known for place in dimension.indices}
    found = {}
    for place, labels in analysis.labels.items():
        if place not in free:
            reason = analysis.sets.reason(labels)
            found[place] = "all its elements go together" if reason is None else str(reason)
    return found
