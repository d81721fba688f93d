"""Packed leaves that are moved stay packed: every part of a node is moved by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.base import Field, Node, is_node
from nnopt_jax.arrays.bits import Bits
from nnopt_jax.arrays.codebook import Codebook
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.gathered import Gathered, GatheredBlocks
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.powers import Powers
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.sum_ import Sum
from nnopt_jax.arrays.trits import Trits
from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.packed.rules.view import (
    Shape,
    View,
    cut,
    expanded,
    reshaped,
    squeezed,
    transposed,
)
from nnopt_jax.trace.probed import pvary_p
from nnopt_jax.typing import Array

SHARED: Mapping[type[Node], tuple[str, ...]] = {
    Quantized: (),
    Codebook: ("table",),
    Levels: (),
    Powers: (),
    Masked: (),
    Sum: (),
    InputQuantized: (),
}
"""Nodes whose fields lie like the weight or coarser, and the fields that are for all of it."""


def moved(field: Field, view: View) -> Field | None:
    """A field or node after a movement; None where a part of it cannot follow.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.trace.packed.rules.move import moved
        >>> from nnopt_jax.trace.packed.rules.view import transposed
        >>> node = Quantized(jnp.ones((4, 3), jnp.int8), jnp.ones((1, 3)))
        >>> moved(node, transposed((4, 3), (1, 0)))
        Quantized(codes int8[3,4], scale float32[3,1], 16 bits/weight)
    """
    if not is_node(field):
        return field
    return _moved(field, tuple(field.shape), view)


def _moved(field: Field, shape: Shape, view: View) -> Field | None:
    if not is_node(field):
        return view.apply(field, shape)
    if isinstance(field, Bits | Trits):
        return _packed_codes(field, shape, view)
    if isinstance(field, Factored):
        return _factors(field, view)
    if isinstance(field, Gathered | GatheredBlocks):
        return Reshaped.of(field, view.axes) if view.axes else None
    if isinstance(field, Reshaped):
        return _in_memory(field, shape, view)
    if type(field) not in SHARED:
        return None
    if isinstance(field, Codebook) and field.table.ndim > 1:
        return None
    shared = SHARED[type(field)]
    parts = {name: _moved(part, shape, view) for name, part in field.fields() if name not in shared}
    return None if any(part is None for part in parts.values()) else field.replace(**parts)


def _packed_codes(field: Bits | Trits, shape: Shape, view: View) -> Field | None:
    """Words move where the axis that they lie along stays; else codes do, in a byte or two each."""
    if field.layout == "rows" and view.kept >= 1:
        return field.replace(words=view.apply(field.words, shape), shape=view.shape)
    top = field.low + (2**field.width - 1 if isinstance(field, Bits) else 2)
    narrow = next(kind for kind in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16)
                  if jnp.iinfo(kind).min <= field.low and top <= jnp.iinfo(kind).max)  # fmt: skip
    return view.apply(field.materialize().astype(narrow), shape)


def _factors(field: Factored, view: View) -> Factored | None:
    """A product of factors is moved along its leading axes, or transposed."""
    swapped = view.axes[-2:] == (field.ndim - 1, field.ndim - 2)
    if view.kept < 2 and not swapped:
        return None
    u, v = (_moved(part, tuple(part.shape), view) for part in (field.u, field.v))
    if u is None or v is None:
        return None
    return field.replace(u=v, v=u) if swapped else field.replace(u=u, v=v)


def _in_memory(field: Reshaped, shape: Shape, view: View) -> Field | None:
    """What lies in other axes stays so where its first axis is cut, or all are permuted."""
    runs = field.runs()
    if runs is None or not field.axes:
        return None
    axes, count = field.axes, len(field.axes)
    if view.axes:
        order = tuple(axes[axis] for axis in view.axes)
        return field.replace(axes=order, sizes=tuple(shape[axis] for axis in view.axes))
    gone, lies = count - len(view.shape), tuple(field.base.shape)
    permutes = field.split == lies
    if axes[0] == 0 and runs[0] == (0,) and view.kept >= count - 1 and gone in (0, 1):
        first, rest = view.shape[: 1 - gone], tuple(a - gone for a in axes[gone:])
        kept = view.kept - count + len(lies)
        there = dataclasses.replace(view, shape=(*first, *lies[1:]), kept=kept)
        base = _moved(field.base, lies, there)
        if base is None or permutes:
            return None if base is None else Reshaped.of(base, rest)
        return field.replace(
            base=base, split=(*first, *field.split[1:]), axes=rest, sizes=view.shape
        )
    return view.apply(field.materialize(), shape) if permutes else None


def view_of(equation: Equation, shape: Shape, values: list[Any]) -> View | None:
    """The movement that a step makes of its first operand; None where it makes none.

    Args:
        equation: the step.
        shape: of the operand.
        values: what the step takes, the operand first.
    """
    make = _VIEWS.get(equation.primitive)
    return None if make is None else make(shape, values, equation.params)


def _slice(shape: Shape, values: list[Any], settings: Mapping[str, Any]) -> View:
    starts, limits = settings["start_indices"], settings["limit_indices"]
    strides = settings["strides"] or (1,) * len(shape)
    sizes = tuple(
        -(-(end - start) // stride)
        for start, end, stride in zip(starts, limits, strides, strict=True)
    )
    return cut(
        shape,
        sizes,
        lambda x, axis: lax.slice_in_dim(x, starts[axis], limits[axis], strides[axis], axis),
    )


def _dynamic_slice(shape: Shape, values: list[Any], settings: Mapping[str, Any]) -> View:
    starts, sizes = values[1:], settings["slice_sizes"]
    return cut(
        shape,
        sizes,
        lambda x, axis: lax.dynamic_slice_in_dim(x, starts[axis], sizes[axis], axis),
    )


def _reversed(shape: Shape, axes: Shape) -> View:
    def apply(x: Array, shape: Shape) -> Array | None:
        if any(x.shape[axis] not in (1, shape[axis]) for axis in axes):
            return None
        return lax.rev(x, axes)

    return View(shape, apply, len(shape) - 1 - max(axes, default=-1))


_VIEWS = {
    primitives.transpose_p: lambda shape, _, k: transposed(shape, k["permutation"]),
    primitives.reshape_p: lambda shape, _, k: (
        None if k["dimensions"] is not None else reshaped(shape, tuple(k["new_sizes"]))
    ),
    primitives.squeeze_p: lambda shape, _, k: squeezed(shape, k["dimensions"]),
    primitives.broadcast_in_dim_p: lambda shape, _, k: expanded(
        shape, tuple(k["shape"]), k["broadcast_dimensions"]
    ),
    primitives.slice_p: _slice,
    primitives.dynamic_slice_p: _dynamic_slice,
    primitives.rev_p: lambda shape, _, k: _reversed(shape, tuple(k["dimensions"])),
    pvary_p: lambda shape, _, k: View(
        shape, lambda x, _: lax.pcast(x, k["axes"], to="varying"), len(shape)
    ),
    primitives.copy_p: lambda shape, _, k: View(shape, lambda x, _: x, len(shape)),
}
