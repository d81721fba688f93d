"""Rules of primitives that keep, drop, repeat or reorder the entries of arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.places import ONE, Dim, Place, RuntimeStart, axis
from nnopt_jax.trace.primitives.primitive_rule import Flat, Flops, Kind, MakeRule, OpRule, Same
from nnopt_jax.typing import Shape


def _movement(
    draft: Draft, operands: Sequence[Sequence[Dim]], outcomes: Sequence[Sequence[Dim]], **facts: Any
) -> OpRule:
    facts = {"same": Same.IDENTITY, "flops": Flops(), **facts}
    return draft.rule(Kind.MOVEMENT, operands, outcomes, **facts)


def _transpose(equation: Equation) -> OpRule:
    draft = Draft(equation)
    dims = axes(draft.factors(draft.operand_shapes[0]))
    return _movement(draft, [dims], [[dims[a] for a in equation.params["permutation"]]])


def _squeeze(equation: Equation) -> OpRule:
    draft = Draft(equation)
    shape = draft.operand_shapes[0]
    removed = {a % len(shape) for a in equation.params["dimensions"]}
    dims = [ONE if a in removed else axis(draft.factor(n)) for a, n in enumerate(shape)]
    return _movement(draft, [dims], [[dim for a, dim in enumerate(dims) if a not in removed]])


def _broadcast(equation: Equation) -> OpRule:
    """Return the rule of a broadcast; new axes of size 1 are not numbered by factors."""
    draft = Draft(equation)
    (shape, *extra), (target,) = draft.operand_shapes, draft.outcome_shapes
    places = equation.params["broadcast_dimensions"]
    outcome = [
        ONE if n == 1 and a not in places else axis(draft.factor(n)) for a, n in enumerate(target)
    ]
    operand = [outcome[to] if target[to] == n else ONE for to, n in zip(places, shape, strict=True)]
    return _movement(
        draft, [operand, *([ONE] * len(other) for other in extra)], [outcome],
        resize=lambda _, outcomes: {"shape": tuple(outcomes[0])},
    )  # fmt: skip


def _reshape(equation: Equation) -> OpRule:
    """Return the rule of a reshape; axes that cannot be factored in common go to `flat`."""
    draft = Draft(equation)
    (shape,), (target,) = draft.operand_shapes, draft.outcome_shapes
    order = equation.params.get("dimensions") or range(len(shape))
    shape = tuple(shape[a] for a in order)
    before: list[Dim] = [ONE] * len(shape)
    after: list[Dim] = [ONE] * len(target)
    flat, whole = [], set[int]()
    for ours, theirs in blocks(shape, target):
        sides = (shape, before, ours), (target, after, theirs)
        # Both shapes are cut at all cumulative products of sizes; each interval is a factor.
        marks = sorted({m for side, _, own in sides for m in _bounds(side, own)}, reverse=True)
        if marks[-1] == 0 or any(a % b for a, b in itertools.pairwise(marks)):
            flat.append(Flat(tuple(order[a] for a in ours), tuple(theirs)))
            for side, dims, own in sides:
                for a in own:
                    dims[a] = axis(draft.factor(side[a]))
                    whole.update(dims[a][0].names)
            continue
        factors = {low: draft.factor(high // low) for high, low in itertools.pairwise(marks)}
        for side, dims, own in sides:
            for a, (high, low) in zip(own, itertools.pairwise(_bounds(side, own)), strict=True):
                dims[a] = draft.mixed(*(f for mark, f in factors.items() if high > mark >= low))
    others = _singles(target)
    for bound, ours in _singles(shape).items():  # with a common factor, they keep their roles
        for a, b in zip(ours, others.get(bound, ()), strict=False):
            before[a] = after[b] = axis(draft.factor(1))
    back = dict(zip(order, before, strict=True))
    return _movement(
        draft, [[back[a] for a in range(len(shape))]], [after],
        flat=tuple(flat), whole=frozenset(whole),
        resize=lambda _, outcomes: {"new_sizes": tuple(outcomes[0])},
    )  # fmt: skip


def blocks(shape: Shape, target: Shape) -> list[tuple[list[int], list[int]]]:
    """Return the finest pairs of axes of two shapes that hold the same entries.

    Axes of size 1 are left out.

    Example:
        >>> from nnopt_jax.trace.primitives.movements import blocks
        >>> blocks((8, 6, 5), (8, 30)), blocks((12, 1, 5), (3, 4, 5))
        ([([0], [0]), ([1, 2], [1])], [([0], [0, 1]), ([2], [2])])
    """
    left, right = ([a for a, n in enumerate(side) if n != 1] for side in (shape, target))
    if 0 in shape:
        return [(left, right)]
    first, second = _bounds(shape), _bounds(target)
    return [
        ([a for a in left if high >= first[a] > low], [a for a in right if high >= second[a] > low])
        for high, low in itertools.pairwise(sorted({*first} & {*second}, reverse=True))
    ]


def _bounds(shape: Shape, own: Sequence[int] | None = None) -> list[int]:
    """Return the product of the axis sizes from each axis to the last, and a final 1."""
    sizes = shape if own is None else [shape[a] for a in own]
    return [math.prod(sizes[a:]) for a in range(len(sizes) + 1)]


def _singles(shape: Shape) -> dict[int, list[int]]:
    """Group the axes of size 1 by the product of the sizes after them, the last axes first."""
    found: dict[int, list[int]] = {}
    bounds = _bounds(shape)
    for a in reversed(range(len(shape) if 0 not in shape else 0)):
        if shape[a] == 1:
            found.setdefault(bounds[a], []).append(a)
    return found


def _slice(equation: Equation) -> OpRule:
    draft, k = Draft(equation), equation.params
    (shape,), (target,) = draft.operand_shapes, draft.outcome_shapes
    factors, starts = draft.factors(target), k["start_indices"]
    strides = k["strides"] or (1,) * len(shape)

    def resize(operands: Sequence[Shape], _: Sequence[Shape]) -> dict[str, Any]:
        # A slice of the whole axis still covers all of it; other bounds stay.
        kept = zip(starts, k["limit_indices"], shape, operands[0], strict=True)
        limits = [new if (low, high) == (0, old) else high for low, high, old, new in kept]
        return {"limit_indices": tuple(limits)}

    operand = [axis(f, s, t) for f, s, t in zip(factors, starts, strides, strict=True)]
    return _movement(draft, [operand], [axes(factors)], resize=resize)


def _split(equation: Equation) -> OpRule:
    draft, cut = Draft(equation), equation.params["axis"]
    operand, parts = _concatenation_dims(draft, cut, draft.operand_shapes[0], draft.outcome_shapes)
    return _movement(
        draft, [operand], parts,
        resize=lambda _, outcomes: {"sizes": tuple(shape[cut] for shape in outcomes)},
    )  # fmt: skip


def _concatenate(equation: Equation) -> OpRule:
    draft, at = Draft(equation), equation.params["dimension"]
    outcome, parts = _concatenation_dims(draft, at, draft.outcome_shapes[0], draft.operand_shapes)
    return _movement(draft, parts, [outcome])


def _stack(equation: Equation) -> OpRule:
    draft, at = Draft(equation), equation.params["axis"]
    dims, places = _stack_dims(draft, draft.operand_shapes[0], len(draft.operand_shapes))
    return _movement(draft, [dims] * len(places), [[*dims[:at], places, *dims[at:]]])


def _unstack(equation: Equation) -> OpRule:
    draft, at = Draft(equation), equation.params["axis"]
    dims, places = _stack_dims(draft, draft.outcome_shapes[0], len(draft.outcome_shapes))
    return _movement(draft, [[*dims[:at], places, *dims[at:]]], [dims] * len(places))


def _stack_dims(draft: Draft, shape: Shape, count: int) -> tuple[list[Dim], Dim]:
    """Return the dimensions of equal arrays, and the dimension that they are stacked on."""
    return axes(draft.factors(shape)), tuple(Place(start=number) for number in range(count))


def _concatenation_dims(
    draft: Draft, at: int, shape: Shape, parts: Sequence[Shape]
) -> tuple[list[Dim], list[list[Dim]]]:
    """Return the dimensions of an array, and of the arrays that it is concatenated from."""
    # The other axes are common to all arrays.
    others = {a: axis(draft.factor(n)) for a, n in enumerate(shape) if a != at}
    places, found, start = (), [], 0
    for part in parts:
        factor = draft.factor(part[at])
        places += axis(factor, start)
        start += part[at]
        found.append([others.get(a, axis(factor)) for a in range(len(shape))])
    return [others.get(a, places) for a in range(len(shape))], found


def _pad(equation: Equation) -> OpRule:
    """Return the rule of a pad: negative padding removes entries, interior padding spaces them."""
    draft = Draft(equation)
    operand, outcome = [], []
    settings = zip(
        draft.operand_shapes[0], draft.outcome_shapes[0], equation.params["padding_config"],
        strict=True,
    )  # fmt: skip
    for size, target, (low, _, interior) in settings:
        # With negative padding, entries at the ends of the operand lie outside of the outcome.
        step = interior + 1
        first = -(min(low, 0) // step)
        last = min(size - 1, (target - 1 - low) // step)
        factor = draft.factor(max(last - first + 1, 0))
        operand.append(axis(factor, first))
        outcome.append(axis(factor, low + first * step, step))
    return _movement(draft, [operand, []], [outcome], fills=1)


def _reverse(equation: Equation) -> OpRule:
    draft = Draft(equation)
    shape = draft.operand_shapes[0]
    factors = draft.factors(shape)
    outcome = [
        # A reversed axis starts at its last entry.
        axis(f, n - 1, -1) if a in equation.params["dimensions"] else axis(f)
        for a, (f, n) in enumerate(zip(factors, shape, strict=True))
    ]
    return _movement(draft, [axes(factors)], [outcome])


def _tile(equation: Equation) -> OpRule:
    draft = Draft(equation)
    factors = draft.factors(draft.operand_shapes[0])
    outcome = [
        # Repetition adds a major factor that the operand does not have.
        axis(f) if times == 1 else draft.mixed(draft.factor(times), f)
        for f, times in zip(factors, equation.params["reps"], strict=True)
    ]

    def resize(operands: Sequence[Shape], outcomes: Sequence[Shape]) -> dict[str, Any]:
        pairs = zip(outcomes[0], operands[0], strict=True)
        return {"reps": tuple(after // max(before, 1) for after, before in pairs)}

    return _movement(draft, [axes(factors)], [outcome], resize=resize)


def _dynamic_slice(equation: Equation) -> OpRule:
    draft = Draft(equation)
    (shape, *_), (target,) = draft.operand_shapes, draft.outcome_shapes
    factors = draft.factors(target)
    operand = [
        # A window as wide as the axis can only start at 0.
        axis(f, 0 if n == m else RuntimeStart(1 + a))
        for a, (f, n, m) in enumerate(zip(factors, shape, target, strict=True))
    ]
    return _movement(
        draft, [operand, *([] for _ in shape)], [axes(factors)],
        chooses=tuple(range(1, len(shape) + 1)),
        resize=lambda operands, _: {"slice_sizes": whole_windows(target, shape, operands[0])},
    )  # fmt: skip


def whole_windows(window: Sequence[int], before: Shape, after: Shape) -> Shape:
    """Return the window sizes for another operand; an axis that was covered stays covered."""
    each = zip(window, before, after, strict=True)
    return tuple(new if size == old else size for size, old, new in each)


MOVEMENTS: dict[str, MakeRule] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "pad": _pad,
    "rev": _reverse,
    "tile": _tile,
    "dynamic_slice": _dynamic_slice,
}
"""Rules of movements."""
