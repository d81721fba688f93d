"""What primitives that only move elements do to a weight, and to what is coarser than it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from nnopt_jax.typing import Array

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A movement of elements: transpose, reshape, slice and the like.

    Args:
        shape: of the outcome.
        apply: `apply(array, shape)` moves an array whose axes are those of a logical `shape`, or
            coarser: of one entry, or one for each group. None where a coarser one cannot follow.
        kept: how many of the last axes stay the last ones, whole and in their order.
        axes: where it does nothing but reorder axes, the order.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.trace.packed.rules.view import transposed
        >>> view = transposed((4, 3), (1, 0))
        >>> view.apply(jnp.ones((4, 1)), (4, 3)).shape
        (1, 4)
    """

    shape: Shape
    apply: Callable[[Array, Shape], Array | None]
    kept: int
    axes: Shape = ()


def transposed(shape: Shape, axes: Sequence[int]) -> View:
    """Axes in another order."""
    count = len(axes)
    moved = [to for to, axis in enumerate(axes) if to != axis]
    kept = count - 1 - max(moved, default=-1)
    moved_to = tuple(shape[axis] for axis in axes)
    return View(moved_to, lambda x, _: x.transpose(axes), kept, tuple(axes))


def squeezed(shape: Shape, axes: Sequence[int]) -> View:
    """Axes of one entry taken away."""
    left = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    kept = len(shape) - 1 - max(axes, default=-1)
    return View(left, lambda x, _: x.squeeze(axes), kept)


def expanded(shape: Shape, sizes: Shape, places: Sequence[int]) -> View | None:
    """Axes of one entry put between others; None where something is repeated."""
    alike = all(sizes[to] == size for to, size in zip(places, shape, strict=True))
    if not alike or any(n != 1 for axis, n in enumerate(sizes) if axis not in places):
        return None
    new = [axis for axis in range(len(sizes)) if axis not in places]

    def apply(x: Array, _: Shape) -> Array | None:
        if x.ndim != len(shape):  # of a matrix that the weight is a view of
            return None
        wide = [1] * len(sizes)
        for to, size in zip(places, x.shape, strict=True):
            wide[to] = size
        return x.reshape(wide)

    return View(tuple(sizes), apply, len(sizes) - 1 - max(new, default=-1))


def cut(shape: Shape, sizes: Shape, take: Callable[[Array, int], Array]) -> View:
    """A part along some axes, the others whole.

    Args:
        shape: of the weight.
        sizes: of the part.
        take: `take(x, axis)` is the part of an array along one axis.
    """
    touched = [axis for axis, size in enumerate(shape) if sizes[axis] != size]

    def apply(x: Array, shape: Shape) -> Array | None:
        for axis in touched:
            if x.shape[axis] == shape[axis]:
                x = take(x, axis)
            elif x.shape[axis] != 1:
                return None
        return x

    return View(tuple(sizes), apply, len(shape) - 1 - max(touched, default=-1))


def reshaped(shape: Shape, sizes: Shape) -> View:
    """The same elements in another shape."""
    pairs, count = paired(shape, sizes), len(shape)

    def apply(x: Array, shape: Shape) -> Array | None:
        if x.ndim != count:  # of a matrix that the weight is a view of
            return None
        wanted = [1] * len(sizes)
        for ours, theirs in pairs:
            ours = [axis for axis in ours if shape[axis] != 1]
            theirs = [axis for axis in theirs if sizes[axis] != 1]
            given = [x.shape[axis] for axis in ours]
            if len(ours) == len(theirs) == 1:  # one axis, as it was: groups may stay
                wanted[theirs[0]] = given[0]
            elif given == [shape[axis] for axis in ours]:
                for axis in theirs:
                    wanted[axis] = sizes[axis]
            elif any(size != 1 for size in given):
                return None
        return x.reshape(wanted)

    alike = (a == b for a, b in zip(reversed(shape), reversed(sizes), strict=False))
    return View(tuple(sizes), apply, sum(1 for _ in itertools.takewhile(bool, alike)))


def paired(shape: Shape, sizes: Shape) -> list[tuple[list[int], list[int]]]:
    """Which axes of one shape become which of another: the finest pairs of equal size.

    Example:
        >>> from nnopt_jax.trace.packed.rules.view import paired
        >>> paired((8, 6, 5), (8, 30)), paired((12, 5), (3, 4, 5))
        ([([0], [0]), ([1, 2], [1])], [([0], [0, 1]), ([1], [2])])
    """
    if 0 in shape:
        return [(list(range(len(shape))), list(range(len(sizes))))]
    pairs, i, j = [], 0, 0
    while i < len(shape) or j < len(sizes):
        first, second = i, j
        mine = shape[i] if i < len(shape) else 1
        theirs = sizes[j] if j < len(sizes) else 1
        i, j = min(i + 1, len(shape)), min(j + 1, len(sizes))
        while mine != theirs:
            if mine < theirs:
                mine, i = mine * shape[i], i + 1
            else:
                theirs, j = theirs * sizes[j], j + 1
        pairs.append((list(range(first, i)), list(range(second, j))))
    return pairs
