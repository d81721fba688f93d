"""The analysis of a function: the elements of its parameters that are removed together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import ShapeError
from nnopt_jax.trace.abstract_walk import Walk
from nnopt_jax.trace.coupling.coupling_domain import Coupling
from nnopt_jax.trace.coupling.labels import Book, Labels
from nnopt_jax.trace.coupling.value import Value, fixed_value
from nnopt_jax.trace.primitives import Table
from nnopt_jax.trace.traced import Traced
from nnopt_jax.typing import Path, Shape

Outputs = Callable[[Any], Any]
"""Selects the part of a function's result that must keep its widths."""

Place = tuple[Path, int]
"""An axis of a leaf: the path and the number of the axis."""


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The result of the analysis of a function.

    Args:
        traced: the function.
        domain: the settled labels, and the notes of each step.
        shapes: the shapes of the leaves of the first argument.
        labels: the labels of each of their axes.
    """

    traced: Traced
    domain: Coupling
    shapes: dict[Path, Shape]
    labels: dict[Place, Labels]

    @property
    def book(self) -> Book:
        """The book of labels."""
        return self.domain.book

    def elements(self) -> tuple[list[Place], np.ndarray]:
        """List every unit together with each position of an axis that belongs to it.

        Returns:
            The places, and rows of four numbers: the unit, the place, the role of the unit there,
            and the position.
        """
        places, found = list(self.labels), []
        for number, labels in enumerate(self.labels.values()):
            at, unit, role = self.book.units(labels)
            found.append(np.stack([unit, np.full(len(at), number), role, at], 1))
        return places, np.concatenate(found) if found else np.zeros((0, 4), np.int64)


def analyse(given: Traced, outputs: Outputs, table: Table) -> Analysis:
    """Find the labels of all leaves of a function without computing it.

    Args:
        given: the function; its parameters are the first argument.
        outputs: selects the part of its result that must keep its widths.
        table: the rules of the primitives.
    """
    domain = Coupling(table=table)
    book = domain.book
    inputs, shapes, labels = [], {}, {}
    for path, argument, variable in zip(
        given.paths, given.arguments, given.program.jaxpr.invars, strict=True
    ):
        shape = _numbers(path, variable.aval.shape)
        if argument == 0:
            value = _parameter(book, shape, variable.aval.dtype)
            shapes[path] = shape
            labels |= {(path, axis): found for axis, found in enumerate(value.axes)}
        else:
            value = fixed_value(book, shape, f"input {path}")
        inputs.append(value)
    found = Walk(domain, table).run(given.program, inputs)
    for value in given.part(outputs, found):
        for own in value.axes:
            book.fix(own, "output")
    book.settle()
    return Analysis(given, domain, shapes, labels)


def _numbers(path: Path, shape: Any) -> Shape:
    if not all(isinstance(size, int) for size in shape):
        raise ShapeError(
            f"graph.coupled: {path}: has shape {shape}, and elements are followed one by one. "
            "Give sizes that are numbers; to export a shrunk function for any batch, map it: "
            "jax.vmap(lambda row: small.apply(params, row[None])[0])(rows)."
        )
    return tuple(shape)


def _parameter(book: Book, shape: Shape, dtype: Any) -> Value:
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return fixed_value(book, shape, "no numbers")
    value = Value(tuple(map(book.fresh, shape)), (0.0,) * len(shape), parameter=True)
    for labels in value.axes:
        if len(labels) == 1:
            book.fix(labels, "a single element")
    return value
