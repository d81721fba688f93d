"""What is known of an array before there is one: its labels, and what removed units leave."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.coupling.labels import Book, Labels
from nnopt_jax.trace.jaxpr import Equation, line


class Left(enum.Enum):
    """What an array holds where units are removed, where that is not a number."""

    ALIKE = "the same for every removed unit"
    UNKNOWN = "anything"
    BROKEN = "no finite number, as 0/0"


Remains = float | Left
"""What the model with zeros in place of removed units has there."""


class Value(NamedTuple):
    """An array as the analysis knows it.

    Args:
        axes: the labels along each axis.
        left: for each axis what the array holds at removed elements of it.
        constant: what every element is, where that is known.
        parameter: whether it is made of parameters alone.
        home: the program that made it. What is alike for all removed units can be computed again
            in that program, and is unknown in all others.

    Example:
        >>> Value((), (), 2.0).remains(0)
        2.0
    """

    axes: tuple[Labels, ...]
    left: tuple[Remains, ...]
    constant: float | None = None
    parameter: bool = False
    home: Location = ()

    @property
    def brings_no_units(self) -> bool:
        """Whether a step of parameters and this array is a step of parameters."""
        return self.parameter or not self.axes or self.constant is not None

    def remains(self, axis: int) -> Remains:
        """Return what it holds at removed elements of an axis; a number where that is known."""
        return self.left[axis] if self.constant is None else self.constant

    def within(self, home: Location) -> Value:
        """Return the array as another program knows it."""
        if home == self.home:
            return self
        left = tuple(Left.UNKNOWN if x is Left.ALIKE else x for x in self.left)
        return self._replace(left=left, home=home)


def fixed_value(book: Book, shape: Sequence[int], reason: Any) -> Value:
    """Return an array of which nothing is removed."""
    return Value(tuple(book.fixed(n, reason) for n in shape), (Left.UNKNOWN,) * len(shape))


def made_value(book: Book, shape: Sequence[int], constant: float | None = None) -> Value:
    """Return an array that is there before any parameter, and can be cut anywhere."""
    return Value(tuple(map(book.fresh, shape)), (Left.UNKNOWN,) * len(shape), constant)


def ordered_value(book: Book, shape: Sequence[int]) -> Value:
    """Return an array whose elements differ, so that they cannot change places."""
    value = made_value(book, shape)
    for labels in value.axes:
        book.order(labels)
    return value


def agreed(remains: Sequence[Remains]) -> Remains:
    """Return what is left where all of these are."""
    return remains[0] if remains and all(x == remains[0] for x in remains) else Left.UNKNOWN


@dataclasses.dataclass(frozen=True, eq=False)
class Reason:
    """Why elements stay.

    Args:
        text: in words.
        equations: the step that needs them, and those it lies in, the outermost first.
    """

    text: str
    equations: tuple[Equation, ...]

    def __str__(self) -> str:
        """Show the text with the user's line, where it is known."""
        # Programs that JAX has kept from another call do not know who calls them now.
        at = next(filter(None, map(line, reversed(self.equations))), "")
        return f"{self.text} at {at}" if at else self.text
