"""Which weights may go together: any, n of every m, or whole blocks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from nnopt_jax.ops.blocks import reduce_blocks
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.groups import MOST_CHOICES, group_axis, keep_n_of_m
from nnopt_jax.settings import Settings, is_whole

Pattern: TypeAlias = str | Sequence[int] | None
"""None, `"2:4"`, or the sizes of a block such as `(4, 4)`."""


@dataclasses.dataclass(frozen=True)
class NOfM:
    """Of every `m` entries in a row along the axis before the last, `n` stay.

    Args:
        n: entries that stay.
        m: entries in a group.
    """

    n: int
    m: int

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a leaf of this shape, if anything is."""
        axis = group_axis(shape)
        if not shape or shape[axis] % self.m:
            return f"groups of {self.m} do not divide axis {axis} of shape {shape}"
        return None

    def mask(self, scores: jax.Array) -> jax.Array:
        """The `n` greatest of each group; of equal ones the earlier.

        Args:
            scores: float of either sign, whatever shape fits; NaN counts as infinity.

        Returns:
            bool, of the same shape.
        """
        return keep_n_of_m(scores, self.n, self.m)

    @property
    def is_numbered(self) -> bool:
        """Whether storage can write a group's choice as a number of 32 bits."""
        return math.comb(self.m, self.n) <= MOST_CHOICES


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Whole blocks of the last axes stay or go.

    Args:
        sizes: entries of a block along each of the last axes.
    """

    sizes: tuple[int, ...]

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a leaf of this shape, if anything is."""
        if len(shape) < len(self.sizes):
            return f"blocks of {self.sizes} need {len(self.sizes)} axes, shape {shape} has less"
        last = shape[len(shape) - len(self.sizes) :]
        if any(size % part for size, part in zip(last, self.sizes, strict=True)):
            return f"blocks of {self.sizes} do not divide the last axes of shape {shape}"
        return None

    def pool(self, scores: jax.Array) -> jax.Array:
        """The mean score of each block.

        Args:
            scores: float, whatever shape fits.

        Returns:
            One score for each block.
        """
        alone = (1,) * (scores.ndim - len(self.sizes))
        return reduce_blocks("pattern", jnp.mean, scores, (*alone, *self.sizes))

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """One entry for each block, repeated to the whole array.

        Args:
            kept: bool, one for each block.
            shape: that of the array.

        Returns:
            bool, of that shape.
        """
        return expand(kept, shape)


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
