"""Steps that move elements: labels move with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.trace.coupling.elementwise import met
from nnopt_jax.trace.coupling.labels import KEPT, Book, Labels
from nnopt_jax.trace.coupling.reading import (
    Reader,
    Rule,
    Smaller,
    Step,
    from_full,
    made,
    resized,
    shape_of,
    sizes,
)
from nnopt_jax.trace.coupling.value import Left, Remains, Value
from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.probed import optimization_barrier_p, split_p, tile_p


def picked(value: Value, axes: Sequence[int]) -> Value:
    """An array with some of the axes of another, in any order."""
    return value._replace(
        axes=tuple(value.axes[axis] for axis in axes),
        left=tuple(value.left[axis] for axis in axes),
    )


def same(remains: Sequence[Remains]) -> Remains:
    """What is left where all of these are."""
    return remains[0] if remains and all(x == remains[0] for x in remains) else Left.UNKNOWN


def with_axis(value: Value, axis: int, labels: Labels, left: Remains | None = None) -> Value:
    """An array with other labels along an axis."""
    axes, lefts = list(value.axes), list(value.left)
    axes[axis] = labels
    lefts[axis] = lefts[axis] if left is None else left
    return value._replace(axes=tuple(axes), left=tuple(lefts))


def _transpose(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    return [picked(ins[0], equation.params["permutation"])]


def _squeeze(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    gone = {axis % len(ins[0].axes) for axis in equation.params["dimensions"]}
    for axis in gone:
        reader.book.fix(ins[0].axes[axis], reader.reason("one of its elements alone is taken"))
    return [picked(ins[0], [axis for axis in range(len(ins[0].axes)) if axis not in gone])]


def _broadcast(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, shape = ins[0], shape_of(equation.outvars[0])
    axes, left = [], []
    new: Remains = Left.ALIKE if value.constant is None else value.constant
    at = {to: axis for axis, to in enumerate(equation.params["broadcast_dimensions"])}
    for axis, size in enumerate(shape):
        own = value.axes[at[axis]] if axis in at else None
        if own is not None and len(own) == size:
            axes.append(own)
            left.append(value.left[at[axis]])
        else:
            axes.append(reader.book.fresh(size))
            left.append(new)
    return [Value(tuple(axes), tuple(left), value.constant)]


def _broadcast_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    return resized(step, values, smaller, shape=sizes(step.outs[0], smaller))


def blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Axes of two shapes of one size that hold the same elements; axes of size 1 are left out."""
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left and right:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[x] for x in ours)) != (
            b := math.prod(after[x] for x in theirs)
        ):
            if a < b:
                ours.append(left.pop(0))
            else:
                theirs.append(right.pop(0))
        yield ours, theirs


