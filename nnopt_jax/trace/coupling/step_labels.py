"""The coupling of one step: axes that share a factor of its rule share their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nnopt_jax.trace.abstract_walk import Site
from nnopt_jax.trace.coupling.labels import KEPT, Labels, LabelSets
from nnopt_jax.trace.coupling.remains import (
    Reason,
    Remains,
    Residue,
    Value,
    common_content,
    constant_of,
    content_along,
    same_axes,
)
from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.primitives import Dim, Factor, Kind, OpRule, Place, RuntimeStart, factors_of

_WHOLE = {
    Kind.ELEMENTWISE: "no rule for {}",
    Kind.MOVEMENT: "{} needs it whole",
    Kind.CONTRACTION: "a convolution moves along it",
    Kind.REDUCTION: "{} counts along it",
    Kind.ORDERED: "{} along it",
    Kind.LOOKUP: "{} combines entries along it",
    Kind.UPDATE: "{} combines entries along it",
    Kind.OPAQUE: "no rule for {}",
}
"""The reason why a step needs an axis in full, by the kind of its primitive."""
_LOOKED = "{} combines entries along it"
_WINDOW = "a window moves along it"


class StepLabels:
    """The transfer of labels from a step's operands to its outcomes, by factors of its rule.

    Args:
        sets: the labels.
        equation: the step.
        rule: the rule of its primitive.
        values: its operands.
        site: its site in the walk.
    """

    def __init__(
        self, sets: LabelSets, equation: Equation, rule: OpRule, values: Sequence[Value], site: Site
    ) -> None:
        self.sets, self.equation, self.rule = sets, equation, rule
        self.values, self.site = values, site
        self.labels: dict[Factor, Labels] = {}
        self.remains: dict[Factor, dict[int, Remains]] = {}
        self.counted = False

    def outcomes(self) -> list[Value]:
        """Couple the operands, and return the abstract values of the outcomes."""
        if self.rule.kind is Kind.MADE:
            return self._generated()
        # Axes of uneven reshapes are coupled in flat order instead, by `_relate_flat`.
        flat = {a for axes in self.rule.flat for a in axes.operand}
        for number, (value, dims) in enumerate(zip(self.values, self.rule.operands, strict=True)):
            for axis, dim in enumerate(dims):
                for place in dim if axis not in flat else ():
                    self._enter(number, value, axis, place)
        self._relate_flat()
        self._reduce()
        self._spread_apart()
        return [self._outcome(number) for number in range(len(self.rule.outcomes))]

    def fix(self, labels: Labels, text: str) -> None:
        """Mark elements as never removed, because the step needs all of them."""
        # Most labels are fixed already, and reasons are slow to make.
        if not self.sets.is_fixed(labels).all():
            self.sets.fix(labels, self._reason(text))

    def _reason(self, text: str) -> Reason:
        return Reason(text.format(self.equation.primitive.name), self.site.around)

    def _generated(self) -> list[Value]:
        """Return the values of generated arrays (`iota`, random bits), made in full, then cut."""
        for labels in (x for value in self.values for x in value.axes):
            self.fix(labels, "{} needs it whole")
        return [Value.ordered(self.sets, shape) for shape in self.rule.outcome_shapes]

    def _enter(self, number: int, value: Value, axis: int, place: Place) -> None:
        """Assign the labels of an operand's axis to the factors that index the axis."""
        labels, sizes = value.axes[axis], self.rule.sizes
        if isinstance(place.start, RuntimeStart):
            self.fix(labels, _LOOKED)
            found = self._fix_factors(place, "looked up")
        elif not place.factors:
            self.fix(labels, "one of its elements alone is taken")
            found = {}
        elif self.rule.whole and not self.rule.whole.isdisjoint(place.names):
            alone = len(place.factors) == 1 and sizes[place.names[0]] == len(labels)
            windows = self.rule.kind is Kind.ORDERED and not alone
            self.fix(labels, _WINDOW if windows else _WHOLE[self.rule.kind])
            text = "a position of an image"
            found = {place.names[0]: labels} if alone else self._fix_factors(place, text)
        else:
            found = dict(self._split(labels, place))
        for factor, own in found.items():
            self._assign(factor, own)
            self.remains.setdefault(factor, {})[number] = value.remains_at(axis)

    def _assign(self, factor: Factor, labels: Labels) -> None:
        if factor in self.labels:
            self.sets.join(self.labels[factor], labels)
        else:
            self.labels[factor] = labels

    def _fix_factors(self, place: Place, text: str) -> dict[Factor, Labels]:
        sizes = self.rule.sizes
        return {f: self.sets.fixed_labels(sizes[f], self._reason(text)) for f in place.names}

    def _split(self, labels: Labels, place: Place) -> Iterator[tuple[Factor, Labels]]:
        """Split the labels of an axis among the factors that index the axis.

        A factor that covers the place gets the same array of labels, not a copy: arrays of labels
        are looked up by identity.
        """
        sizes = self.rule.sizes
        if not place.covers(len(labels), sizes):
            # A slice or a reversal: the labels of the entries that it takes.
            labels = labels[place.indices(sizes).ravel()]
        for factor in place.names[:-1]:
            if sizes[factor] == 1 or not labels.size:
                yield factor, np.full(sizes[factor], KEPT)
            elif sizes[factor] == len(labels):
                yield factor, labels
                labels = np.full(1, KEPT)
            else:
                outer, labels = self.sets.split(labels, sizes[factor])
                yield factor, outer
        yield place.names[-1], labels

    def _relate_flat(self) -> None:
        """Couple axes of a reshape without common factors by the flat order of their elements."""
        for ours, theirs in self.rule.flat:
            flat = Place(tuple((f, 1) for a in ours for f in self.rule.operands[0][a][0].names))
            for f, a in zip(flat.names, ours, strict=True):
                self.labels[f] = self.values[0].axes[a]
            names = [f for a in theirs for f in self.rule.outcomes[0][a][0].names]
            # Empty arrays have no elements to couple.
            if 0 in self.rule.outcome_shapes[0]:
                self.labels |= {f: self.sets.new_labels(self.rule.sizes[f]) for f in names}
                continue
            left = {0: self._remains_of([self.values[0].remains_at(a) for a in ours], flat.names)}
            labels = self._merge(flat)
            for factor in names[:-1]:
                self.labels[factor], labels = self.sets.split(labels, self.rule.sizes[factor])
            self.labels[names[-1]] = labels
            self.remains |= dict.fromkeys(names, left)

    def _remains_of(self, remains: Sequence[Remains], factors: Sequence[Factor]) -> Remains:
        """Return the content that factors share at removed elements; fixed factors are ignored."""
        found = common_content(remains)
        if isinstance(found, Residue) and len(remains) > 1:
            pairs = zip(remains, factors, strict=True)
            found = common_content(
                [x for x, f in pairs if not self.sets.is_fixed(self.labels[f]).all()]
            )
        return found

    def _reduce(self) -> None:
        """Mark the elements that the step sums; keep those whose removal would change the sum."""
        rule = self.rule
        if rule.kind not in (Kind.CONTRACTION, Kind.REDUCTION):
            return
        reduced = sorted(rule.reduced - rule.whole)
        if rule.kind is Kind.CONTRACTION:
            self._contract(reduced)
            return
        for factor in reduced:
            labels, left = self.labels[factor], self.remains[factor][0]
            self.sets.mark_summed(labels)
            if left == rule.neutral or self.sets.is_fixed(labels).all():
                continue
            # The run can add the values of removed units to a sum for one axis only.
            sums = self.equation.primitive is primitives.reduce_sum_p
            if left is not Residue.UNKNOWN and sums and not self.counted:
                self.counted = True
            else:
                self.fix(labels, "{} would count what removed units leave")

    def _contract(self, reduced: Sequence[Factor]) -> None:
        data = [(self.values[i], self.rule.operands[i]) for i in self.rule.data]
        for value, dims in data:
            for labels, dim in zip(value.axes, dims, strict=True):
                if value.parameter and not factors_of([dim]).isdisjoint(reduced):
                    self.sets.mark_consumed(labels)
        if self.rule.chooses:  # group sizes, which count rows or elements of the summed axis
            left, right = (factors_of(dims) for _, dims in data)
            starts = (place.start for dim in self.rule.outcomes[0] for place in dim)
            grouped = reduced if any(isinstance(x, RuntimeStart) for x in starts) else left - right
            for factor in grouped:
                self.fix(self.labels[factor], "groups of {} count it")
        by_weights = any(value.parameter for value, _ in data)
        for factor in reduced:
            self.sets.mark_summed(self.labels[factor], by_weights=by_weights)
            if 0.0 not in self.remains[factor].values():
                text = "a product would count what removed units leave in both factors"
                self.fix(self.labels[factor], text)

    def _spread_apart(self) -> None:
        """Mark elements as never removed where padding separates or removes entries."""
        rule = self.rule
        if rule.fills is None:
            return
        for (ours,), (theirs,), size in zip(
            rule.operands[0], rule.outcomes[0], rule.operand_shapes[0], strict=True
        ):
            # Entries of padding between units belong to none of them, and would stay.
            is_spread = any(stride != 1 for _, stride in theirs.factors)
            if is_spread or not ours.covers(size, rule.sizes):
                self.fix(self.labels[ours.names[0]], "its elements are spread apart")

    def _outcome(self, number: int) -> Value:
        rule, shape = self.rule, self.rule.outcome_shapes[number]
        axes = tuple(
            self._compose(dim, n) for dim, n in zip(rule.outcomes[number], shape, strict=True)
        )
        left = [self._remains_on(number, axis) for axis in range(len(shape))]
        constant = constant_of(self.equation, rule, self.values, number)
        known = rule.kind is Kind.ELEMENTWISE and None not in [x.constant for x in self.values]
        for axis, remains in enumerate(left):
            if remains is Residue.BROKEN:
                left[axis] = Residue.ALIKE
                if not known:
                    self.fix(axes[axis], "{} is not finite where units are removed")
        return Value(axes, tuple(left), constant)

    def _compose(self, dim: Dim, size: int) -> Labels:
        """Return the labels of one dimension of an outcome."""
        if self.rule.is_whole(dim, size):
            return self._merge(dim[0])
        # Updates lie at indices known only at run time, so every element is needed.
        if self.rule.kind is Kind.UPDATE and len(dim) > 1:
            for factor in factors_of([dim]):
                self.fix(self._labels(factor), _LOOKED)
            return self.labels[dim[0].names[0]]
        labels = self.sets.fixed_labels(size, "padded")
        for place in dim:
            if not isinstance(place.start, RuntimeStart):
                labels[place.indices(self.rule.sizes).ravel()] = self._merge(place)
        return labels

    def _merge(self, place: Place) -> Labels:
        found = None
        for factor in reversed(place.names):
            own = self._labels(factor)
            # Factors of size 1 do not change the labels.
            if found is None or len(found) == 1:
                found = own
            elif len(own) > 1:
                found = self.sets.flatten(own, found)
        return np.full(1, KEPT) if found is None else found

    def _labels(self, factor: Factor) -> Labels:
        """Return the labels of a factor; create new ones if no operand has the factor."""
        if factor not in self.labels:
            size = self.rule.sizes[factor]
            # A factor that no operand has is, for example, the new axis of a broadcast.
            if factor in self.rule.whole:
                own = self.sets.fixed_labels(size, self._reason(_WHOLE[self.rule.kind]))
            else:
                own = self.sets.new_labels(size)
            self.labels[factor] = own
        return self.labels[factor]

    def _remains_on(self, number: int, axis: int) -> Remains:
        rule, dim = self.rule, self.rule.outcomes[number][axis]
        if rule.kind is Kind.UPDATE and len(dim) > 1:
            return Residue.UNKNOWN
        names = [f for place in dim for f, _ in place.factors]
        if len(names) > 1:
            # Factors of size 1 lose no elements.
            names = [f for f in names if rule.sizes[f] != 1] or names[:1]
        each = [
            content_along(self.equation, rule, self.values, self.remains.get(f, {}), self.counted)
            for f in names
        ]
        found = self._remains_of(each, names)
        if rule.fills is not None and found != self.values[rule.fills].constant:
            shape = rule.outcome_shapes[number]
            others = (a for a in range(len(shape)) if a != axis)
            if not all(rule.is_whole(rule.outcomes[number][a], shape[a]) for a in others):
                return Residue.UNKNOWN
        # The run could not recompute the content for a single removed unit.
        if found is Residue.ALIKE and same_axes(rule, number, axis) is None:
            return Residue.UNKNOWN
        return found
