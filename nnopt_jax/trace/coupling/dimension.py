"""Grouping of units of the same kind into named dimensions."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from nnopt_jax.trace.coupling.analysis import Analysis, Place


@dataclasses.dataclass(frozen=True, eq=False)
class Dimension:
    """A set of units on the same axes of the same leaves, such as the hidden units of a layer.

    Args:
        name: one of its members, such as `layer/kernel:1`.
        size: the number of units.
        indices: by (path, axis) an integer array (units, elements) of the positions of each unit.
        exchangeable: whether units may change places; not if constants differ from unit to unit,
            such as the angles of rotary embeddings.
        consumed: the members that read the units, such as rows of the next kernel; zeros there
            alone are enough to mask a unit.
        counted: whether anything but a product with weights sums over the units, such as layer
            normalization or attention scores; its result would change with more units.

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

    @property
    def members(self) -> tuple[Place, ...]:
        """The axes of the dimension, as (path, axis)."""
        return tuple(self.indices)

    @property
    def elements(self) -> int:
        """The number of positions that one unit has on the axes of all members."""
        return sum(at.shape[1] for at in self.indices.values())


_UNIT, _PLACE, _ROLE, _AT = range(4)


def dimensions(analysis: Analysis) -> tuple[Dimension, ...]:
    """Group units into dimensions.

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
    found.sort(key=lambda each: [(place, at[0, 0], -at[1, 0]) for place, at in each[0].items()])
    named = [({places[at]: x for at, x in indices.items()}, units) for indices, units in found]
    names = _names(analysis, [indices for indices, _ in named])
    return tuple(_dimension(analysis, name, *each) for name, each in zip(names, named, strict=True))


def _dimension(
    analysis: Analysis, name: str, indices: Mapping[Place, np.ndarray], units: np.ndarray
) -> Dimension:
    book = analysis.book
    return Dimension(
        name,
        len(units),
        indices,
        exchangeable=not book.is_ordered(units).any(),
        consumed=frozenset(p for p in indices if book.is_consumed(analysis.labels[p])),
        counted=bool(book.is_counted(units).any()),
    )


def _pieces(rows: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
    """Split rows where their key changes."""
    return np.split(rows, np.flatnonzero(np.diff(key)) + 1) if len(rows) else []


def _kinds(rows: np.ndarray) -> np.ndarray:
    """Return for each row the number of the kind of its unit."""
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
            return analysis.book.is_consumed(analysis.labels[place]), part, -len(shape)

        path, axis = min(indices, key=least)
        names.append(f"{path}:{axis}")
    counts: collections.Counter[str] = collections.Counter()
    for at, name in enumerate(names):
        counts[name] += 1
        names[at] = name if counts[name] == 1 else f"{name}#{counts[name]}"
    return names


def frozen(analysis: Analysis, known: Sequence[Dimension]) -> dict[Place, str]:
    """Return the reason for each axis outside of all dimensions why it cannot be made smaller."""
    free = {place for dimension in known for place in dimension.indices}
    found = {}
    for place, labels in analysis.labels.items():
        if place not in free:
            reason = analysis.book.reason(labels)
            found[place] = "all its elements go together" if reason is None else str(reason)
    return found
