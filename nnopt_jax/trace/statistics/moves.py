"""What steps that only move a leaf, cast it or scale it do to its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.probed import split_p
from nnopt_jax.trace.statistics.view import Dim, View, regrouped
from nnopt_jax.typing import Shape

Dims = Sequence[Dim]
Settings = Mapping[str, Any]


def moved_dims(equation: Equation, at: int, view: View) -> list[Dims] | None:
    """Where the axes of a leaf lie after a step.

    Args:
        equation: the step.
        at: which of its operands the leaf is; all others are plain arrays.
        view: the leaf as it comes.

    Returns:
        For each outcome of the step, what its axes are; None where the leaf does not go on.
    """
    primitive, settings = equation.primitive, equation.params
    if primitive in _SCALED:
        return [view.dims] if _is_scaled(equation, at) else None
    if at != 0:
        return None
    if primitive is primitives.convert_element_type_p:
        return [view.dims] if jnp.issubdtype(settings["new_dtype"], jnp.floating) else None
    if primitive in _KEPT:
        return [view.dims]
    if primitive is split_p:
        shape, axis = view.x.shape, settings["axis"]
        parts = [_cut(view.dims, shape, _with(shape, axis, n)) for n in settings["sizes"]]
        return None if any(part is None for part in parts) else parts  # pyright: ignore[reportReturnType]
    move = _MOVES.get(primitive)
    found = None if move is None else move(view.dims, view.x.shape, settings)
    return None if found is None else [found]


def _is_scaled(equation: Equation, at: int) -> bool:
    """By one number, which leaves what meets the leaf as it is."""
    others = [x.aval.ndim for number, x in enumerate(equation.invars) if number != at]
    divides = equation.primitive is primitives.div_p and at == 1
    return others == [0] and not divides and equation.invars[at].aval.ndim > 0


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], int(size), *shape[axis + 1 :])


def _cut(dims: Dims, shape: Shape, sizes: Shape, strides: Shape | None = None) -> Dims | None:
    """A part along some axes."""
    found = []
    for at, (dim, size, left) in enumerate(zip(dims, shape, sizes, strict=True)):
        if left != size and len(dim) > 1:
            return None  # no factor of its own
        step = strides[at] if strides else 1
        cut = dim if left != size else ()
        found.append(
            tuple(f._replace(size=left, stride=f.stride * step) for f in cut) if cut else dim
        )
    return found


def _slice(dims: Dims, shape: Shape, k: Settings) -> Dims | None:
    strides = k["strides"] or (1,) * len(shape)
    spans = zip(k["start_indices"], k["limit_indices"], strides, strict=True)
    return _cut(
        dims, shape, tuple(-(-(end - start) // step) for start, end, step in spans), strides
    )


def _reshape(dims: Dims, shape: Shape, k: Settings) -> Dims | None:
    if k["dimensions"] is not None:
        return None
    sizes = tuple(k["new_sizes"])
    found: list[Dim] = [()] * len(sizes)
    for ours, theirs in paired(shape, sizes):
        factors = tuple(factor for axis in ours for factor in dims[axis])
        if not factors:  # repeated, before and after
            continue
        if any(not dims[axis] and shape[axis] != 1 for axis in ours):
            return None  # partly repeated
        parts = regrouped(factors, tuple(sizes[axis] for axis in theirs))
        if parts is None:
            return None
        for axis, part in zip(theirs, parts, strict=True):
            found[axis] = part
    return found


def _broadcast(dims: Dims, shape: Shape, k: Settings) -> Dims:
    found: list[Dim] = [()] * len(k["shape"])
    for dim, size, to in zip(dims, shape, k["broadcast_dimensions"], strict=True):
        found[to] = dim if k["shape"][to] == size else ()
    return found


def _reverse(dims: Dims, shape: Shape, k: Settings) -> Dims:
    return [
        tuple(f._replace(back=not f.back) for f in dim) if axis in k["dimensions"] else dim
        for axis, dim in enumerate(dims)
    ]


_MOVES: dict[Any, Callable[[Dims, Shape, Settings], Dims | None]] = {
    primitives.transpose_p: lambda dims, _, k: [dims[axis] for axis in k["permutation"]],
    primitives.squeeze_p: lambda dims, _, k: [
        dim for axis, dim in enumerate(dims) if axis not in k["dimensions"]
    ],
    primitives.reshape_p: _reshape,
    primitives.broadcast_in_dim_p: _broadcast,
    primitives.rev_p: _reverse,
    primitives.slice_p: _slice,
    primitives.dynamic_slice_p: lambda dims, shape, k: _cut(dims, shape, tuple(k["slice_sizes"])),
}

_KEPT = {
    primitives.copy_p,
    primitives.stop_gradient_p,
    primitives.neg_p,
    primitives.reduce_precision_p,
    primitives.name_p,
    primitives.sharding_constraint_p,
    primitives.device_put_p,
}
_SCALED = {primitives.mul_p, primitives.div_p}


def paired(shape: Shape, sizes: Shape) -> list[tuple[list[int], list[int]]]:
    """Which axes of one shape become which of another: the finest pairs of equal size.

    Example:
        >>> from nnopt_jax.trace.statistics.moves import paired
        >>> paired((8, 6, 5), (8, 30)), paired((12, 5), (3, 4, 5))
        ([([0], [0]), ([1, 2], [1])], [([0], [0, 1]), ([1], [2])])
    """
    if 0 in shape:
        return [(list(range(len(shape))), list(range(len(sizes))))]
    pairs, i, j = [], 0, 0
    while i < len(shape) or j < len(sizes):
        first, second = i, j
        mine = shape[i] if i < len(shape) else 1
        theirs = sizes[j] if j < len(sizes) else 1
        i, j = min(i + 1, len(shape)), min(j + 1, len(sizes))
        while mine != theirs:
            if mine < theirs:
                mine, i = mine * shape[i], i + 1
            else:
                theirs, j = theirs * sizes[j], j + 1
        pairs.append((list(range(first, i)), list(range(second, j))))
    return pairs
