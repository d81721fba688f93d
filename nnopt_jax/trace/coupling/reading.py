"""A program as it was read: each step with what is known of its operands and outcomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.coupling.labels import Book, Labels
from nnopt_jax.trace.coupling.value import Left, Value
from nnopt_jax.trace.jaxpr import Equation, Program, bind, line
from nnopt_jax.typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Reason:
    """Why elements stay.

    Args:
        text: in words.
        equations: the step that wants it, and those it lies in.
    """

    text: str
    equations: tuple[Equation, ...]

    def __str__(self) -> str:
        """With the user's line, where it is known."""
        # Programs that JAX has kept from another call do not know who calls them now.
        at = next(filter(None, map(line, self.equations)), "")
        return f"{self.text} at {at}" if at else self.text


class NoRule(Exception):
    """A rule does not know this kind of its primitive."""


class Step(NamedTuple):
    """One equation, read.

    Args:
        equation: the step.
        ins: its operands.
        outs: its outcomes.
        inner: the programs inside of it.
        lazy: makes further programs, on first use: derivative rules.
    """

    equation: Equation
    ins: tuple[Value, ...]
    outs: tuple[Value, ...]
    inner: tuple[Reading, ...] = ()
    lazy: Callable[[], Any] | None = None


class Reading(NamedTuple):
    """A program, read."""

    program: Program
    inputs: tuple[Value, ...]
    consts: tuple[Value, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Value, ...]


class Inside(NamedTuple):
    """What a rule found of a step that holds programs; the fields are those of `Step`."""

    outs: list[Value]
    inner: tuple[Reading, ...]
    lazy: Callable[[], Any] | None = None


class Reader(Protocol):
    """What rules may ask for."""

    book: Book
    depth: int

    def program(self, program: Program, inputs: Sequence[Value], inline: bool = False) -> Reading:
        """Reads a program inside of a step; inline where it runs as if it were written there."""
        ...

    def reason(self, text: str) -> Reason:
        """Why the step that is read wants elements to stay."""
        ...

    def deeper(self) -> Reader:
        """For programs that may never run, and hold further ones."""
        ...


class Smaller(Protocol):
    """What rules may ask for when a program runs without the removed units."""

    def kept(self, labels: Labels) -> np.ndarray | None:
        """Positions of an axis that are left; None for all."""
        ...

    def run(self, reading: Reading, values: Sequence[Any]) -> list[Any]:
        """Computes a program inside of a step."""
        ...

    def late(self, step: Step) -> Any:
        """What `step.lazy` makes."""
        ...

    def inline(self, step: Step, values: Sequence[Any]) -> list[Any]:
        """Computes the one program of a step as if it were written there."""
        ...

    def ghost(self, step: Step, operand: int, axis: int) -> Any:
        """What an operand of this step would hold at one removed element, of size 1 there."""
        ...


Read = Callable[[Reader, Equation, list[Value]], list[Value] | Inside]
Run = Callable[[Step, list[Any], Smaller], list[Any]]


def as_traced(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    """For steps that say nothing of sizes."""
    return bind(step.equation, values)


class Rule(NamedTuple):
    """What a primitive does with labels, and how it runs at smaller sizes."""

    read: Read
    run: Run = as_traced


def resized(step: Step, values: list[Any], smaller: Smaller, **settings: Any) -> list[Any]:
    """Computes a step with some of its settings changed."""
    equation = step.equation
    return bind(equation.replace(params={**equation.params, **settings}), values)


def sizes(value: Value, smaller: Smaller) -> tuple[int, ...]:
    """The shape that is left."""
    kept = [smaller.kept(axis) for axis in value.axes]
    return tuple(
        len(axis) if left is None else len(left)
        for axis, left in zip(value.axes, kept, strict=True)
    )


def cut(x: Array, value: Value, smaller: Smaller) -> Array:
    """What is left of an array of the full shape."""
    for axis, labels in enumerate(value.axes):
        left = smaller.kept(labels)
        if left is not None:
            x = jnp.take(x, left, axis)
    return x


def from_full(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    """For steps that are computed as before, and cut."""
    found = bind(step.equation, values)
    return [cut(x, value, smaller) for x, value in zip(found, step.outs, strict=True)]


def unknown(book: Book, shape: Sequence[int], reason: Any) -> Value:
    """An array of which nothing is removed."""
    return Value(tuple(book.fixed(n, reason) for n in shape), (Left.UNKNOWN,) * len(shape))


def made(book: Book, shape: Sequence[int], *, constant: float | None = None) -> Value:
    """An array that is there before any parameter, and can be cut anywhere."""
    return Value(tuple(book.fresh(n) for n in shape), (Left.UNKNOWN,) * len(shape), constant)


def shape_of(variable: Any) -> tuple[int, ...]:
    """Of a variable or a number of a program."""
    return tuple(variable.aval.shape)
