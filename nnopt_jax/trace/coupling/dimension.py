"""Units that are alike, made dimensions with names."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from nnopt_jax.trace.coupling.analysis import Analysis, Place


@dataclasses.dataclass(frozen=True, eq=False)
class Dimension:
    """Units that lie along the same axes of the same leaves, as the hidden units of a layer do.

    Args:
        name: one of its members, `layer/kernel:1`.
        size: how many units there are.
        indices: by (path, axis) an integer array (units, elements): where each unit lies.
        exchangeable: whether units may change places: constants that differ from unit to unit, as
            the angles of rotary embeddings do, forbid it.
        consumed: the members that read the units, as rows of the next kernel do; with zeros there
            alone nothing is left of a unit.
        counted: whether anything but products with weights adds up over the units, as layer
            normalization and scores of attention do: with more units, that is another number.

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
        """The axes, as (path, axis)."""
        return tuple(self.indices)

    @property
    def elements(self) -> int:
        """How many positions along axes one unit has, over all members."""
        return sum(at.shape[1] for at in self.indices.values())


_UNIT, _PLACE, _ROLE, _AT = range(4)


def dimensions(analysis: Analysis) -> tuple[Dimension, ...]:
    """Sorts units into dimensions.

    Units are alike that have equally many elements, in equal roles, along the same axes. Heads and
    their dimensions may lie along the same axes, and are told apart by their roles.

    Args:
        analysis: of a function.

    Returns:
        In the order of the leaves, and of parts of an axis the outer ones first; units in the order
        in which they lie along the first member.
    """
    places, rows = analysis.elements()
    kind = _kinds(rows)
    order = np.lexsort((rows[:, _AT], rows[:, _UNIT], rows[:, _PLACE], kind))
    rows, kind = rows[order], kind[order]
    found = []
    for own in _pieces(rows, kind):
        units = np.unique(own[:, _UNIT])
        if len(units) == 1:  # it cannot go
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
    """Rows that lie together with the same key."""
    return np.split(rows, np.flatnonzero(np.diff(key)) + 1) if len(rows) else []


def _kinds(rows: np.ndarray) -> np.ndarray:
    """A number for each row: that of the kind of its unit."""
    if not len(rows):
        return np.zeros(0, np.int64)
    # Numbers in place of rows of numbers: they are sorted ten times as fast.
    _, role = np.unique(rows[:, _ROLE], return_inverse=True)
    parts = rows[:, _PLACE] * (role.max() + 1) + role
    _, first, counts = np.unique(
        rows[:, _UNIT] * (parts.max() + 1) + parts, return_index=True, return_counts=True
    )
    units, start = np.unique(rows[first, _UNIT], return_index=True)
    _, part = np.unique(parts[first] * (counts.max() + 1) + counts, return_inverse=True)
    # Kinds are sets of parts; sums of random words stand for them, and their order is of no matter.
    words = np.random.default_rng(0).integers(1 << 63, size=part.max() + 1, dtype=np.uint64)
    _, kind = np.unique(np.add.reduceat(words[part], start), return_inverse=True)
    return kind[np.searchsorted(units, rows[:, _UNIT])]


def _names(analysis: Analysis, found: Sequence[Mapping[Place, np.ndarray]]) -> list[str]:
    """By a kernel that makes the units, rather than by one that reads them."""
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
    """Why axes that are in no dimension stay as they are."""
    free = {place for dimension in known for place in dimension.indices}
    found = {}
    for place, labels in analysis.labels.items():
        if place not in free:
            reason = analysis.book.reason(labels)
            found[place] = "all its elements go together" if reason is None else str(reason)
    return found
