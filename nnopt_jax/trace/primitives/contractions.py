"""Rules of contractions: matrix products, ragged products and convolutions."""

from __future__ import annotations

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.places import Dim, Place, RuntimeStart
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, OpRule

_PRODUCT_AND_SUM = Flops(2)


def _dot(equation: Equation) -> OpRule:
    draft = Draft(equation)
    operands, outcome = _dot_dims(draft, equation.params["dimension_numbers"])
    return draft.rule(
        Kind.CONTRACTION, operands, [outcome], absorbs=(0, 1), neutral=0.0, flops=_PRODUCT_AND_SUM
    )


def _dot_dims(draft: Draft, numbers: tuple, skipped: tuple[int, ...] = ()) -> tuple:
    """Return the dimensions of both operands, and of the product in the order batch, left, right.

    Args:
        draft: the draft that factors are added to.
        numbers: the contracted axes of both operands, and the batch axes of both.
        skipped: axes of the right operand that take no part in products; they get no factor.
    """
    (left, right), (left_batch, right_batch) = numbers
    shape, other = draft.operand_shapes[:2]
    ours = draft.factors(shape)
    # Contracted and batch axes of the right operand run along with those of the left one.
    shared = {b: ours[a] for a, b in zip((*left, *left_batch), (*right, *right_batch), strict=True)}
    theirs = {
        a: shared[a] if a in shared else draft.factor(n)
        for a, n in enumerate(other)
        if a not in skipped
    }
    outcome = [
        *(ours[a] for a in left_batch),
        *(f for a, f in enumerate(ours) if a not in (*left, *left_batch)),
        *(f for a, f in theirs.items() if a not in (*right, *right_batch)),
    ]
    second = [axes([theirs[a]])[0] if a in theirs else () for a in range(len(other))]
    return (axes(ours), second), axes(outcome)


def _ragged_dot(equation: Equation) -> OpRule:
    """Return the rule of `ragged_dot`: a product by groups of rows, with sizes in an operand.

    - Groups of free rows: each row is multiplied with the matrix of its group.
    - Groups of contracted rows: there is a product for each group.
    - Groups of batches: the sizes change nothing.
    """
    draft = Draft(equation)
    numbers = equation.params["ragged_dot_dimension_numbers"]
    dot, (ragged,) = numbers.dot_dimension_numbers, numbers.lhs_ragged_dimensions
    group: Dim = (Place((), RuntimeStart(2)),)
    operands, outcome = _dot_dims(draft, dot, tuple(numbers.rhs_group_dimensions))
    second = [dim or group for dim in operands[1]]
    if ragged in dot[0][0]:
        outcome = [group, *outcome]
    sizes = [draft.unshared(i) for i in range(2, len(draft.operand_shapes))]
    # Rows of groups follow from cumulative sums of the sizes, so their order matters.
    whole = frozenset(f for dims in sizes for dim in dims for f in dim[0].names)
    return draft.rule(
        Kind.CONTRACTION, [operands[0], second, *sizes], [outcome], absorbs=(0, 1), neutral=0.0,
        flops=_PRODUCT_AND_SUM, whole=whole, chooses=tuple(range(2, len(draft.operand_shapes))),
    )  # fmt: skip


def _convolution(equation: Equation) -> OpRule:
    """Return the rule of a convolution, with groups of features or of batches.

    The image's index is `stride * position + dilation * tap - padding`.

    Groups of features cut the features of the image and of the outcome; groups of batches cut the
    batch of the image and the features of the outcome. A single group has no factor.
    """
    draft, k = Draft(equation), equation.params
    numbers = k["dimension_numbers"]
    (batch, features, *places) = numbers.lhs_spec
    (outward, inward, *taps) = numbers.rhs_spec
    (out_batch, out_features, *positions) = numbers.out_spec
    (shape, kernel), (target,) = draft.operand_shapes, draft.outcome_shapes
    feature_groups, batch_groups = k["feature_group_count"], k["batch_group_count"]
    row, channel = draft.factor(target[out_batch]), draft.factor(kernel[inward])
    groups = [draft.factor(n) for n in (feature_groups, batch_groups) if n > 1]
    output = draft.factor(kernel[outward] // (feature_groups * batch_groups))
    x: list[Dim] = [()] * len(shape)
    weight, out = list(x), list(x)
    x[batch] = draft.mixed(*(groups if batch_groups > 1 else ()), row)
    x[features] = draft.mixed(*(groups if feature_groups > 1 else ()), channel)
    weight[inward], weight[outward] = draft.mixed(channel), draft.mixed(*groups, output)
    out[out_batch], out[out_features] = draft.mixed(row), draft.mixed(*groups, output)
    # A convolution needs the axes of its window whole: entries interact with their neighbors.
    windowed = set[int]()
    for i, (place, tap, position) in enumerate(zip(places, taps, positions, strict=True)):
        at, offset = draft.factor(target[position]), draft.factor(kernel[tap])
        windowed |= {at, offset}
        strides = (at, k["window_strides"][i]), (offset, k["rhs_dilation"][i])
        x[place] = (Place(strides, -k["padding"][i][0], k["lhs_dilation"][i]),)
        weight[tap], out[position] = draft.mixed(offset), draft.mixed(at)
    return draft.rule(
        Kind.CONTRACTION, [x, weight], [out], absorbs=(0, 1), neutral=0.0,
        whole=frozenset(windowed), flops=_PRODUCT_AND_SUM,
        resize=lambda operands, outcomes: {
            "feature_group_count": operands[0][features] // max(operands[1][inward], 1),
            "batch_group_count": operands[0][batch] // max(outcomes[0][out_batch], 1),
        },
    )  # fmt: skip


CONTRACTIONS: dict[str, MakeRule] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
"""The rules of contractions, by names of primitives."""
