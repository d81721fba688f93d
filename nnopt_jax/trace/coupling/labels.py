"""A union-find of labels, which stand for sets of elements that are removed together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Labels = np.ndarray
"""One label for each element of an axis."""

KEPT = 0
"""The label of elements that are never removed."""

# The greatest depth to which pairs are taken apart, since pairs may contain themselves.
_DEPTH = 16


class LabelSets:
    """A union-find of labels: elements whose labels are joined are removed together.

    A label stands for a set of elements that are removed together or not at all. A label may be a
    *pair* (a, b), which is removed if a or b is: an element of a flattened axis of heads is removed
    with its head, and with its dimension. A *fixed* label is never removed, and has a reason. A
    *read* label is summed over. A *counted* label is summed over by an operation other than a
    product with weights, so that more elements would change the result. An *ordered* label is
    combined with constants that differ from element to element, so that elements cannot change
    places.

    Example:
        >>> sets = LabelSets()
        >>> hidden, rows = sets.new_labels(4), sets.new_labels(4)
        >>> sets.join(hidden, rows)
        >>> bool((sets.find(hidden) == sets.find(rows)).all())
        True
    """

    def __init__(self) -> None:
        # Label 0 is `KEPT`. Its reason is number 1, since number 0 stands for no reason.
        self._count = 1
        self._parent = np.zeros(1, np.int64)
        self._first = np.full(1, -1)
        self._second = np.full(1, -1)
        self._why = np.ones(1, np.int32)
        self._summed = np.zeros(1, bool)
        self._counted = np.zeros(1, bool)
        self._ordered = np.zeros(1, bool)
        self._reasons: list[Any] = [None, "always kept"]
        self._fixed: dict[Any, int] = {}
        # Keys are the ids of arrays of labels, which the values keep alive.
        self._consumed: dict[int, Labels] = {}
        self._sources: dict[int, tuple[Labels, list[Labels]]] = {}

    @property
    def size(self) -> int:
        """The number of labels."""
        return self._count

    def new_labels(self, size: int) -> Labels:
        """Create labels that differ from each other and from all known ones."""
        start, stop = self._count, self._count + size
        if stop > len(self._parent):
            self._grow(stop)
        self._parent[start:stop] = made = np.arange(start, stop)
        self._count = stop
        return made

    def _grow(self, size: int) -> None:
        # Doubling keeps the average cost of a new label constant.
        more = max(size, 2 * len(self._parent)) - len(self._parent)
        for name in ("_parent", "_first", "_second", "_why", "_summed", "_counted", "_ordered"):
            blank = -1 if name in ("_first", "_second") else 0
            setattr(self, name, np.pad(getattr(self, name), (0, more), constant_values=blank))

    @property
    def _properties(self) -> tuple[np.ndarray, ...]:
        """The arrays of properties of sets; a joined set takes the larger value of each."""
        return self._why, self._summed, self._counted, self._ordered

    def fixed_labels(self, size: int, reason: Any) -> Labels:
        """Return one fixed label, repeated, for elements that stay for a given reason."""
        if reason not in self._fixed:
            (label,) = self.new_labels(1)
            self._fixed[reason] = label
            self.fix(np.array([label]), reason)
        return np.full(size, self._fixed[reason])

    def find(self, labels: Labels) -> Labels:
        """Return for each label the representative of its set."""
        found = self._parent[labels]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                # Path compression keeps later searches short.
                self._parent[labels] = found
                return found
            found = above

    def fix(self, labels: Labels, reason: Any) -> None:
        """Mark elements as never removed; an earlier reason for the same element holds."""
        roots = self.find(labels)
        free = roots[self._why[roots] == 0]
        if free.size:
            self._reasons.append(reason)
            self._why[free] = len(self._reasons) - 1

    def is_fixed(self, labels: Labels) -> np.ndarray:
        """Return for each label whether it is fixed, that is, never removed."""
        return self._why[self.find(labels)] > 0

    def reason(self, labels: Labels) -> Any:
        """Return the reason of the first fixed label; None if no label is fixed."""
        why = self._why[self.find(labels)]
        return self._reasons[why[why > 0][0]] if why.any() else None

    def mark_summed(self, labels: Labels, *, by_weights: bool = False) -> None:
        """Mark elements as summed over: by a product with weights, or by any other operation."""
        roots = self.find(labels)
        self._summed[roots] = True
        if not by_weights:
            self._counted[roots] = True

    def is_counted(self, labels: Labels) -> np.ndarray:
        """Return for each label whether any step but a product with weights sums over it."""
        return self._counted[self.find(labels)]

    def record_sources(self, axis: Labels, sources: Iterable[Labels]) -> None:
        """Record which parameter axes an axis comes from, if its array depends on parameters alone.

        A step that consumes the axis also consumes the sources that share elements with it.
        """
        own = self._free_sets(axis)
        shared = [x for x in sources if x is not axis and np.isin(self._free_sets(x), own).any()]
        self._sources.setdefault(id(axis), (axis, []))[1].extend(shared)

    def _free_sets(self, labels: Labels) -> Labels:
        """Return the sets that elements belong to, without fixed ones; pairs give both parts."""
        found, depth = self.find(np.unique(labels)), 0
        while depth < _DEPTH and (pairs := found[self._first[found] >= 0]).size:
            more = np.union1d(self.find(self._first[pairs]), self.find(self._second[pairs]))
            found, depth = np.union1d(found[self._first[found] < 0], more), depth + 1
        return found[self._why[found] == 0]

    def mark_consumed(self, axis: Labels) -> None:
        """Mark an axis of a parameter as consumed: a product sums over its units."""
        waiting = [axis]
        while waiting:
            axis = waiting.pop()
            if id(axis) not in self._consumed:
                self._consumed[id(axis)] = axis
                waiting += self._sources.get(id(axis), (axis, []))[1]

    def is_consumed(self, axis: Labels) -> bool:
        """Return whether an axis, identified by its array of labels, was marked as consumed."""
        return id(axis) in self._consumed

    def mark_ordered(self, labels: Labels) -> None:
        """Mark elements that cannot be permuted."""
        self._ordered[self.find(labels)] = True

    def is_ordered(self, labels: Labels) -> np.ndarray:
        """Return for each label whether its elements cannot be permuted."""
        return self._ordered[self.find(labels)]

    def join(self, left: Labels, right: Labels) -> None:
        """Join the sets of two vectors of labels, element by element."""
        if left is right:
            return
        waiting = [(left, right)]
        while waiting:
            a, b = (self.find(side) for side in waiting.pop())
            differ = a != b
            if not differ.any():
                continue
            a, b = a[differ], b[differ]
            # Fixed labels need not become one set; only the reason is propagated.
            why_a, why_b = self._why[a], self._why[b]
            for side, other, own in ((a, why_b, why_a), (b, why_a, why_b)):
                gets = (own == 0) & (other > 0)
                self._why[side[gets]] = other[gets]
            free = (why_a == 0) & (why_b == 0)
            if free.any():
                waiting.extend(self._merge(a[free], b[free]))

    def _merge(self, a: Labels, b: Labels) -> list[tuple[Labels, Labels]]:
        """Merge pairs of label sets; return the pairs of parts that must be merged next."""
        lost = []
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                break
            low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            # Of several partners of a set, the least becomes its parent; the loop joins the rest.
            np.minimum.at(self._parent, high, low)
            lost.append(high)
        gone = np.unique(np.concatenate(lost)) if lost else np.zeros(0, np.int64)
        roots = self.find(gone)
        for known in self._properties:
            # Unlike an assignment by index, `maximum.at` applies every value of a repeated root.
            np.maximum.at(known, roots, known[gone])
        pairs = self._first[gone] >= 0
        gone, roots = gone[pairs], roots[pairs]
        bare = self._first[roots] < 0
        self._first[roots[bare]] = self._first[gone[bare]]
        self._second[roots[bare]] = self._second[gone[bare]]
        return [(self._first[gone], self._first[roots]), (self._second[gone], self._second[roots])]

    def pair(self, first: Labels, second: Labels) -> Labels:
        """Return labels that are removed if either of two labels is, element by element."""
        first, second = self.find(first), self.find(second)
        # A fixed label is never removed, so such a pair is removed exactly with its other part.
        without_first, without_second = self._why[first] > 0, self._why[second] > 0
        if without_first.all() or np.array_equal(first, second):
            return second
        if without_second.all():
            return first
        both = self.new_labels(len(first))
        self._first[both], self._second[both] = first, second
        return np.where(without_second, first, np.where(without_first, second, both))

    def flatten(self, outer: Labels, inner: Labels) -> Labels:
        """Return the labels of the axis that two axes are flattened to."""
        return self.pair(np.repeat(outer, len(inner)), np.tile(inner, len(outer)))

    def split(self, labels: Labels, rows: int) -> tuple[Labels, Labels]:
        """Split the labels of one axis into those of two axes; couple elements if necessary."""
        return self._part(self.find(labels).reshape(rows, -1), 0)

    def _part(self, grid: np.ndarray, depth: int) -> tuple[Labels, Labels]:
        grid = self.find(grid)
        rows, columns = grid.shape
        kept = np.full(max(rows, columns), KEPT)
        if (grid == grid[:, :1]).all():
            return grid[:, 0], kept[:columns]
        if (grid == grid[:1]).all():
            return kept[:rows], grid[0]
        if (self._why[grid] > 0).all():
            return grid[:, 0], grid[0]
        pair = (self._first[grid] >= 0) & (self._why[grid] == 0)
        if pair.any() and depth < _DEPTH:
            parts = (
                self._part(np.where(pair, self._first[grid], grid), depth + 1),
                self._part(np.where(pair, self._second[grid], KEPT), depth + 1),
            )
            (outer, inner), (more_outer, more_inner) = parts
            return self.pair(outer, more_outer), self.pair(inner, more_inner)
        # No structure is known: only whole rows or whole columns may be removed.
        outer, inner = self.new_labels(rows), self.new_labels(columns)
        self.join(grid.ravel(), self.flatten(outer, inner))
        return outer, inner

    def propagate(self) -> None:
        """Propagate the properties of pairs to their parts; fix labels that no step sums over."""
        pairs, first, second = self._pairs()
        # Cycles come first: walks from pairs to their parts would not end.
        self._fix_cycles(pairs, first, second)
        parts, twice = np.concatenate([first, second]), np.tile(pairs, 2)
        for known in self._properties:
            while True:
                before = known[parts]
                gets = (before == 0) & (known[twice] != 0)
                if not gets.any():
                    break
                known[parts[gets]] = known[twice[gets]]
        every = np.arange(self._count)
        alone = (self._first[every] < 0) & ~self._summed[every] & (self.find(every) == every)
        self.fix(np.flatnonzero(alone), "unused")

    def _pairs(self) -> tuple[Labels, Labels, Labels]:
        """Return all labels that are pairs, with the first and the second part of each."""
        every = np.arange(self._count)
        pairs = np.flatnonzero((self._first[every] >= 0) & (self.find(every) == every))
        return pairs, self.find(self._first[pairs]), self.find(self._second[pairs])

    def _fix_cycles(self, pairs: Labels, first: Labels, second: Labels) -> None:
        """Fix pairs that contain themselves, directly or through other pairs."""
        known = self._first[: self._count] < 0
        while True:
            # A pair is free of cycles if its parts are; all others are in a cycle or lead to one.
            more = known[pairs] | (known[first] & known[second])
            if np.array_equal(more, known[pairs]):
                break
            known[pairs] = more
        tied = pairs[~known[pairs]]
        self.fix(tied, "its elements are parts of themselves")
        self._first[tied] = self._second[tied] = -1

    def units(self, labels: Labels) -> tuple[np.ndarray, Labels, np.ndarray]:
        """Return the units that each element belongs to; call `propagate` first.

        Returns:
            Positions, the unit of each, and its role: the path of first and second parts from the
            label to the unit. A position may belong to several units, or to none.
        """
        found: list[tuple[np.ndarray, Labels, np.ndarray]] = []
        at, label, role = np.arange(len(labels)), labels, np.ones(len(labels), np.int64)
        while True:
            label = self.find(label)
            free = self._why[label] == 0
            at, label, role = at[free], label[free], role[free]
            pair = self._first[label] >= 0
            found.append((at[~pair], label[~pair], role[~pair]))
            at, label, role = at[pair], label[pair], role[pair]
            if not at.size:
                ats, units, roles = zip(*found, strict=True)
                return np.concatenate(ats), np.concatenate(units), np.concatenate(roles)
            # In binary, a role is a 1, then 0 for each first part and 1 for each second part.
            label = np.concatenate([self._first[label], self._second[label]])
            at, role = np.tile(at, 2), np.concatenate([2 * role, 2 * role + 1])

    def removed_labels(self, units: Labels) -> np.ndarray:
        """Return a mask of all labels that are removed together with the given units."""
        gone = np.zeros(self._count, bool)
        gone[self.find(units)] = True
        pairs, first, second = self._pairs()
        while True:
            # A pair goes with either part, and may itself be a part: repeat until nothing changes.
            more = gone[pairs] | gone[first] | gone[second]
            if np.array_equal(more, gone[pairs]):
                return gone[self.find(np.arange(self._count))]
            gone[pairs] = more
