"""Places: indices of the entries of an array, as sums of strides over factors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Factor = int
"""A loop index of an equation, by its position in `OpRule.sizes`."""


class RuntimeStart(NamedTuple):
    """A start index that is a value of an operand, so that it is known only at run time.

    Args:
        operand: the operand that holds the start.
        entry: the position on the last axis of that operand. None if the operand is a scalar, or
            if the start is computed from it (the sizes of ragged groups).

    Example:
        >>> from nnopt_jax.trace.primitives import RuntimeStart
        >>> RuntimeStart(
        ...     operand=1, entry=0
        ... )  # the start of a gather: column 0 of its indices, which are operand 1
        RuntimeStart(operand=1, entry=0)
    """

    operand: int
    entry: int | None = None


class Place(NamedTuple):
    """The indices `start + sum(stride * i)` of one dimension, where `i` runs over factors.

    Args:
        factors: pairs of a factor and its stride, from major to minor. Without factors the place
            is the single index `start`.
        start: the index at which all factors are zero, a number or a `RuntimeStart`.
        holes: the dilation of the dimension: only indices that it divides exist, and the array has
            the entry `index // holes` there. Indices outside of the array are padding.

    Example:
        >>> from nnopt_jax.trace.primitives import Place
        >>> Place(((0, 2),), start=1).indices([3])  # x[1::2] of six entries
        array([1, 3, 5])
        >>> Place(((0, 3), (1, 1))).indices([2, 3])  # an axis of six as two rows of three
        array([[0, 1, 2],
               [3, 4, 5]])
    """

    factors: tuple[tuple[Factor, int], ...] = ()
    start: int | RuntimeStart = 0
    holes: int = 1

    @property
    def names(self) -> tuple[Factor, ...]:
        """The factors without their strides, from major to minor."""
        return tuple([factor for factor, _ in self.factors])  # faster than a generator

    def indices(self, sizes: tuple[int, ...] | list[int]) -> np.ndarray:
        """Return the index for each combination of the factors, one axis for each of them.

        Args:
            sizes: the size of every factor of the rule.

        Raises:
            ValueError: an operand holds the start.
        """
        if isinstance(self.start, RuntimeStart):
            raise ValueError(f"{self}: the start is known at run time; pass it yourself")
        found = np.asarray(self.start)
        for factor, stride in self.factors:
            found = found[..., None] + stride * np.arange(sizes[factor])
        return found

    def count(self, sizes: tuple[int, ...] | list[int]) -> int:
        """Return the number of indices of the place."""
        return int(np.prod([sizes[factor] for factor in self.names], dtype=int))

    def covers(self, size: int, sizes: tuple[int, ...]) -> bool:
        """Return whether the place covers a dimension of the given size in full and in order.

        Args:
            size: the size of the dimension.
            sizes: the size of every factor of the rule.
        """
        covered = 1
        for factor, stride in reversed(self.factors):
            # The stride of a factor of size 1 is arbitrary.
            if sizes[factor] != 1 and stride != covered:
                return False
            covered *= sizes[factor]
        return self.start == 0 and self.holes == 1 and covered == size


Dim = tuple[Place, ...]
"""The places of one dimension; where they overlap, later places overwrite earlier ones."""


def axis(factor: Factor, start: int | RuntimeStart = 0, stride: int = 1) -> Dim:
    """Return a dimension that one factor runs over.

    Example:
        >>> from nnopt_jax.trace.primitives import axis
        >>> axis(2)
        (Place(factors=((2, 1),), start=0, holes=1),)
    """
    return (Place(((factor, stride),), start),)


ONE: Dim = (Place(),)
"""A dimension with the single index 0."""
