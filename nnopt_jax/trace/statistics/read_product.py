"""From the rule of a step to what a leaf is multiplied with there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from jax import lax

from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.primitives import Dim, Factor, Kind, Rule, Start, factors_of, is_full
from nnopt_jax.trace.statistics.arrangement import Arrangement, AxesOfLeaf
from nnopt_jax.trace.statistics.leaf_movement import CutAcrossError, split_axis
from nnopt_jax.trace.statistics.leaf_part import LeafPart, PartAxis
from nnopt_jax.trace.statistics.product_use import (
    Lookup,
    Patches,
    ProductUse,
    RowGroups,
    in_leaf_order,
)
from nnopt_jax.typing import Shape

_UNMEASURED = {
    Kind.OPAQUE: "no rule follows it through {}",
    Kind.REDUCTION: "{} combines its own entries",
    Kind.ORDERED: "{} combines its own entries",
    Kind.UPDATE: "{} changes some of its entries",
}

_OPERANDS = "leaf", "inputs"
"""What a product multiplies."""


def read_product(equation: Equation, rule: Rule, at: int, part: LeafPart) -> ProductUse | str:
    """Return what can be measured where a step uses a leaf, or why nothing can.

    Args:
        equation: the step.
        rule: its rule.
        at: which of its operands holds the leaf.
        part: the leaf as it lies there.
    """
    name = equation.primitive.name
    if rule.kind is Kind.LOOKUP:
        return _lookup(equation, rule, at, part)
    if rule.kind is not Kind.CONTRACTION:
        return _UNMEASURED.get(rule.kind, "{} sums over none of it").format(name)
    if _has_window(equation) and at == 0:
        return "it is the image of a convolution"
    picked = [
        (0, axis)
        for dim, axis in zip(rule.operands[at], part.axes, strict=True)
        if isinstance(dim[0].start, Start)
    ]
    if rule.chooses and (at != 1 or len(picked) != 1 or not _has_groups_of_rows(rule)):
        return f"{name} has no rows for each of its matrices"
    try:
        ours = _by_factor(rule, at, part)
    except CutAcrossError:
        return "its groups lie across axes"
    return _Product(equation, rule, at, ours, picked).read()


def _has_window(equation: Equation) -> bool:
    return equation.primitive is primitives.conv_general_dilated_p


def _has_groups_of_rows(rule: Rule) -> bool:
    """Whether rows of the first operand alone are in groups, of the sizes in the third."""
    rows = factors_of(rule.operands[0]) - rule.reduced
    sizes = rule.operand_shapes[len(rule.data) :]
    return len(rows) == len(sizes) == len(sizes[0]) == 1 and rows.isdisjoint(
        factors_of(rule.operands[1])
    )


def _by_factor(rule: Rule, at: int, part: LeafPart) -> dict[Factor, PartAxis]:
    """Where a leaf lies along each factor of an operand."""
    found: dict[Factor, PartAxis] = {}
    for dim, size, axis in zip(rule.operands[at], rule.operand_shapes[at], part.axes, strict=True):
        if dim[0].factors and is_full(dim, size, rule.sizes):
            strides = [stride for _, stride in dim[0].factors]
            found |= zip(dim[0].names, split_axis(axis, strides), strict=True)
    return found


def _by_axis(rule: Rule, dims: Sequence[Dim], shape: Shape) -> tuple[Shape, dict[Factor, int]]:
    """The shape of an array that has an axis for each factor, and which it is.

    Where windows go over an axis it stays as it is.
    """
    sizes: list[int] = []
    found: dict[Factor, int] = {}
    for dim, size in zip(dims, shape, strict=True):
        names = dim[0].names
        if is_full(dim, size, rule.sizes) and (len(names) == 1 or rule.whole.isdisjoint(names)):
            found |= {factor: len(sizes) + number for number, factor in enumerate(names)}
            sizes += [rule.sizes[factor] for factor in names]
        else:
            sizes.append(size)
    return tuple(sizes), found


@dataclasses.dataclass(frozen=True)
class _Product:
    """A step that multiplies a leaf.

    Args:
        equation: the step.
        rule: its rule.
        at: which of its operands holds the leaf.
        ours: where the leaf lies along each factor of the operand.
        picked: where it lies along the axis that has an entry for each group of rows.
    """

    equation: Equation
    rule: Rule
    at: int
    ours: Mapping[Factor, PartAxis]
    picked: AxesOfLeaf

    def read(self) -> ProductUse | str:
        """Return what can be measured, or why nothing can."""
        ours, rule = self.ours, self.rule
        shape, theirs = _by_axis(rule, rule.operands[1 - self.at], rule.operand_shapes[1 - self.at])
        result, kept = _by_axis(rule, rule.outcomes[0], rule.outcome_shapes[0])
        own = [f for f in ours if f in rule.reduced]
        free = [f for f in ours if f not in own]
        taps = [f for f in own if f not in theirs]
        everything = factors_of(rule.operands[self.at]) == ours.keys() and kept.keys() >= {*free}
        if len(rule.data) != len(_OPERANDS) or not everything or (taps and not self._has_window):
            return f"{self.equation.primitive.name} is not a plain product"
        if not own:
            return "an outer product sums over none of it"
        if any(axis.repeats for _, axis in (*self._lie(own), *self.picked)):
            return "it is repeated along what is summed over"
        shared = [f for f in free if f in theirs]
        groups = [f for f in shared if self._shares_axis(f)]
        if any(ours[f].repeats for f in groups):
            return "its groups lie across axes"
        batch = [f for f in shared if f not in groups]
        outs = self._lie((f for f in free if f not in batch), kept)
        channels = self._lie((f for f in own if f in theirs), theirs)
        alone = all(ours[f].count == rule.sizes[f] for f in own)
        return ProductUse(
            tuple(i for i in range(len(rule.operands)) if i != self.at),
            in_leaf_order([*self._lie(ours), *self.picked]),
            batch=in_leaf_order([*self._lie(batch), *self.picked]),
            groups=in_leaf_order(self._lie(groups)),
            channels=in_leaf_order(channels),
            taps=in_leaf_order(self._lie(taps)),
            outs=in_leaf_order(outs),
            arranged=Arrangement.of(shape, self._lie(shared, theirs), channels),
            patch=self._patches(shared, own) if self._has_window else None,
            row_groups=self._row_groups() if self.picked else None,
            placed=Arrangement.of(result, self._lie(batch, kept), outs) if alone else None,
            no_outputs="" if alone else "its products are added to those of what lies beside it",
        )

    @property
    def _has_window(self) -> bool:
        return _has_window(self.equation)

    def _lie(
        self, factors: Iterable[Factor], there: Mapping[Factor, int] | None = None
    ) -> AxesOfLeaf:
        """Where the leaf lies along some factors, and the axes that these are in an array."""
        return [(0 if there is None else there[f], self.ours[f]) for f in factors]

    def _shares_axis(self, factor: Factor) -> bool:
        """Whether the leaf has another factor along the same axis: groups and what they hold."""
        own = (factors_of([dim]) for dim in self.rule.operands[self.at])
        return any(factor in factors and len(factors) > 1 for factors in own)

    def _patches(self, shared: Sequence[Factor], own: Sequence[Factor]) -> Patches:
        """How the image is cut: its batch, channels and window, and then the positions."""
        k, (image, kernel) = self.equation.params, self.rule.operands
        numbers, sizes = k["dimension_numbers"], self.rule.operand_shapes[1]
        batch, features, *_ = numbers.lhs_spec
        _, _, *window = numbers.rhs_spec
        _, _, *positions = numbers.out_spec
        first = [batch, features]
        shape, there = _by_axis(
            self.rule, [image[d] for d in first], [self.rule.operand_shapes[0][d] for d in first]
        )
        taps = [sizes[d] for d in window]
        there |= {kernel[d][0].names[0]: len(shape) + i for i, d in enumerate(window)}
        shape = (*shape, *taps, *(self.rule.outcome_shapes[0][d] for d in positions))
        settings = (
            k["window_strides"], k["padding"], k["lhs_dilation"], k["rhs_dilation"]
        )  # fmt: skip
        arranged = Arrangement.of(shape, self._lie(shared, there), self._lie(own, there))
        return Patches(numbers.lhs_spec, tuple(taps), settings, arranged)

    def _row_groups(self) -> RowGroups:
        """Which rows go with each entry of the axis that is picked from."""
        (rows,) = factors_of(self.rule.operands[0]) - self.rule.reduced
        count = self.rule.sizes[rows]
        arranged = Arrangement.of((*self.rule.operand_shapes[-1], count), self.picked, ())
        return RowGroups(count, arranged)


def _lookup(equation: Equation, rule: Rule, at: int, part: LeafPart) -> ProductUse | str:
    """Read a lookup of whole rows."""
    k, shape = equation.params, rule.operand_shapes[0]
    if at != 0:
        return "it is the index of a lookup"
    starts = [dim[0].start for dim in rule.operands[0]]
    chosen = {d: start.entry for d, start in enumerate(starts) if isinstance(start, Start)}
    whole = all(k["slice_sizes"][d] == (1 if d in chosen else n) for d, n in enumerate(shape))
    if len(chosen) != 1 or not whole:
        return "it is looked up along several axes"
    ((axis, entry),) = chosen.items()
    if part.axes[axis].repeats or part.axes[axis].is_constant:
        return "it is repeated along what is looked up"
    rows = [(1, part.axes[axis])]
    arranged = Arrangement.of((1, shape[axis]), (), rows)
    lookup = Lookup(shape[axis], entry, k["mode"] == lax.GatherScatterMode.CLIP, arranged)
    factors = in_leaf_order([(0, axis) for axis in part.axes])
    return ProductUse((1,), factors, channels=in_leaf_order(rows), lookup=lookup)
