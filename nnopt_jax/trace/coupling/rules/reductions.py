"""Steps along an axis: sums may lose zeros, and little else."""

from __future__ import annotations

import math
from typing import Any

from nnopt_jax.trace.coupling.elementwise import met
from nnopt_jax.trace.coupling.reading import (
    Reader,
    Rule,
    Smaller,
    Step,
    shape_of,
)
from nnopt_jax.trace.coupling.rules.moves import picked
from nnopt_jax.trace.coupling.value import Left, Value
from nnopt_jax.trace.jaxpr import Equation, bind, primitives

_P = primitives
_NOTHING = {
    _P.reduce_sum_p: 0.0,
    _P.reduce_prod_p: 1.0,
    _P.reduce_max_p: -math.inf,
    _P.reduce_min_p: math.inf,
    _P.reduce_or_p: 0.0,
    _P.reduce_and_p: 1.0,
    _P.reduce_xor_p: 0.0,
}
"""What may be left out of each reduction."""


def _reduce(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, over, primitive = ins[0], equation.params["axes"], equation.primitive
    counted = False
    for axis in over:
        labels, left = value.axes[axis], value.remains(axis)
        reader.book.read(labels)
        if left == _NOTHING[primitive] or reader.book.is_fixed(labels).all():
            continue
        # What every removed unit would add is known, and added, along one axis of a sum.
        if left is not Left.UNKNOWN and primitive is _P.reduce_sum_p and not counted:
            counted = True
            continue
        text = f"{primitive.name} would count what removed units leave"
        reader.book.fix(labels, reader.reason(text))
    kept = [axis for axis in range(len(value.axes)) if axis not in over]
    found = picked(value, kept)
    followed = 0.0 if counted else Left.ALIKE
    left = tuple(x if x in (0.0, followed) else Left.UNKNOWN for x in found.left)
    return [Value(found.axes, left, 0.0 if value.constant == 0.0 else None)]


def _reduce_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    """Sums count what is removed, where that is not zero."""
    (total,), (value,) = bind(step.equation, values), step.ins
    for axis in step.equation.params["axes"]:
        kept, labels = smaller.kept(value.axes[axis]), value.axes[axis]
        if kept is not None and value.remains(axis) != _NOTHING[step.equation.primitive]:
            (each,) = bind(step.equation, [smaller.ghost(step, 0, axis)])
            total = total + (len(labels) - len(kept)) * each
    return [total]


def _arg(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    over = equation.params["axes"]
    for axis in over:
        text = f"{equation.primitive.name} counts along it"
        reader.book.fix(ins[0].axes[axis], reader.reason(text))
    kept = [axis for axis in range(len(ins[0].axes)) if axis not in over]
    return [Value(picked(ins[0], kept).axes, (Left.UNKNOWN,) * len(kept))]


def _along(reader: Reader, equation: Equation, ins: list[Value], axis: int) -> list[Value]:
    """Arrays that meet, where one axis is needed whole; zeros stay zeros along the others."""
    rank, found = len(ins[0].axes), []
    joined = [met(reader, ins, rank, at) for at in range(rank)]
    reader.book.fix(joined[axis], reader.reason(f"{equation.primitive.name} along it"))
    zeros = [all(value.remains(at) == 0.0 for value in ins) for at in range(rank)]
    for out in equation.outvars:
        axes = list(joined)
        if len(axes[axis]) != (size := shape_of(out)[axis]):
            axes[axis] = reader.book.fixed(size, reader.reason(equation.primitive.name))
        left = tuple(0.0 if zero and at != axis else Left.UNKNOWN for at, zero in enumerate(zeros))
        found.append(Value(tuple(axes), left))
    return found


def _cumulate(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    return _along(reader, equation, ins, equation.params["axis"])


def _sort(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    found = _along(reader, equation, ins, equation.params["dimension"])
    if equation.params["num_keys"] == len(ins) == 1:
        return found
    return [Value(x.axes, (Left.UNKNOWN,) * len(x.axes)) for x in found]


def _top(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    found = _along(reader, equation, ins, equation.params.get("axis", -1) % len(ins[0].axes))
    return [Value(x.axes, (Left.UNKNOWN,) * len(x.axes)) for x in found]


def _window(reader: Reader, equation: Equation, ins: list[Value]) -> list[Value]:
    value, k = ins[0], equation.params
    settings = zip(
        k["window_dimensions"], k["window_strides"], k["padding"], k["base_dilation"],
        k["window_dilation"], strict=True,
    )  # fmt: skip
    axes, within = list(value.axes), True
    for axis, (size, stride, (low, high), base, spread) in enumerate(settings):
        if (size, stride, low, high, base) == (1, 1, 0, 0, 1):
            continue
        within &= base == 1 and max(low, high) < (size - 1) * spread + 1
        reader.book.fix(axes[axis], reader.reason("a window moves along it"))
        axes[axis] = reader.book.fixed(shape_of(equation.outvars[0])[axis], "a place of an image")
    # A window that holds nothing but padding is not zero where its array is.
    left = tuple(0.0 if x == 0.0 and within else Left.UNKNOWN for x in value.left)
    return [Value(tuple(axes), left)]


REDUCTIONS: dict[Any, Rule] = {
    **{primitive: Rule(_reduce, _reduce_smaller) for primitive in _NOTHING},
    _P.argmax_p: Rule(_arg),
    _P.argmin_p: Rule(_arg),
    _P.cumsum_p: Rule(_cumulate),
    _P.cumprod_p: Rule(_cumulate),
    _P.cummax_p: Rule(_cumulate),
    _P.cummin_p: Rule(_cumulate),
    _P.sort_p: Rule(_sort),
    _P.top_k_p: Rule(_top),
    _P.reduce_window_sum_p: Rule(_window),
    _P.reduce_window_max_p: Rule(_window),
    _P.reduce_window_min_p: Rule(_window),
}
"""Steps that go along an axis."""
