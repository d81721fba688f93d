"""Products that add up over axes: what is added up must vanish with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnopt_jax.trace.coupling.labels import Labels
from nnopt_jax.trace.coupling.reading import (
    NoRule,
    Reader,
    Rule,
    Smaller,
    Step,
    resized,
    shape_of,
)
from nnopt_jax.trace.coupling.value import Left, Remains, Value
from nnopt_jax.trace.jaxpr import Equation, primitives


def _zero(*remains: Remains) -> Remains:
    return 0.0 if 0.0 in remains else Left.UNKNOWN


def _product(*remains: Remains) -> Remains:
    """A product with what is the same for all removed units is so itself."""
    if 0.0 in remains:
        return 0.0
    return Left.UNKNOWN if Left.UNKNOWN in remains else Left.ALIKE


def _add_up(
    reader: Reader, pairs: Sequence[tuple[Labels, Labels, Remains]], *, by_weights: bool
) -> None:
    """Axes that are added up over: one of the two factors must be zero where units are removed."""
    for ours, theirs, left in pairs:
        reader.book.join(ours, theirs)
        reader.book.read(ours, by_weights=by_weights)
        if left != 0.0:
            text = "a product would count what removed units leave in both factors"
            reader.book.fix(ours, reader.reason(text))


def _dot(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    (ours, theirs), (our_batch, their_batch) = equation.params["dimension_numbers"]
    x, y = ins
    for value, summed in ((x, ours), (y, theirs)):
        for axis in summed if value.parameter else ():
            reader.book.consume(value.axes[axis])
    _add_up(
        reader,
        [
            (x.axes[a], y.axes[b], _zero(x.remains(a), y.remains(b)))
            for a, b in zip(ours, theirs, strict=True)
        ],
        by_weights=x.parameter or y.parameter,
    )
    axes, left = [], []
    for a, b in zip(our_batch, their_batch, strict=True):
        reader.book.join(x.axes[a], y.axes[b])
        axes.append(x.axes[a])
        left.append(_product(x.remains(a), y.remains(b)))
    for value, used in ((x, {*ours, *our_batch}), (y, {*theirs, *their_batch})):
        for axis, labels in enumerate(value.axes):
            if axis not in used:
                axes.append(labels)
                left.append(_product(value.remains(axis)))
    return [Value(tuple(axes), tuple(left))]


def _convolution(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    k, (x, kernel) = equation.params, ins
    if k["batch_group_count"] != 1:
        raise NoRule("convolutions with groups of a batch")
    numbers, book = k["dimension_numbers"], reader.book
    (batch, features, *places) = numbers.lhs_spec
    (outward, inward, *window) = numbers.rhs_spec
    shape = shape_of(equation.outvars[0])
    text = "a convolution moves along it"
    for labels in (*(x.axes[p] for p in places), *(kernel.axes[p] for p in window)):
        book.fix(labels, reader.reason(text))
    groups, wanted = k["feature_group_count"], kernel.axes[inward]
    made = kernel.axes[outward]
    if groups == 1:
        given = x.axes[features]
    else:
        # A group goes as a whole; within groups the same places go in all of them.
        group, given = book.parted(x.axes[features], groups)
        other, _ = book.parted(made, groups)
        book.join(group, other)
    left = _zero(x.remains(features), kernel.remains(inward))
    _add_up(reader, [(given, wanted, left)], by_weights=kernel.parameter)
    if kernel.parameter:
        book.consume(wanted)
    axes: list[Labels] = [book.fixed(n, "a place of an image") for n in shape]
    remains: list[Remains] = [Left.UNKNOWN] * len(shape)
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = x.axes[batch], made
    remains[numbers.out_spec[0]] = _zero(x.remains(batch))
    remains[numbers.out_spec[1]] = _zero(kernel.remains(outward))
    return [Value(tuple(axes), tuple(remains))]


def _convolution_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    numbers = step.equation.params["dimension_numbers"]
    features = np.shape(values[0])[numbers.lhs_spec[1]]
    groups = features // np.shape(values[1])[numbers.rhs_spec[1]]
    return resized(step, values, smaller, feature_group_count=groups)


CONTRACTIONS: dict[Any, Rule] = {
    primitives.dot_general_p: Rule(_dot),
    primitives.conv_general_dilated_p: Rule(_convolution, _convolution_smaller),
}
"""Steps that multiply and add up."""
