"""Where a leaf meets what it is multiplied with: both in one layout, whatever the model's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.statistics.view import Dim, Factor, View, in_order
from nnopt_jax.typing import Array

Factors = tuple[Factor, ...]
Lay = Sequence[tuple[int, Dim]]
"""Axes of an array, each with what it is of a leaf."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """One use of a leaf. Arrays are float32 and have the axes (stack, groups, rows, ...).

    Args:
        along: axes of the leaf that are summed over, or looked up.
        stack: what of the leaf goes along with an axis of what it meets.
        groups: of a grouped convolution.
        channels: what of the leaf the axes of `inputs` after the rows are.
        outs: what of the leaf the axes of `outputs` after the rows are; groups are among them.
        inputs: what it met.
        patches: the same as rows of all that is summed over, in the leaf's order, one axis.
        outputs: the product.
        looked_up: of a lookup, how often each entry was asked for.
    """

    along: tuple[int, ...]
    stack: Factors = ()
    groups: Factors = ()
    channels: Factors = ()
    outs: Factors = ()
    inputs: Callable[[], Array] | None = None
    patches: Callable[[], Array] | None = None
    outputs: Callable[[], Array] | None = None
    looked_up: Callable[[], Array] | None = None


def meeting(
    equation: Equation, at: int, view: View, values: Sequence[Array], out: Array
) -> Meeting | str:
    """Reads one use of a leaf.

    Args:
        equation: the step.
        at: which of its operands the leaf is.
        view: the leaf as it came there.
        values: the arrays of all operands.
        out: the outcome.

    Returns:
        The meeting, or why there is nothing to measure.
    """
    read = _READ.get(equation.primitive)
    name = equation.primitive.name
    return f"{name} sums over none of it" if read is None else read(equation, at, view, values, out)


def laid_out(x: Array, before: Lay, after: Lay) -> Array:
    """An array as (factors before, rows, factors after), both in the order of the leaf."""
    x = lax.stop_gradient(x)
    ends = [axis for axis, _ in (*before, *after)]
    rows = [axis for axis in range(x.ndim) if axis not in ends]
    first, last = (_factors(lay) for lay in (before, after))
    count = math.prod(x.shape[axis] for axis in rows)
    x = x.transpose([*(axis for axis, _ in before), *rows, *(axis for axis, _ in after)])
    x = x.reshape([*(f.size for f in first), count, *(f.size for f in last)])
    flipped = [i for i, f in enumerate((*first, None, *last)) if f is not None and f.back]
    x = lax.rev(x, flipped) if flipped else x
    middle = len(first)
    order = [*in_order(first), middle, *(middle + 1 + i for i in in_order(last))]
    return x.transpose(order).astype(jnp.float32)


def _factors(lay: Lay) -> list[Factor]:
    return [factor for _, dim in lay for factor in dim]


def _sorted(lay: Lay) -> Factors:
    factors = _factors(lay)
    return tuple(factors[i] for i in in_order(factors))


def _axes(lay: Lay) -> tuple[int, ...]:
    return tuple(sorted({factor.axis for factor in _factors(lay)}))


def _repeated(view: View, dims: Sequence[int]) -> bool:
    return any(not view.dims[d] and view.x.shape[d] != 1 for d in dims)


def _dot(
    equation: Equation, at: int, view: View, values: Sequence[Array], out: Array
) -> Meeting | str:
    contract, batch = equation.params["dimension_numbers"]
    own, other = contract[at], contract[1 - at]
    if not own:
        return "an outer product sums over none of it"
    if _repeated(view, own):
        return "it is repeated along what is summed over"
    along = [(d, view.dims[w]) for d, w in zip(other, own, strict=True)]
    stack = [(d, view.dims[w]) for d, w in zip(batch[1 - at], batch[at], strict=True)]
    stack = [(d, dim) for d, dim in stack if dim]  # repeated ones are rows like any other
    free = [d for d in range(view.x.ndim) if d not in own and d not in batch[at]]
    x = values[1 - at]
    first = len(batch[at]) if at == 0 else out.ndim - len(free)
    outs = [(first + i, view.dims[d]) for i, d in enumerate(free) if view.dims[d]]
    kept = [(i, view.dims[w]) for i, w in enumerate(batch[at]) if view.dims[w]]

    def inputs() -> Array:
        return laid_out(x, stack, along)

    def patches() -> Array:
        rows = inputs()
        return rows.reshape(*rows.shape[: -len(_factors(along))], -1)

    return Meeting(
        _axes(along),
        _sorted(stack),
        channels=_sorted(along),
        outs=_sorted(outs),
        inputs=inputs,
        patches=patches,
        outputs=lambda: laid_out(out, kept, outs),
    )


def _convolution(
    equation: Equation, at: int, view: View, values: Sequence[Array], out: Array
) -> Meeting | str:
    k = equation.params
    numbers, count = k["dimension_numbers"], k["feature_group_count"]
    outer, inner, *window = numbers.rhs_spec
    if at == 0:
        return "it is the image of a convolution"
    if k["batch_group_count"] != 1:
        return "the rows of its images are in groups"
    if _repeated(view, (inner, *window)):
        return "it is repeated along what is summed over"
    if count > 1 and len(view.dims[outer]) != 1:
        return "its groups lie across axes"
    groups: list[tuple[int, Dim]] = []
    outs = [(1, view.dims[outer])]
    if count > 1:
        (whole,) = view.dims[outer]
        each = whole.size // count
        group = whole._replace(stride=whole.stride * each, size=count)
        groups, outs = [(1, (group,))], [(1, (group, whole._replace(size=each)))]
    image = values[0].transpose(numbers.lhs_spec)
    sizes = [view.x.shape[d] for d in window]

    def grouped(x: Array, *parts: int) -> Array:
        """(rows, groups, channels, window, places) of (rows, channels and window, places)."""
        return x.reshape(x.shape[0], count, -1, *parts, *x.shape[2:])

    def patches() -> Array:
        found = lax.conv_general_dilated_patches(
            lax.stop_gradient(image),
            sizes,
            k["window_strides"],
            k["padding"],
            k["lhs_dilation"],
            k["rhs_dilation"],
            precision=lax.Precision.HIGHEST,  # it only copies
        )
        after = [(2, view.dims[inner]), *((3 + i, view.dims[d]) for i, d in enumerate(window))]
        x = grouped(found, *sizes)
        x = laid_out(_without(x, groups), groups, _shifted(after, groups))
        return x.reshape(*x.shape[: len(groups) + 1], -1)

    channel = [(2, view.dims[inner])]
    return Meeting(
        _axes([(0, view.dims[d]) for d in (inner, *window)]),
        groups=_sorted(groups),
        channels=_sorted(channel),
        outs=_sorted(outs),
        inputs=lambda: laid_out(
            _without(grouped(image), groups), groups, _shifted(channel, groups)
        ),
        patches=patches,
        outputs=lambda: laid_out(out.transpose(numbers.out_spec), (), outs),
    )


def _without(x: Array, groups: Lay) -> Array:
    """An array without its axis of groups where there is but one."""
    return x if groups else x.squeeze(1)


def _shifted(lay: Lay, groups: Lay) -> Lay:
    return lay if groups else [(axis - 1, dim) for axis, dim in lay]


def _lookup(
    equation: Equation, at: int, view: View, values: Sequence[Array], out: Array
) -> Meeting | str:
    k = equation.params
    numbers, sizes = k["dimension_numbers"], k["slice_sizes"]
    if at != 0:
        return "it is the index of a lookup"
    axes = numbers.start_index_map
    others = [size for d, size in enumerate(sizes) if d not in axes]
    whole = [size for d, size in enumerate(view.x.shape) if d not in axes]
    if len(axes) != 1 or numbers.operand_batching_dims or sizes[axes[0]] != 1 or others != whole:
        return "it is looked up along several axes"
    (axis,) = axes
    dim, size = view.dims[axis], view.x.shape[axis]
    if not dim:
        return "it is repeated along what is looked up"

    def looked_up() -> Array:
        asked = values[1].reshape(-1)
        if k["mode"] == lax.GatherScatterMode.CLIP:
            asked = jnp.clip(asked, 0, size - 1)
        asked = jnp.where((asked < 0) | (asked >= size), size, asked)  # in no row
        counts = jnp.zeros(size, jnp.int32).at[asked].add(1, mode="drop")
        return laid_out(counts[None], (), [(1, dim)])[0]

    return Meeting((*_axes([(0, dim)]),), channels=_sorted([(0, dim)]), looked_up=looked_up)


_READ: dict[Any, Callable[..., Meeting | str]] = {
    primitives.dot_general_p: _dot,
    primitives.conv_general_dilated_p: _convolution,
    primitives.gather_p: _lookup,
}
