"""The positions of a parameter's entries in an array, and rearrangement to the parameter's axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.typing import Array, Shape

REPEATED = -1
"""The axis number of factors that repeat the entries of a leaf."""


class LeafFactor(NamedTuple):
    """A loop index that runs over an axis of an array and over an axis of a leaf at once.

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


Factors = tuple[LeafFactor, ...]


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
        """The number of positions."""
        return math.prod(factor.size for factor in self.factors)

    @property
    def repeats(self) -> bool:
        """Whether several positions hold the same entry of the leaf."""
        return any(factor.axis == REPEATED and factor.size > 1 for factor in self.factors)

    @property
    def is_constant(self) -> bool:
        """Whether the leaf is only repeated on this axis: every position holds the same entries."""
        return bool(self.factors) and all(factor.axis == REPEATED for factor in self.factors)

    def indices(self) -> np.ndarray:
        """Return the position for each combination of the factors, with one axis for each."""
        found = np.asarray(self.start)
        for factor in self.factors:
            found = found[..., None] + factor.step * np.arange(factor.size)
        return found


class ScanLevel(NamedTuple):
    """A scan over an axis of a leaf, with the positions of the leaf among its iterations.

    Args:
        depth: the length of the scan's location.
        length: the number of its iterations.
        axis: the positions of the leaf among the iterations; constant if each uses the same.
    """

    depth: int
    length: int
    axis: PartAxis


