"""Which weights may go together: any, n of every m, or whole blocks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.supports.choose import Roles
from nnopt_jax.ops.axis_roles import Axes, assumed_axes, matrix_axes
from nnopt_jax.ops.blockwise import reduce_blocks
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.masks import MOST_CHOICES, group_axis, keep_n_of_m
from nnopt_jax.settings import Settings, is_whole

Pattern: TypeAlias = str | Sequence[int] | None
"""None, `"2:4"`, or the sizes of a block such as `(4, 4)`."""


@dataclasses.dataclass(frozen=True)
class NOfM:
    """Of every `m` entries in a row along the contracted axes, flattened, `n` stay.

    Args:
        n: entries that stay.
        m: entries in a group.
    """

    n: int
    m: int

    def misfit(self, shape: tuple[int, ...], axes: Axes | None = None) -> str | None:
        """Say why groups do not fit a leaf of this shape; None where they do.

        Args:
            shape: of the leaf.
            axes: of the leaf; default: the conventional ones.
        """
        contracted = (axes or conventional(shape)).contracted
        if contracted and math.prod(shape[axis] for axis in contracted) % self.m == 0:
            return None
        if len(contracted) > 1:
            return f"groups of {self.m} do not divide axes {contracted} of shape {shape}, flattened"
        axis = contracted[0] if contracted else group_axis(shape)
        return f"groups of {self.m} do not divide axis {axis} of shape {shape}"

    def mask(self, scores: jax.Array, axes: Axes | None = None) -> jax.Array:
        """Mark the `n` greatest of each group; of equal ones the earlier.

        Args:
            scores: float of either sign, whatever shape fits; NaN counts as infinity.
            axes: see `misfit`.

        Returns:
            bool, of the same shape.
        """
        axes = axes or conventional(scores.shape)
        if not self.roles(scores.shape, axes):
            return keep_n_of_m(scores, self.n, self.m)
        kept = keep_n_of_m(axes.to_matrix(scores), self.n, self.m)
        return axes.from_matrix(kept, scores.shape)

    def roles(self, shape: tuple[int, ...], axes: Axes) -> Roles:
        """Return the axes along which groups lie; none where it is the axis before the last.

        Args:
            shape: of the leaf, which the groups fit.
            axes: of the leaf.
        """
        innermost = axes.contracted[-1]
        if innermost == group_axis(shape) and shape[innermost] % self.m == 0:
            return ()
        return axes.contracted, axes.output, axes.batch

    @property
    def is_numbered(self) -> bool:
        """Whether storage can write a group's choice as a number of 32 bits."""
        return math.comb(self.m, self.n) <= MOST_CHOICES


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Whole blocks stay or go.

    Args:
        sizes: `(a, b)`: `a` entries along the contracted axes by `b` along the output axes;
            `(b,)`: along the output axes alone; three sizes or more: along the last axes of the
            leaf, whatever they are.
    """

    sizes: tuple[int, ...]

    @property
    def needs_axes(self) -> bool:
        """Whether the blocks lie along axes that a product sums over, or keeps."""
        return len(self.sizes) <= 2

    def misfit(self, shape: tuple[int, ...], axes: Axes | None = None) -> str | None:
        """Say why blocks do not fit a leaf of this shape; None where they do.

        Args:
            shape: of the leaf.
            axes: of the leaf; default: the conventional ones.
        """
        if len(shape) < len(self.sizes):
            return f"blocks of {self.sizes} need {len(self.sizes)} axes, shape {shape} has less"
        if self._block(shape, axes) is not None:
            return None
        axes = axes or conventional(shape)
        if axes.is_matrix() or not self.needs_axes:
            return f"blocks of {self.sizes} do not divide the last axes of shape {shape}"
        return f"blocks of {self.sizes} do not divide shape {shape} along {axes}"

    def block(self, shape: tuple[int, ...], axes: Axes | None = None) -> tuple[int, ...]:
        """Return the sizes of a block along each axis of a leaf that it fits.

        Example:
            >>> from nnopt_jax.ops.axis_roles import Axes
            >>> Blocks((4, 2)).block((8, 64), Axes(in_axis=1, out_axis=0))
            (2, 4)
            >>> Blocks((32, 2)).block((4, 16, 8), Axes(in_axis=(0, 1), out_axis=2))
            (2, 16, 2)
        """
        found = self._block(shape, axes)
        assert found is not None  # `misfit` was asked before
        return found

    def _block(self, shape: tuple[int, ...], axes: Axes | None) -> tuple[int, ...] | None:
        axes = axes or conventional(shape)
        parts = [1] * len(shape)
        if self.needs_axes and len(shape) > 1:
            tall, wide = (1, *self.sizes)[-2:]
            sized = [(axes.contracted, tall), (axes.output, wide)]
        else:  # each of the last axes by itself
            last = range(len(shape) - len(self.sizes), len(shape))
            sized = [((axis,), size) for axis, size in zip(last, self.sizes, strict=True)]
        for role, size in sized:
            for axis in reversed(role):  # the innermost axis first, the outer ones in whole
                part = size if shape[axis] % size == 0 else shape[axis]
                if size % part:
                    return None
                parts[axis], size = part, size // part
            if size > 1:
                return None
        return tuple(parts)

    def format(self, shape: tuple[int, ...], axes: Axes | None = None) -> tuple[int, ...]:
        """Return the sizes of a block along the last axes, as storage writes them."""
        parts = self.block(shape, axes)
        while len(parts) > len(self.sizes) and parts[0] == 1:
            parts = parts[1:]
        return parts

    def pool(self, scores: jax.Array, axes: Axes | None = None) -> jax.Array:
        """Return the mean score of each block.

        Args:
            scores: float, whatever shape fits.
            axes: see `misfit`.
        """
        return reduce_blocks("pattern", jnp.mean, scores, self.block(scores.shape, axes))

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Repeat one entry for each block to the whole array.

        Args:
            kept: bool, one for each block.
            shape: that of the array.

        Returns:
            bool, of that shape.
        """
        return expand(kept, shape)


