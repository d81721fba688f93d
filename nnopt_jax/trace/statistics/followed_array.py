"""A parameter on its way through a program, and where its own entries lie in what it became."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.typing import Array, Shape

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
        >>> from nnopt_jax.trace.statistics.followed_array import LeafFactor, PartAxis
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

    @property
    def is_over(self) -> bool:
        """Whether steps have entries of their own."""
        return not self.axis.is_constant


class LeafPart(NamedTuple):
    """What an array holds of one leaf.

    Args:
        path: the leaf.
        number: of the leaf among the inputs of the function.
        axes: for each axis of the array where the leaf lies.
        starts: for each axis of the leaf the index where all factors are 0; None where it is known
            only when the program runs.
        levels: of the scans around, from the outermost.
        taken: axes of the leaf along which one entry was taken.
    """

    path: str
    number: int
    axes: tuple[PartAxis, ...]
    starts: tuple[int | None, ...]
    levels: tuple[ScanLevel, ...] = ()
    taken: tuple[int, ...] = ()

    @classmethod
    def whole(cls, path: str, number: int, shape: Shape) -> LeafPart:
        """A leaf as it goes into the function."""
        axes = (PartAxis(0, (LeafFactor(axis, 1, n, 1),)) for axis, n in enumerate(shape))
        return cls(path, number, tuple(axes), (0,) * len(shape))

    @property
    def factors(self) -> tuple[LeafFactor, ...]:
        """All that is there of the leaf."""
        axes = (*(level.axis for level in self.levels), *self.axes)
        return tuple(f for axis in axes for f in axis.factors if f.axis != REPEATED)

    def layer(self, depth: int, length: int) -> LeafPart:
        """The part in one step of a scan along the first axis."""
        levels = (*self.levels, ScanLevel(depth, length, self.axes[0]))
        return self._replace(axes=self.axes[1:], levels=levels)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FollowedArray:
    """An array that parameters were moved into.

    Args:
        x: the array.
        copies: for gradients, the same array once more for each place where it is used.
        parts: what it holds of leaves.
    """

    x: Array
    copies: dict[Location, Array]
    parts: tuple[LeafPart, ...] = dataclasses.field(metadata={"static": True})

    def at(self, location: Location) -> Array:
        """The array to use at a location, or inside of a call that has one copy."""
        for key, x in self.copies.items():
            if location[: len(key)] == key:
                return x
        return self.x

    def layer(self, depth: int, length: int) -> FollowedArray:
        """The array in one step of a scan that has cut it."""
        parts = tuple(part.layer(depth, length) for part in self.parts)
        return dataclasses.replace(self, parts=parts)


def is_followed(x: object) -> bool:
    """Whether a value of a program holds parameters that are followed."""
    return isinstance(x, FollowedArray)


def leaf_order(factors: Sequence[LeafFactor]) -> list[int]:
    """The order in which factors lie in the leaf.

    Example:
        >>> from nnopt_jax.trace.statistics.followed_array import LeafFactor, leaf_order
        >>> leaf_order([LeafFactor(1, 1, 2, 1), LeafFactor(0, 1, 3, 2), LeafFactor(0, 3, 2, 6)])
        [2, 1, 0]
    """
    return sorted(range(len(factors)), key=lambda i: (factors[i].axis, -abs(factors[i].stride)))
