"""Rearrangement of activations to the axis order of the leaf that they are multiplied with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.trace.statistics.leaf_part import (
    REPEATED,
    LeafFactor,
    PartAxis,
    leaf_order,
)
from nnopt_jax.typing import Array, Shape

AxesOfLeaf = Sequence[tuple[int, PartAxis]]
"""Axes of an array, each with the positions of the leaf on it."""


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """A rearrangement of an array to the axes (factors before, rows, factors after).

    Two arrangements that do the same compare equal, even for different leaves: factors are
    numbered by their order in the leaf.

    Args:
        shape: the shape that the array is first reshaped to.
        before: axes whose factors come first.
        after: axes whose factors come last; all other axes, and repeated factors, are rows.
    """

    shape: Shape
    before: tuple[tuple[int, PartAxis], ...]
    after: tuple[tuple[int, PartAxis], ...]

    @classmethod
    def of(cls, shape: Shape, before: AxesOfLeaf, after: AxesOfLeaf) -> Arrangement:
        """Make the arrangement for a leaf."""
        return cls(shape, _numbered(before), _numbered(after))

    def __call__(self, x: Array) -> Array:
        """Return the rearranged array, in float32 and without a gradient."""
        x = lax.stop_gradient(x).reshape(self.shape)
        labels: list[tuple[int, int]] = [_ROWS] * x.ndim
        sides = [(axis, place, -1) for axis, place in self.before]
        sides += [(axis, place, 1) for axis, place in self.after]
        for axis, place, side in sorted(sides, key=lambda one: -one[0]):
            x = spread(x, axis, place)
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


def spread(x: Array, axis: int, place: PartAxis) -> Array:
    """Split an axis of an array into one axis for each factor of the leaf, in the leaf's direction.

    Args:
        x: the array.
        axis: the axis to split.
        place: the positions of the leaf on that axis.
    """
    indices = place.indices().ravel()
    if not np.array_equal(indices, np.arange(x.shape[axis])):
        x = _taken(x, axis, indices)
    sizes = [factor.size for factor in place.factors]
    x = x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])
    back = [axis + at for at, factor in enumerate(place.factors) if factor.stride < 0]
    return lax.rev(x, back) if back else x


def _taken(x: Array, axis: int, indices: np.ndarray) -> Array:
    """Take entries on an axis, with a slice if they are equally spaced."""
    steps = set(np.diff(indices).tolist()) or {1}
    if len(steps) == 1 and (step := steps.pop()) > 0:
        return lax.slice_in_dim(x, int(indices[0]), int(indices[-1]) + 1, step, axis)
    return jnp.take(x, indices, axis, mode="clip")


def _numbered(axes: AxesOfLeaf) -> tuple[tuple[int, PartAxis], ...]:
    """Number the factors of axes by their order in the leaf."""
    places = [place._replace(factors=tuple(_by_step(place))) for _, place in axes]
    flat = [f for place in places for f in place.factors if f.axis != REPEATED]
    rank = {(flat[at].axis, flat[at].stride): number for number, at in enumerate(leaf_order(flat))}

    def numbered(f: LeafFactor) -> LeafFactor:
        if f.axis == REPEATED:
            return f
        return f._replace(axis=rank[f.axis, f.stride], stride=1 if f.stride > 0 else -1)

    return tuple(
        (axis, place._replace(factors=tuple(map(numbered, place.factors))))
        for (axis, _), place in zip(axes, places, strict=True)
    )


def _by_step(place: PartAxis) -> list[LeafFactor]:
    """Sort factors from major to minor, so that the indices of a whole axis are in order."""
    return sorted(place.factors, key=lambda factor: -factor.step)