class LeafPart(NamedTuple):
    """The part of one leaf that an array holds, with the position of each entry.

    Args:
        path: the path of the leaf.
        axes: the positions of the leaf on each axis of the array.
        starts: for each axis of the leaf the index at which all factors are 0; None if that is
            known only at run time.
        levels: the scans over the leaf, from the outermost.
        taken: axes of the leaf on which one entry was selected.
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
        """Return the part that covers a whole leaf, for an input of the function."""
        axes = (PartAxis(0, (LeafFactor(axis, 1, n, 1),)) for axis, n in enumerate(shape))
        return cls(path, tuple(axes), (0,) * len(shape))

    def is_stack(self, length: int) -> bool:
        """Return whether a scan over the first axis gets distinct slices, or one repeated slice."""
        first = self.axes[0]
        return first.count == length if first.is_constant else not first.repeats

    @property
    def scans(self) -> tuple[ScanLevel, ...]:
        """The scans whose iterations use different entries of the leaf, from the outermost."""
        return tuple(level for level in self.levels if not level.axis.is_constant)

    @property
    def scan_factors(self) -> tuple[LeafFactor, ...]:
        """The factors of the leaf that scans iterate over."""
        return tuple(factor for level in self.scans for factor in level.axis.factors)

    @property
    def factors(self) -> tuple[LeafFactor, ...]:
        """The factors of the leaf in the array and in the scans around it, without repetitions."""
        here = (factor for axis in self.axes for factor in axis.factors)
        return tuple(factor for factor in (*self.scan_factors, *here) if factor.axis != REPEATED)

    @property
    def least_indices(self) -> tuple[int | None, ...]:
        """The least index on each axis of the leaf, below `starts` for negative strides."""
        found = list(self.starts)
        for factor in self.factors:
            if factor.stride < 0 and (start := found[factor.axis]) is not None:
                found[factor.axis] = start + factor.stride * (factor.size - 1)
        return tuple(found)

    def layer(self, depth: int, length: int) -> LeafPart:
        """Return the part that one iteration of a scan over the first axis gets."""
        levels = (*self.levels, ScanLevel(depth, length, self.axes[0]))
        return self._replace(axes=self.axes[1:], levels=levels)


def leaf_order(factors: Sequence[LeafFactor]) -> list[int]:
    """Return the positions of factors, sorted by axis of the leaf and then by stride.

    Example:
        >>> from nnopt_jax.trace.statistics.leaf_part import LeafFactor, leaf_order
        >>> leaf_order([LeafFactor(1, 1, 2, 1), LeafFactor(0, 1, 3, 2), LeafFactor(0, 3, 2, 6)])
        [2, 1, 0]
    """
    return sorted(range(len(factors)), key=lambda i: (factors[i].axis, -abs(factors[i].stride)))


def in_leaf_order(axes: Iterable[PartAxis]) -> Factors:
    """Return the factors of a leaf on some axes of an array, sorted as in the leaf.

    Args:
        axes: the positions of the leaf on each axis.
    """
    factors = [f for axis in axes for f in axis.factors if f.axis != REPEATED]
    return tuple(factors[i] for i in leaf_order(factors))


AxesOfLeaf = Sequence[tuple[int, PartAxis]]
"""Axes of an array by number, each with the positions of the leaf on it."""


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """A rearrangement of an array to leading factors, one axis of rows, and trailing factors.

    Equivalent arrangements compare equal, even for different leaves, because factors are numbered
    by their order in the leaf.

    Args:
        shape: the shape that the array is first reshaped to.
        before: the axes whose factors come first.
        after: the axes whose factors come last; all other axes and repeated factors are rows.
    """

    shape: Shape
    before: tuple[tuple[int, PartAxis], ...]
    after: tuple[tuple[int, PartAxis], ...]

    @classmethod
    def of(cls, shape: Shape, before: AxesOfLeaf, after: AxesOfLeaf) -> Arrangement:
        """Return the arrangement, with factors numbered by their order in the leaf."""
        return cls(shape, _number_factors(before), _number_factors(after))

    def __call__(self, x: Array) -> Array:
        """Return the rearranged array, in float32 and detached from gradients."""
        x = lax.stop_gradient(x).reshape(self.shape)
        labels: list[tuple[int, int]] = [_ROWS] * x.ndim
        sides = [(axis, place, -1) for axis, place in self.before]
        sides += [(axis, place, 1) for axis, place in self.after]
        # From the last axis to the first, so that the numbers of the others stay valid.
        for axis, place, side in sorted(sides, key=lambda one: -one[0]):
            x = unfold(x, axis, place)
            labels[axis : axis + 1] = [
                _ROWS if f.axis == REPEATED else (side, f.axis) for f in place.factors
            ]
        order = sorted(range(x.ndim), key=lambda at: labels[at])
        first, last = (sum(label[0] == side for label in labels) for side in (-1, 1))
        shape = [x.shape[at] for at in order]
        rows = math.prod(shape[first : len(shape) - last])
        x = x.transpose(order).reshape(*shape[:first], rows, *shape[len(shape) - last :])
        return x.astype(jnp.float32)


_ROWS = (0, 0)


def unfold(x: Array, axis: int, place: PartAxis) -> Array:
    """Split an axis of an array into one axis for each factor of the leaf, in the leaf's direction.

    Args:
        x: the array.
        axis: the axis to split.
        place: the positions of the leaf on that axis.
    """
    indices = place.indices().ravel()
    if not np.array_equal(indices, np.arange(x.shape[axis])):
        x = _take(x, axis, indices)
    sizes = [factor.size for factor in place.factors]
    x = x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])
    # Factors of negative stride run against the leaf.
    back = [axis + at for at, factor in enumerate(place.factors) if factor.stride < 0]
    return lax.rev(x, back) if back else x


def _take(x: Array, axis: int, indices: np.ndarray) -> Array:
    """Take entries at some indices of an axis, by a slice if they are equally spaced."""
    steps = set(np.diff(indices).tolist()) or {1}
    if len(steps) == 1 and (step := steps.pop()) > 0:
        return lax.slice_in_dim(x, int(indices[0]), int(indices[-1]) + 1, step, axis)
    return jnp.take(x, indices, axis, mode="clip")


def _number_factors(axes: AxesOfLeaf) -> tuple[tuple[int, PartAxis], ...]:
    """Number the factors of axes by their order in the leaf."""
    places = [place._replace(factors=tuple(_by_step(place))) for _, place in axes]
    flat = [f for place in places for f in place.factors if f.axis != REPEATED]
    # Leaves of other shapes get equal arrangements, and so share their statistics.
    rank = {(flat[at].axis, flat[at].stride): number for number, at in enumerate(leaf_order(flat))}

    def number_factor(f: LeafFactor) -> LeafFactor:
        if f.axis == REPEATED:
            return f
        return f._replace(axis=rank[f.axis, f.stride], stride=1 if f.stride > 0 else -1)

    return tuple(
        (axis, place._replace(factors=tuple(map(number_factor, place.factors))))
        for (axis, _), place in zip(axes, places, strict=True)
    )


def _by_step(place: PartAxis) -> list[LeafFactor]:
    """Sort factors from major to minor, so that the indices of a whole axis are in order."""
    return sorted(place.factors, key=lambda factor: -factor.step)
