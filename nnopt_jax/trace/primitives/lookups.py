"""Rules of primitives that read or replace entries chosen by indices."""

from __future__ import annotations

import functools

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.movements import whole_windows
from nnopt_jax.trace.primitives.places import Dim, Factor, Place, RuntimeStart, axis
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, OpRule, Same


def _gather(equation: Equation) -> OpRule:
    """Return the rule of a gather: operand index = start from the indices + position in the window.

    Indices out of bounds are clipped or yield a fill value, depending on the mode of the gather.
    """
    draft, sizes = Draft(equation), equation.params["slice_sizes"]
    numbers = equation.params["dimension_numbers"]
    (shape, asked), (target,) = draft.operand_shapes, draft.outcome_shapes
    batch = draft.factors(asked[:-1])
    own = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    entries = {a: i for i, a in enumerate(numbers.start_index_map)}
    operand: list[Dim] = []
    window: list[Factor] = []
    for a, (n, size) in enumerate(zip(shape, sizes, strict=True)):
        # A window as wide as the axis can only start at 0.
        start = RuntimeStart(1, entries[a]) if a in entries and size != n else 0
        if a in own:
            operand.append(axis(batch[own[a]]))
        elif a in numbers.collapsed_slice_dims:
            operand.append((Place((), start),))
        else:
            window.append(draft.factor(size))
            operand.append(axis(window[-1], start))
    outcome = _window_and_batch_dims(len(target), numbers.offset_dims, window, batch)
    vector = draft.factor(asked[-1])
    return draft.rule(
        Kind.LOOKUP, [operand, [*axes(batch), axis(vector)]], [outcome],
        whole=frozenset({vector}), chooses=(1,), same=Same.IDENTITY, flops=Flops(),
        resize=lambda operands, _: {"slice_sizes": whole_windows(sizes, shape, operands[0])},
    )  # fmt: skip


def _scatter(flops: Flops, same: Same, equation: Equation) -> OpRule:
    """Return the rule of a scatter: each update is a window of the outcome at a given index."""
    draft, numbers = Draft(equation), equation.params["dimension_numbers"]
    shape, asked, given = draft.operand_shapes
    factors, batch = draft.factors(shape), draft.factors(asked[:-1])
    for a, b in zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    ):
        batch[b] = factors[a]
    entries = {a: i for i, a in enumerate(numbers.scatter_dims_to_operand_dims)}
    removed = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    widths = iter(given[t] for t in numbers.update_window_dims)
    outcome: list[Dim] = []
    window: list[Factor] = []
    for a, (factor, n) in enumerate(zip(factors, shape, strict=True)):
        start = RuntimeStart(1, entries[a]) if a in entries else 0
        if a in numbers.inserted_window_dims:
            # Entries of the operand, of which the update overwrites those at the index.
            outcome.append((*axis(factor), Place((), start)))
        elif a in removed or (width := next(widths)) == n:
            outcome.append(axis(factor))
            window += [] if a in removed else [factor]
        else:
            window.append(draft.factor(width))
            outcome.append((*axis(factor), *axis(window[-1], start)))
    updates = _window_and_batch_dims(len(given), numbers.update_window_dims, window, batch)
    vector = draft.factor(asked[-1])
    return draft.rule(
        Kind.UPDATE, [axes(factors), [*axes(batch), axis(vector)], updates], [outcome],
        whole=frozenset({vector}), chooses=(1,), flops=flops, same=same,
    )  # fmt: skip


def _window_and_batch_dims(
    rank: int, window_axes: tuple[int, ...], window: list[Factor], batch: list[Factor]
) -> list[Dim]:
    """Return a dimension for each axis: window factors on window axes, batch factors on others."""
    inner, outer = iter(window), iter(batch)
    return [axis(next(inner if a in window_axes else outer)) for a in range(rank)]


def _dynamic_update_slice(equation: Equation) -> OpRule:
    """Return the rule of `dynamic_update_slice`; an axis covered in full has one factor."""
    draft = Draft(equation)
    shape, given, *_ = draft.operand_shapes
    factors = draft.factors(shape)
    own = [f if n == m else draft.factor(m) for f, n, m in zip(factors, shape, given, strict=True)]
    outcome = [
        axis(f) if f == g else (*axis(f), *axis(g, RuntimeStart(2 + a)))
        for a, (f, g) in enumerate(zip(factors, own, strict=True))
    ]
    starts = range(2, 2 + len(shape))
    return draft.rule(
        Kind.UPDATE, [axes(factors), axes(own), *([] for _ in starts)], [outcome],
        chooses=tuple(starts), same=Same.IDENTITY, flops=Flops(),
    )  # fmt: skip


LOOKUPS: dict[str, MakeRule] = {
    "gather": _gather,
    "scatter": functools.partial(_scatter, Flops(), Same.IDENTITY),
    "scatter_add scatter_sub scatter_max scatter_min scatter_mul": (
        functools.partial(_scatter, Flops(1), Same.NO)
    ),
    "dynamic_update_slice": _dynamic_update_slice,
}
"""Rules of lookups and updates."""
