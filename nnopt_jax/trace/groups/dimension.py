"""Units that are alike, made dimensions with names."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from nnopt_jax.trace.groups.analysis import Analysis, Place


@dataclasses.dataclass(frozen=True, eq=False)
class Dimension:
    """Units that lie along the same axes of the same leaves, as the hidden units of a layer do.

    Args:
        name: one of its members, `layer/kernel:1`.
        size: how many units there are.
        indices: by (path, axis) an integer array (units, elements): where each unit lies.
        exchangeable: whether units may change places: constants that differ from unit to unit, as
            the angles of rotary embeddings do, forbid it.

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
        In the order of the leaves; units in the order in which they lie along the first member.
    """
    places, rows = analysis.elements()
    found = []
    for units in _alike(rows):
        inside = rows[np.isin(rows[:, _UNIT], units)]
        indices = {}
        for number in np.unique(inside[:, _PLACE]):
            own = inside[inside[:, _PLACE] == number]
            own = own[np.lexsort((own[:, _AT], own[:, _UNIT]))]
            indices[places[number]] = own[:, _AT].reshape(len(units), -1)
        first = next(iter(indices.values()))
        order = np.argsort(first[:, 0], kind="stable")
        indices = {place: at[order] for place, at in indices.items()}
        if len(units) > 1:
            found.append((indices, not analysis.book.is_ordered(units).any()))
    found.sort(key=lambda each: [(places.index(p), int(at[0, 0])) for p, at in each[0].items()])
    names = _names(analysis, [indices for indices, _ in found])
    return tuple(
        Dimension(name, len(next(iter(indices.values()))), indices, free)
        for name, (indices, free) in zip(names, found, strict=True)
    )


def _alike(rows: np.ndarray) -> list[np.ndarray]:
    """Sorted units by kind: equally many elements of equal roles in the same places."""
    kinds, counts = np.unique(rows[:, [_UNIT, _PLACE, _ROLE]], axis=0, return_counts=True)
    units, start = np.unique(kinds[:, 0], return_index=True)
    told: dict[bytes, list[int]] = collections.defaultdict(list)
    whole = np.concatenate([kinds[:, 1:], counts[:, None]], 1)
    for unit, key in zip(units, np.split(whole, start[1:]), strict=True):
        told[key.tobytes()].append(unit)
    return [np.array(units) for units in told.values()]


def _names(analysis: Analysis, found: Sequence[Mapping[Place, np.ndarray]]) -> list[str]:
    """By the first kernel all along whose axis its units lie, or else the first member."""
    names = []
    for indices in found:

        def least(place: Place, indices: Mapping[Place, np.ndarray] = indices) -> tuple[bool, bool]:
            shape = analysis.shapes[place[0]]
            return np.unique(indices[place]).size < shape[place[1]], len(shape) < 2

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
            reasons = [why for why in analysis.book.reasons(labels) if why is not None]
            alone = "all its elements go together"
            found[place] = str(reasons[0]) if reasons else alone
    return found
