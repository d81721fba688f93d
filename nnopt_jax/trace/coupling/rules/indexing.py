"""Steps that look elements up: axes that are looked along stay, whole ones pass."""

from __future__ import annotations

from typing import Any

from nnopt_jax.trace.coupling.labels import Labels
from nnopt_jax.trace.coupling.reading import (
    Reader,
    Rule,
    Smaller,
    Step,
    resized,
    shape_of,
    sizes,
)
from nnopt_jax.trace.coupling.value import Left, Remains, Value
from nnopt_jax.trace.jaxpr import Equation, primitives


def _looked_along(reader: Reader, equation: Equation, labels: Labels) -> None:
    text = f"{equation.primitive.name} looks along it"
    reader.book.fix(labels, reader.reason(text))


def _whole(value: Value, window: Any, axis: int) -> bool:
    return window[axis] == len(value.axes[axis])


def _dynamic_slice(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, window = ins[0], equation.params["slice_sizes"]
    axes = list(value.axes)
    for axis, size in enumerate(window):
        if not _whole(value, window, axis):
            _looked_along(reader, equation, axes[axis])
            axes[axis] = reader.book.fixed(size, reader.reason("looked up"))
    return [Value(tuple(axes), value.left, value.constant)]


def _window_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    """For slices and lookups: windows that were whole are whole again."""
    now, before = sizes(step.ins[0], smaller), step.ins[0].shape
    window = tuple(
        new if size == old else size
        for size, old, new in zip(step.equation.params["slice_sizes"], before, now, strict=True)
    )
    return resized(step, values, smaller, slice_sizes=window)


def _dynamic_update_slice(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, update = ins[0], ins[1]
    left: list[Remains] = []
    for axis, (labels, others) in enumerate(zip(value.axes, update.axes, strict=True)):
        if len(labels) == len(others):
            reader.book.join(labels, others)
        else:
            _looked_along(reader, equation, labels)
            _looked_along(reader, equation, others)
        zero = value.remains(axis) == 0.0 == update.remains(axis)
        left.append(0.0 if zero else Left.UNKNOWN)
    return [Value(value.axes, tuple(left))]


def _gather(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, indices = ins
    numbers, window = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = shape_of(equation.outvars[0])
    own = list(numbers.operand_batching_dims)
    shown = [
        axis
        for axis in range(len(value.axes))
        if axis not in numbers.collapsed_slice_dims and axis not in own
    ]
    axes: list[Labels] = [reader.book.fixed(n, reader.reason("looked up")) for n in shape]
    left: list[Remains] = [Left.UNKNOWN] * len(shape)
    for axis in numbers.collapsed_slice_dims:
        _looked_along(reader, equation, value.axes[axis])
    for to, axis in zip(numbers.offset_dims, shown, strict=True):
        if _whole(value, window, axis):
            axes[to], left[to] = value.axes[axis], value.remains(axis)
        else:
            _looked_along(reader, equation, value.axes[axis])
    for a, b in zip(own, numbers.start_indices_batching_dims, strict=True):
        reader.book.join(value.axes[a], indices.axes[b])
    _looked_along(reader, equation, indices.axes[-1])
    others = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    for to, labels in zip(others, indices.axes[:-1], strict=True):
        axes[to] = labels
    return [Value(tuple(axes), tuple(left))]


def _scatter(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, indices, update = ins
    numbers = equation.params["dimension_numbers"]
    own = list(numbers.operand_batching_dims)
    shown = [
        axis
        for axis in range(len(value.axes))
        if axis not in numbers.inserted_window_dims and axis not in own
    ]
    left: list[Remains] = [Left.UNKNOWN] * len(value.axes)
    for axis in numbers.inserted_window_dims:
        _looked_along(reader, equation, value.axes[axis])
    for to, axis in zip(numbers.update_window_dims, shown, strict=True):
        if len(value.axes[axis]) == len(update.axes[to]):
            reader.book.join(value.axes[axis], update.axes[to])
            zero = value.remains(axis) == 0.0 == update.remains(to)
            left[axis] = 0.0 if zero else Left.UNKNOWN
        else:
            _looked_along(reader, equation, value.axes[axis])
            _looked_along(reader, equation, update.axes[to])
    for a, b in zip(own, numbers.scatter_indices_batching_dims, strict=True):
        reader.book.join(value.axes[a], indices.axes[b])
    _looked_along(reader, equation, indices.axes[-1])
    others = [x for x in range(len(update.axes)) if x not in numbers.update_window_dims]
    for to, labels in zip(others, indices.axes[:-1], strict=True):
        reader.book.join(update.axes[to], labels)
    return [Value(value.axes, tuple(left))]


_P = primitives
INDEXING: dict[Any, Rule] = {
    _P.dynamic_slice_p: Rule(_dynamic_slice, _window_smaller),
    _P.dynamic_update_slice_p: Rule(_dynamic_update_slice),
    _P.gather_p: Rule(_gather, _window_smaller),
    _P.scatter_p: Rule(_scatter),
    _P.scatter_add_p: Rule(_scatter),
    _P.scatter_max_p: Rule(_scatter),
    _P.scatter_min_p: Rule(_scatter),
}
"""Lookups and updates."""