def conventional(shape: tuple[int, ...]) -> Axes:
    """Return the axes that a leaf has where nothing else is known.

    A vector is contracted. Where no convention names the axes, the last two are those of a matrix.

    Example:
        >>> from nnopt_jax.pruning.pattern import conventional
        >>> conventional((8,)), conventional((3, 3, 8, 16)), conventional((5, 8, 16))
        (Axes(0, ()), Axes((0, 1, 2), 3), Axes(1, 2, batch_axis=0))
    """
    if len(shape) < 2:
        return Axes(tuple(range(len(shape))), ())
    return assumed_axes(shape) or matrix_axes(len(shape))


def parse(pattern: Pattern, settings: Settings) -> NOfM | Blocks | None:
    """Reads a pattern.

    Args:
        pattern: what the user wrote.
        settings: takes the problem, if there is one.

    Returns:
        The pattern; None for single weights.

    Example:
        >>> from nnopt_jax.pruning.pattern import parse
        >>> from nnopt_jax.settings import Settings
        >>> parse("2:4", Settings("demo")), parse([4, 1], Settings("demo"))
        (NOfM(n=2, m=4), Blocks(sizes=(4, 1)))
    """
    if pattern is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if found and 0 < int(found[1]) <= int(found[2]) <= 64:
        return NOfM(int(found[1]), int(found[2]))
    listed = isinstance(pattern, Sequence) and not isinstance(pattern, str | bytes)
    sizes = tuple(pattern) if listed else ()
    if sizes and all(is_whole(size) and size > 0 for size in sizes):
        return Blocks(tuple(map(int, sizes)))
    settings.wrong("pattern", pattern, "is neither None, 'n:m' with n <= m <= 64, nor block sizes"
                                       " such as (4, 4).")  # fmt: skip
    return None
