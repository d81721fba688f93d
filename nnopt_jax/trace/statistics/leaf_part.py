"""Where the entries of a parameter lie in an array that it was moved into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.typing import Shape

REPEATED = -1
"""The axis of factors along which entries of a leaf are repeated."""


class LeafFactor(NamedTuple):
    """A loop index that an axis of an array and an axis of a leaf share.

    Args:
        axis: of the leaf; `REPEATED` where every index has the same entries.
        stride: how far the index along the leaf's axis moves; negative where it runs backwards.
        size: the number of entries.
        step: how far the index along the array's axis moves, above 0.
    """

    axis: int
    stride: int
    size: int
    step: int


class PartAxis(NamedTuple):
    """Where a leaf lies along one axis of an array: at `start + sum(step * i)` over factors.

    Args:
        start: the least index.
        factors: what the axis has of the leaf; without any it lies at `start` alone.

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
        """Whether several indices have the same entry of the leaf."""
        return any(factor.axis == REPEATED and factor.size > 1 for factor in self.factors)

    @property
    def is_constant(self) -> bool:
        """Whether the leaf is the same at every index, and not cut out of one."""
        return bool(self.factors) and all(factor.axis == REPEATED for factor in self.factors)

    def indices(self) -> np.ndarray:
        """The index for each combination of the factors, one axis for each of them."""
        found = np.asarray(self.start)
        for factor in self.factors:
            found = found[..., None] + factor.step * np.arange(factor.size)
        return found


class ScanLevel(NamedTuple):
    """A scan that goes along an axis of a leaf.

    Args:
        depth: length of the scan's location.
        length: the number of its steps.
        axis: where the leaf lies among them; constant where every step has all of it.
    """

    depth: int
    length: int
    axis: PartAxis


class LeafPart(NamedTuple):
    """What an array holds of one leaf.

    Args:
        path: the leaf.
        axes: for each axis of the array where the leaf lies.
        starts: for each axis of the leaf the index where all factors are 0; None where it is known
            only when the program runs.
        levels: of the scans around, from the outermost.
        taken: axes of the leaf along which one entry was taken.
        copied: where the leaf became a plain array, as loops carry: all later uses have one
            gradient together. Empty where each use has its own.
    """

    path: str
    axes: tuple[PartAxis, ...]
    starts: tuple[int | None, ...]
    levels: tuple[ScanLevel, ...] = ()
    taken: tuple[int, ...] = ()
    copied: Location = ()

    @classmethod
    def whole(cls, path: str, shape: Shape) -> LeafPart:
        """A leaf as it goes into the function."""
        axes = (PartAxis(0, (LeafFactor(axis, 1, n, 1),)) for axis, n in enumerate(shape))
        return cls(path, tuple(axes), (0,) * len(shape))

    def is_stack(self, length: int) -> bool:
        """Whether a scan of so many steps finds entries of the leaf in each, or the same in all."""
        first = self.axes[0]
        return first.count == length if first.is_constant else not first.repeats

    @property
    def scans(self) -> tuple[ScanLevel, ...]:
        """The scans that go along the leaf, from the outermost."""
        return tuple(level for level in self.levels if not level.axis.is_constant)

    @property
    def scanned(self) -> tuple[LeafFactor, ...]:
        """What they go along."""
        return tuple(factor for level in self.scans for factor in level.axis.factors)

    @property
    def factors(self) -> tuple[LeafFactor, ...]:
        """All that is there of the leaf."""
        here = (factor for axis in self.axes for factor in axis.factors)
        return tuple(factor for factor in (*self.scanned, *here) if factor.axis != REPEATED)

    @property
    def least(self) -> tuple[int | None, ...]:
        """The least index of each axis: starts are those of factors that may run backwards."""
        found = list(self.starts)
        for factor in self.factors:
            if factor.stride < 0 and (start := found[factor.axis]) is not None:
                found[factor.axis] = start + factor.stride * (factor.size - 1)
        return tuple(found)

    def layer(self, depth: int, length: int) -> LeafPart:
        """The part in one step of a scan along the first axis."""
        levels = (*self.levels, ScanLevel(depth, length, self.axes[0]))
        return self._replace(axes=self.axes[1:], levels=levels)


def leaf_order(factors: Sequence[LeafFactor]) -> list[int]:
    """The order in which factors lie in the leaf.

    Example:
        >>> from nnopt_jax.trace.statistics.leaf_part import LeafFactor, leaf_order
        >>> leaf_order([LeafFactor(1, 1, 2, 1), LeafFactor(0, 1, 3, 2), LeafFactor(0, 3, 2, 6)])
        [2, 1, 0]
    """
    return sorted(range(len(factors)), key=lambda i: (factors[i].axis, -abs(factors[i].stride)))
