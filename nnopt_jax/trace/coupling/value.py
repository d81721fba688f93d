"""Abstract values of the coupling analysis: the labels of an array, and what removed units hold."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.coupling.labels import Book, Labels
from nnopt_jax.trace.jaxpr import Equation, line


class Left(enum.Enum):
    """The content of an array at removed units, if it is not a known number."""

    ALIKE = "the same for every removed unit"
    UNKNOWN = "anything"
    BROKEN = "no finite number, as 0/0"


Remains = float | Left
"""The content of an array at removed units, in the model with zeros in their place."""


class Value(NamedTuple):
    """The abstract value of an array.

    Args:
        axes: the labels of each axis.
        left: the content of the array at removed elements of each axis.
        constant: the number that every element equals, if known.
        parameter: whether it is made of parameters alone.
        home: the program that made it. A content that is alike for all removed units can be
            computed again in that program only, and is unknown in others.

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
        """Whether the array is made of parameters, is a scalar, or holds a single constant."""
        return self.parameter or not self.axes or self.constant is not None

    def remains(self, axis: int) -> Remains:
        """Return the content at removed elements of an axis; a number if that is known."""
        return self.left[axis] if self.constant is None else self.constant

    def within(self, home: Location) -> Value:
        """Return the value for use in another program."""
        if home == self.home:
            return self
        left = tuple(Left.UNKNOWN if x is Left.ALIKE else x for x in self.left)
        return self._replace(left=left, home=home)


def fixed_value(book: Book, shape: Sequence[int], reason: Any) -> Value:
    """Return the value of an array that loses no elements."""
    return Value(tuple(book.fixed(n, reason) for n in shape), (Left.UNKNOWN,) * len(shape))


def made_value(book: Book, shape: Sequence[int], constant: float | None = None) -> Value:
    """Return the value of an array made without parameters, which can be cut anywhere."""
    return Value(tuple(map(book.fresh, shape)), (Left.UNKNOWN,) * len(shape), constant)


def ordered_value(book: Book, shape: Sequence[int]) -> Value:
    """Return the value of an array whose elements differ, so that they cannot change places."""
    value = made_value(book, shape)
    for labels in value.axes:
        book.order(labels)
    return value


def agreed(remains: Sequence[Remains]) -> Remains:
    """Return the content that all of these share; unknown if they differ."""
    return remains[0] if remains and all(x == remains[0] for x in remains) else Left.UNKNOWN


@dataclasses.dataclass(frozen=True, eq=False)
class Reason:
    """The reason for elements to stay.

    Args:
        text: the reason in words.
        equations: the step that needs them, and the steps around it, the outermost first.
    """

    text: str
    equations: tuple[Equation, ...]

    def __str__(self) -> str:
        """Return the text with the user's line, if that is known."""
        # A program that JAX cached from an earlier call has the source line of that call.
        at = next(filter(None, map(line, reversed(self.equations))), "")
        return f"{self.text} at {at}" if at else self.text