def _reshape(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, shape = ins[0], shape_of(equation.outvars[0])
    if equation.params.get("dimensions") is not None:
        value = picked(value, equation.params["dimensions"])
    axes: list[Labels] = [np.full(n, KEPT) for n in shape]
    left: list[Remains] = [Left.UNKNOWN] * len(shape)
    if 0 in shape:
        return [Value(tuple(axes), tuple(left), value.constant)]
    for ours, theirs in blocks(value.shape, shape):
        if len(ours) == len(theirs) == 1:
            axes[theirs[0]], left[theirs[0]] = value.axes[ours[0]], value.left[ours[0]]
            continue
        free = [x for x in ours if not reader.book.is_fixed(value.axes[x]).all()]
        flat = _flat(reader.book, [value.axes[axis] for axis in ours])
        for axis, labels in zip(
            theirs, _parts(reader.book, flat, [shape[x] for x in theirs]), strict=True
        ):
            axes[axis], left[axis] = labels, same([value.left[x] for x in free])
    for labels in value.axes:
        if len(labels) == 1:
            reader.book.fix(labels, "a single element")
    return [Value(tuple(axes), tuple(left), value.constant)]


def _flat(book: Book, axes: Sequence[Labels]) -> Labels:
    flat = axes[-1]
    for axis in reversed(axes[:-1]):
        flat = book.merged(axis, flat)
    return flat


def _parts(book: Book, flat: Labels, shape: Sequence[int]) -> list[Labels]:
    found = []
    for size in shape[:-1]:
        outer, flat = book.parted(flat, size)
        found.append(outer)
    return [*found, flat]


def _reshape_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    return resized(step, values, smaller, new_sizes=sizes(step.outs[0], smaller))


def _concatenate(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    along, rank = equation.params["dimension"], len(ins[0].axes)
    axes = [
        np.concatenate([value.axes[axis] for value in ins])
        if axis == along
        else met(reader, ins, rank, axis)
        for axis in range(rank)
    ]
    left = [same([value.remains(axis) for value in ins]) for axis in range(rank)]
    constant = same([Left.UNKNOWN if x.constant is None else x.constant for x in ins])
    return [Value(tuple(axes), tuple(left), None if isinstance(constant, Left) else constant)]


def _slice(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    return [
        Value(
            tuple(
                labels[start:stop:stride]
                for labels, (start, stop, stride) in zip(
                    ins[0].axes, _ranges(equation), strict=True
                )
            ),
            ins[0].left,
            ins[0].constant,
        )
    ]


def _ranges(equation: Equation) -> list[tuple[int, int, int]]:
    k = equation.params
    strides = k["strides"] or (1,) * len(k["start_indices"])
    return list(zip(k["start_indices"], k["limit_indices"], strides, strict=True))


def _slice_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    (x,) = values
    for axis, (labels, (start, stop, stride)) in enumerate(
        zip(step.ins[0].axes, _ranges(step.equation), strict=True)
    ):
        kept = smaller.kept(labels)
        if kept is None:
            if (start, stop, stride) != (0, len(labels), 1):
                x = lax.slice_in_dim(x, start, stop, stride, axis)
            continue
        wanted = np.isin(kept, np.arange(start, stop, stride))
        at = np.flatnonzero(wanted)
        if at.size and at[-1] - at[0] == at.size - 1:
            x = lax.slice_in_dim(x, int(at[0]), int(at[-1]) + 1, 1, axis)
        else:
            x = jnp.take(x, at, axis)
    return [x]


def _split(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    axis, ends = equation.params["axis"], np.cumsum(equation.params["sizes"])
    return [with_axis(ins[0], axis, labels) for labels in np.split(ins[0].axes[axis], ends[:-1])]


def _split_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    axis = step.equation.params["axis"]
    return resized(
        step, values, smaller, sizes=tuple(sizes(out, smaller)[axis] for out in step.outs)
    )


def _pad(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, filler = ins
    axes, padded = list(value.axes), []
    for axis, (low, high, interior) in enumerate(equation.params["padding_config"]):
        if not (low or high or interior):
            continue
        padded.append(axis)
        if interior or low < 0 or high < 0:
            reader.book.fix(axes[axis], reader.reason("its elements are spread apart"))
            size = shape_of(equation.outvars[0])[axis]
            axes[axis] = reader.book.fixed(size, reader.reason("padded"))
        else:
            kept = [reader.book.fixed(n, "padded") for n in (low, high)]
            axes[axis] = np.concatenate([kept[0], axes[axis], kept[1]])
    left = [
        value.remains(axis)
        if not set(padded) - {axis} or value.remains(axis) == filler.constant
        else Left.UNKNOWN
        for axis in range(len(axes))
    ]
    constant = value.constant if value.constant == filler.constant else None
    return [Value(tuple(axes), tuple(left), constant)]


def _tile(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    """Copies can be removed as the elements of each can."""
    axes, left = [], []
    for axis, times in enumerate(equation.params["reps"]):
        labels, book = ins[0].axes[axis], reader.book
        axes.append(labels if times == 1 else book.merged(book.fresh(times), labels))
        left.append(ins[0].left[axis] if times == 1 else Left.UNKNOWN)
    return [Value(tuple(axes), tuple(left), ins[0].constant)]


def _tile_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    wanted = sizes(step.outs[0], smaller)
    reps = tuple(out // own for out, own in zip(wanted, values[0].shape, strict=True))
    return resized(step, values, smaller, reps=reps)


def _reverse(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value = ins[0]
    for axis in equation.params["dimensions"]:
        value = with_axis(value, axis, value.axes[axis][::-1])
    return [value]


def _made(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    """Positions and random bits: computed in full, and cut where units are removed."""
    for value in ins:
        for labels in value.axes:
            reader.book.fix(labels, reader.reason(f"{equation.primitive.name} needs it whole"))
    value = made(reader.book, shape_of(equation.outvars[0]))
    for labels in value.axes:
        reader.book.order(labels)
    return [value]


def _barrier(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    return ins


_P = primitives
MOVES: dict[Any, Rule] = {
    # Where there is no such primitive the last step is another one, whose rule comes after this.
    tile_p: Rule(_tile, _tile_smaller),
    _P.transpose_p: Rule(_transpose),
    _P.squeeze_p: Rule(_squeeze),
    _P.broadcast_in_dim_p: Rule(_broadcast, _broadcast_smaller),
    _P.reshape_p: Rule(_reshape, _reshape_smaller),
    _P.concatenate_p: Rule(_concatenate),
    _P.slice_p: Rule(_slice, _slice_smaller),
    split_p: Rule(_split, _split_smaller),
    _P.pad_p: Rule(_pad),
    _P.rev_p: Rule(_reverse),
    _P.iota_p: Rule(_made, from_full),
    _P.random_bits_p: Rule(_made, from_full),
    optimization_barrier_p: Rule(_barrier),
}
"""Steps that keep, drop, repeat or reorder elements, and those that make arrays of nothing."""
