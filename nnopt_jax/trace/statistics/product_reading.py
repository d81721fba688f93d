"""The product or lookup in which a step uses a leaf, derived from the rule of the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax import lax

from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.primitives import Dim, Factor, Kind, OpRule, RuntimeStart, factors_of
from nnopt_jax.trace.statistics.leaf_movement import CutAcrossError, split_axis
from nnopt_jax.trace.statistics.leaf_part import Arrangement, LeafPart, PartAxis, in_leaf_order
from nnopt_jax.trace.statistics.product_use import Lookup, Patches, ProductUse, RowGroups
from nnopt_jax.typing import Shape

_UNMEASURED = {
    Kind.OPAQUE: "no rule follows it through {}",
    Kind.REDUCTION: "{} combines its own entries",
    Kind.ORDERED: "{} combines its own entries",
    Kind.UPDATE: "{} changes some of its entries",
}


def read_product(equation: Equation, rule: OpRule, at: int, part: LeafPart) -> ProductUse | str:
    """Return the product in which a step uses a leaf, or why it cannot be measured.

    Args:
        equation: the step.
        rule: its rule.
        at: the number of the operand that holds the leaf.
        part: the part of the leaf that it holds.
    """
    name = equation.primitive.name
    if rule.kind is Kind.LOOKUP:
        return _lookup(equation, rule, at, part)
    if rule.kind is not Kind.CONTRACTION:
        return _UNMEASURED.get(rule.kind, "{} does not sum over it").format(name)
    if _has_window(equation) and at == 0:
        return "it is the image of a convolution"
    # The axis of the matrices of a ragged product, one for each group of rows.
    picked = [
        axis
        for dim, axis in zip(rule.operands[at], part.axes, strict=True)
        if isinstance(dim[0].start, RuntimeStart)
    ]
    if rule.chooses and (at != 1 or len(picked) != 1 or not _has_groups_of_rows(rule)):
        return f"{name} has no rows for each of its matrices"
    try:
        ours = _by_factor(rule, at, part)
    except CutAcrossError:
        return "its groups lie across axes"
    return _LeafProduct(equation, rule, at, ours, picked).read()


def _has_window(equation: Equation) -> bool:
    return equation.primitive is primitives.conv_general_dilated_p


def _has_groups_of_rows(rule: OpRule) -> bool:
    """Return whether a ragged product groups only rows of its first operand."""
    rows = factors_of(rule.operands[0]) - rule.reduced
    sizes = rule.operand_shapes[len(rule.data) :]
    return len(rows) == len(sizes) == len(sizes[0]) == 1 and rows.isdisjoint(
        factors_of(rule.operands[1])
    )


def _by_factor(rule: OpRule, at: int, part: LeafPart) -> dict[Factor, PartAxis]:
    """Return the positions of a leaf along each factor of an operand."""
    found: dict[Factor, PartAxis] = {}
    for dim, size, axis in zip(rule.operands[at], rule.operand_shapes[at], part.axes, strict=True):
        if dim[0].factors and rule.is_whole(dim, size):
            strides = [stride for _, stride in dim[0].factors]
            found |= zip(dim[0].names, split_axis(axis, strides), strict=True)
    return found


def _by_axis(
    rule: OpRule, dims: Sequence[Dim], shape: Sequence[int]
) -> tuple[Shape, dict[Factor, int]]:
    """Return an array's shape with one axis for each factor, and the axis of each factor.

    An axis with windows is not split.
    """
    sizes: list[int] = []
    found: dict[Factor, int] = {}
    for dim, size in zip(dims, shape, strict=True):
        names = dim[0].names
        # A padded or strided axis does not divide into factors.
        if rule.is_whole(dim, size) and (len(names) == 1 or rule.whole.isdisjoint(names)):
            found |= {factor: len(sizes) + number for number, factor in enumerate(names)}
            sizes += [rule.sizes[factor] for factor in names]
        else:
            sizes.append(size)
    return tuple(sizes), found


@dataclasses.dataclass(frozen=True)
class _LeafProduct:
    """A product of a leaf with another operand, to be measured.

    Args:
        equation: the step.
        rule: its rule.
        at: the number of the operand that holds the leaf.
        ours: the positions of the leaf on each factor of the operand.
        picked: its positions on the axis that has an entry for each group of rows.
    """

    equation: Equation
    rule: OpRule
    at: int
    ours: Mapping[Factor, PartAxis]
    picked: Sequence[PartAxis]

    def read(self) -> ProductUse | str:
        """Return the product to measure, or the reason why it cannot be measured."""
        ours, rule = self.ours, self.rule
        shape, theirs = _by_axis(rule, rule.operands[1 - self.at], rule.operand_shapes[1 - self.at])
        result, kept = _by_axis(rule, rule.outcomes[0], rule.outcome_shapes[0])
        own = [f for f in ours if f in rule.reduced]
        free = [f for f in ours if f not in own]
        taps = [f for f in own if f not in theirs]
        is_windowed = _has_window(self.equation)
        shared = [f for f in free if f in theirs]
        # Unlike batch axes, groups of a convolution share an axis with its features.
        mixed = [dim[0].names for dim in rule.operands[self.at] if len(dim[0].names) > 1]
        groups = [f for f in shared if any(f in names for names in mixed)]
        is_plain = kept.keys() >= {*free} and (is_windowed or not taps)
        if reason := self._why_not(own, groups, is_plain):
            return reason
        batch = [f for f in shared if f not in groups]
        outs = self._axes((f for f in free if f not in batch), kept)
        channels = self._axes((f for f in own if f in theirs), theirs)
        # Where the leaf covers a contracted axis in part, other weights add to its outputs.
        alone = all(ours[f].count == rule.sizes[f] for f in own)
        return ProductUse(
            tuple(i for i in range(len(rule.operands)) if i != self.at),
            in_leaf_order((*ours.values(), *self.picked)),
            batch=in_leaf_order((*(ours[f] for f in batch), *self.picked)),
            groups=in_leaf_order(ours[f] for f in groups),
            channels=in_leaf_order(axis for _, axis in channels),
            taps=in_leaf_order(ours[f] for f in taps),
            outs=in_leaf_order(axis for _, axis in outs),
            arrangement=Arrangement.of(shape, self._axes(shared, theirs), channels),
            patch=self._patches(shared, own) if is_windowed else None,
            row_groups=self._row_groups() if self.picked else None,
            output_arrangement=Arrangement.of(result, self._axes(batch, kept), outs)
            if alone
            else None,
            no_outputs="" if alone else "its products are added to those of other entries",
        )

    def _why_not(self, own: Sequence[Factor], groups: Sequence[Factor], is_plain: bool) -> str:
        """Return why the product cannot be measured; empty if it can."""
        every = factors_of(self.rule.operands[self.at])
        if len(self.rule.data) != 2 or every != self.ours.keys() or not is_plain:
            return f"{self.equation.primitive.name} is not a plain product"
        if not own:
            return "an outer product does not sum over it"
        if any(axis.repeats for axis in (*(self.ours[f] for f in own), *self.picked)):
            return "it is repeated along contracted axes"
        return "its groups lie across axes" if any(self.ours[f].repeats for f in groups) else ""

    def _axes(self, factors: Iterable[Factor], there: Mapping[Factor, int]) -> list[Any]:
        """Return for each factor its axis in an array, and the positions of the leaf on it."""
        return [(there[f], self.ours[f]) for f in factors]

    def _patches(self, shared: Sequence[Factor], own: Sequence[Factor]) -> Patches:
        """Return the extraction of patches, with the axes batch, channels, window and positions."""
        k, rule = self.equation.params, self.rule
        (image, kernel), (x_shape, sizes) = rule.operands, rule.operand_shapes
        numbers = k["dimension_numbers"]
        order, (_, _, *window), (_, _, *positions) = numbers
        taps = tuple(sizes[d] for d in window)
        shape, there = _by_axis(
            rule, [image[d] for d in order[:2]], [x_shape[d] for d in order[:2]]
        )
        # In extracted patches, axes of the window follow those of batch and channels.
        there |= {kernel[d][0].names[0]: len(shape) + i for i, d in enumerate(window)}
        shape = (*shape, *taps, *(rule.outcome_shapes[0][d] for d in positions))
        arrangement = Arrangement.of(shape, self._axes(shared, there), self._axes(own, there))
        settings = "window_strides", "padding", "lhs_dilation", "rhs_dilation"
        return Patches(order, taps, tuple(k[name] for name in settings), arrangement)

    def _row_groups(self) -> RowGroups:
        """Return the groups of rows, one for each matrix of a ragged product."""
        (rows,) = factors_of(self.rule.operands[0]) - self.rule.reduced
        count = self.rule.sizes[rows]
        groups = [(0, axis) for axis in self.picked]
        arrangement = Arrangement.of((*self.rule.operand_shapes[-1], count), groups, ())
        return RowGroups(count, arrangement)


def _lookup(equation: Equation, rule: OpRule, at: int, part: LeafPart) -> ProductUse | str:
    """Return the lookup of whole rows of a leaf, or the reason why it cannot be measured."""
    k, shape = equation.params, rule.operand_shapes[0]
    if at != 0:
        return "it is the index of a lookup"
    starts = [dim[0].start for dim in rule.operands[0]]
    chosen = {d: start.entry for d, start in enumerate(starts) if isinstance(start, RuntimeStart)}
    # Each index must select one row, with all of its entries.
    whole = all(k["slice_sizes"][d] == (1 if d in chosen else n) for d, n in enumerate(shape))
    if len(chosen) != 1 or not whole:
        return "it is looked up along several axes"
    ((axis, entry),) = chosen.items()
    rows = part.axes[axis]
    if rows.repeats or rows.is_constant:
        return "it is repeated along axes that are looked up"
    arrangement = Arrangement.of((1, shape[axis]), (), [(1, rows)])
    lookup = Lookup(shape[axis], entry, k["mode"] == lax.GatherScatterMode.CLIP, arrangement)
    channels = in_leaf_order([rows])
    return ProductUse((1,), in_leaf_order(part.axes), channels=channels, lookup=lookup)
