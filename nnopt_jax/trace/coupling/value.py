"""What is known of an array before there is one: its labels, and what removed units leave."""

from __future__ import annotations

import enum
from typing import NamedTuple

from nnopt_jax.trace.coupling.labels import Labels


class Left(enum.Enum):
    """What an array holds where units are removed, where that is no number."""

    ALIKE = "the same for every removed unit"
    UNKNOWN = "anything"
    BROKEN = "no finite number, as 0/0 is none"


Remains = float | Left
"""What the model with zeros in place of removed units has there."""


class Value(NamedTuple):
    """An array as the reading knows it.

    Args:
        axes: the labels along each axis.
        left: for each axis what the array holds at removed elements of it.
        constant: what every element is, where that is known.
        parameter: whether it is made of parameters alone.

    Example:
        >>> Value((), (), 2.0).remains(0)
        2.0
    """

    axes: tuple[Labels, ...]
    left: tuple[Remains, ...]
    constant: float | None = None
    parameter: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Before anything is removed."""
        return tuple(len(axis) for axis in self.axes)

    def remains(self, axis: int) -> Remains:
        """What it holds at removed elements of an axis; a number where that is known."""
        if self.constant is not None:
            return self.constant
        return self.left[axis]
