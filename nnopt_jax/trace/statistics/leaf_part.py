"""The positions of the entries of a parameter in an array that it was moved into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.typing import Shape

REPEATED = -1
"""The axis number of factors that repeat the entries of a leaf."""


class LeafFactor(NamedTuple):
    """A loop index that an axis of an array and an axis of a leaf share.

    Args:
        axis: the axis of the leaf; `REPEATED` if every index has the same entries.
        stride: the stride on the leaf's axis; negative if the leaf runs backwards.
        size: the number of entries.
        step: the stride on the array's axis, above 0.
    """

    axis: int
    stride: int
    size: int
    step: int


class PartAxis(NamedTuple):
    """The positions `start + sum(step * i)` of a leaf on one axis of an array, over factors.

    Args:
        start: the least index.
        factors: the factors of the leaf on the axis; without any, `start` is the only position.

    Example:
        >>> from nnopt_jax.trace.statistics.leaf_part import LeafFactor, PartAxis
        >>> PartAxis(1, (LeafFactor(0, 1, 3, 2),)).indices()
        array([1, 3, 5])
    """

    start: int
    factors: tuple[LeafFactor, ...]

    @property
    def count(self) -> int:
        """The number of indices."""
        return math.prod(factor.size for factor in self.factors)

    @property
    def repeats(self) -> bool:
        """Whether several indices hold the same entry of the leaf."""
        return any(factor.axis == REPEATED and factor.size > 1 for factor in self.factors)

    @property
    def is_constant(self) -> bool:
        """Whether the leaf is only repeated here: every index holds the same entries."""
        return bool(self.factors) and all(factor.axis == REPEATED for factor in self.factors)

    def indices(self) -> np.ndarray:
        """Return the index for each combination of the factors, with one axis for each factor."""
        found = np.asarray(self.start)
        for factor in self.factors:
            found = found[..., None] + factor.step * np.arange(factor.size)
        return found


class ScanLevel(NamedTuple):
    """A scan over an axis of a leaf.

    Args:
        depth: the length of the scan's location.
        length: the number of its iterations.
        axis: the positions of the leaf among the iterations; constant if each uses the same.
    """

    depth: int
    length: int
    axis: PartAxis


class LeafPart(NamedTuple):
    """The part of one leaf that an array holds.

    Args:
        path: the path of the leaf.
        axes: the positions of the leaf on each axis of the array.
        starts: for each axis of the leaf the index at which all factors are 0; None if that is
            known only at run time.
        levels: the scans over the leaf, from the outermost.
        taken: axes of the leaf of which one entry was taken.
        copied: the location at which the leaf became a plain array, for example as the carry of
            a loop; all later uses share one gradient. Empty if each use has its own.
    """

    path: str
    axes: tuple[PartAxis, ...]
    starts: tuple[int | None, ...]
    levels: tuple[ScanLevel, ...] = ()
    taken: tuple[int, ...] = ()
    copied: Location = ()

    @classmethod
    def whole(cls, path: str, shape: Shape) -> LeafPart:
        """Return the part that is a whole leaf, as an input of the function."""
        axes = (PartAxis(0, (LeafFactor(axis, 1, n, 1),)) for axis, n in enumerate(shape))
        return cls(path, tuple(axes), (0,) * len(shape))

    def is_stack(self, length: int) -> bool:
        """Return whether a scan gets other entries in each iteration, or the same in all."""
        first = self.axes[0]
        return first.count == length if first.is_constant else not first.repeats

    @property
    def scans(self) -> tuple[ScanLevel, ...]:
        """The scans whose iterations use different entries of the leaf, from the outermost."""
        return tuple(level for level in self.levels if not level.axis.is_constant)

    @property
    def scanned(self) -> tuple[LeafFactor, ...]:
        """The factors of the leaf that these scans iterate over."""
        return tuple(factor for level in self.scans for factor in level.axis.factors)

    @property
    def factors(self) -> tuple[LeafFactor, ...]:
        """All factors of the leaf that the array or its scans have."""
        here = (factor for axis in self.axes for factor in axis.factors)
        return tuple(factor for factor in (*self.scanned, *here) if factor.axis != REPEATED)

    @property
    def least(self) -> tuple[int | None, ...]:
        """The least index on each axis of the leaf; factors may run backwards from `starts`."""
        found = list(self.starts)
        for factor in self.factors:
            if factor.stride < 0 and (start := found[factor.axis]) is not None:
                found[factor.axis] = start + factor.stride * (factor.size - 1)
        return tuple(found)

    def layer(self, depth: int, length: int) -> LeafPart:
        """Return the part in one iteration of a scan over the first axis."""
        levels = (*self.levels, ScanLevel(depth, length, self.axes[0]))
        return self._replace(axes=self.axes[1:], levels=levels)


def leaf_order(factors: Sequence[LeafFactor]) -> list[int]:
    """Return the numbers of factors in the order of the leaf, from major to minor.

    Example:
        >>> from nnopt_jax.trace.statistics.leaf_part import LeafFactor, leaf_order
        >>> leaf_order([LeafFactor(1, 1, 2, 1), LeafFactor(0, 1, 3, 2), LeafFactor(0, 3, 2, 6)])
        [2, 1, 0]
    """
    return sorted(range(len(factors)), key=lambda i: (factors[i].axis, -abs(factors[i].stride)))
