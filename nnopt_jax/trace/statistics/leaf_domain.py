"""The analysis that follows leaves through a program and records each of their uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nnopt_jax.trace.abstract_walk import Domain, Location, Site, Values
from nnopt_jax.trace.control import CONTROL, is_inlined
from nnopt_jax.trace.jaxpr import Equation, Program, is_variable, primitives
from nnopt_jax.trace.primitives import Flow, OpRule, Programs
from nnopt_jax.trace.statistics.leaf_movement import CutAcrossError, is_moved, move_parts
from nnopt_jax.trace.statistics.leaf_part import LeafPart
from nnopt_jax.trace.statistics.product_reading import read_product
from nnopt_jax.trace.statistics.product_use import ProductUse


class ValueNumbers:
    """Value numbers of arrays: equal for the outcomes of equal steps with equal operands.

    Model code may cast or reshape an activation again for each product; value numbers show that the
    products have the same input.

    References:
        Cocke 1970, Global Common Subexpression Elimination (value numbering).
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def new(self) -> int:
        """Return a new value number, for an array that equals no other array."""
        return self.of(object())

    def of(self, key: Hashable) -> int:
        """Return the value number that belongs to a key."""
        return self._numbers.setdefault(key, len(self._numbers))

    def constant(self, x: Any) -> int:
        """Return the value number of a constant of a program."""
        # Scalars are equal by value; to compare the entries of arrays would be slow.
        if np.ndim(x) == 0:
            return self.of((str(getattr(x, "dtype", type(x))), str(np.asarray(x))))
        return self.of(("constant", id(x)))

    def outcomes(self, equation: Equation, operands: Sequence[int]) -> list[int]:
        """Return the value numbers of the outcomes of a step.

        Args:
            equation: the step.
            operands: the numbers of its operands.
        """
        settings = tuple(sorted(equation.params.items(), key=lambda item: item[0]))
        key: Hashable = equation.primitive, settings, tuple(operands)
        try:
            hash(key)
        except TypeError:  # settings that cannot be compared, so the step equals no other
            key = object()
        # A step with effects, such as a callback, may return something else the second time.
        if equation.effects:
            key = object()
        return [self.of((key, at)) for at, _ in enumerate(equation.outvars)]


def output_numbers(program: Program) -> list[int]:
    """Number the outputs of a program so that equal computations get equal numbers.

    Args:
        program: the traced program.
    """
    numbers = ValueNumbers()
    # Inputs are taken to be different arrays.
    known = {x: numbers.new() for x in (*program.jaxpr.constvars, *program.jaxpr.invars)}

    def read(x: Any) -> int:
        return known[x] if is_variable(x) else numbers.constant(x.val)

    for equation in program.jaxpr.eqns:
        found = numbers.outcomes(equation, [read(x) for x in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(x) for x in program.jaxpr.outvars]


class LeafValue(NamedTuple):
    """The abstract value of an array: the leaves that it holds, and its value number.

    Args:
        parts: the parts of leaves that the array holds.
        number: the value number: equal for arrays that hold the same values.
        lost: parts that the array holds in one branch or iteration, but not in others.
    """

    parts: tuple[LeafPart, ...] = ()
    number: int = 0
    lost: tuple[LeafPart, ...] = ()


class NotedUse(NamedTuple):
    """A use of a leaf that the analysis found, with its product or why that is not measured.

    Args:
        equation: the step.
        part: the part of the leaf that the operand holds.
        copied: the location of its copy of the leaf, at which its gradient is computed.
        product: the product that the leaf is used in.
        reason: why the use cannot be measured; empty if it can.
        source: a key of the inputs; uses with equal keys share their states.
    """

    equation: Equation
    part: LeafPart
    copied: Location
    product: ProductUse = ProductUse()
    reason: str = ""
    source: Hashable = None


@dataclasses.dataclass
class LeafStep:
    """A step whose operands hold leaves, with its uses of the leaves.

    Args:
        copied: the operands that are no longer followed, and the copy of the leaf that each holds.
        uses: the uses by this step.
    """

    copied: dict[int, Location] = dataclasses.field(default_factory=dict)
    uses: dict[Location, NotedUse] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class LeafDomain(Domain[LeafValue]):
    """The analysis that follows leaves through a program and finds the uses of each.

    Notes are kept by location, since bodies of loops are walked more than once: a leaf that a loop
    changes is no longer followed in the second walk.

    Args:
        steps: the steps whose operands hold leaves.
        numbers: the value numbers of arrays.
    """

    steps: dict[Location, LeafStep] = dataclasses.field(default_factory=dict)
    numbers: ValueNumbers = dataclasses.field(default_factory=ValueNumbers)

    @property
    def uses(self) -> dict[Location, NotedUse]:
        """The uses of all leaves, by location."""
        return {at: use for step in self.steps.values() for at, use in step.uses.items()}

    def fresh(self, parts: tuple[LeafPart, ...] = ()) -> LeafValue:
        """Return the value of an array that equals no other array."""
        return LeafValue(parts, self.numbers.new())

    def constant(self, x: Any) -> LeafValue:
        """Return the value of a constant, which does not depend on any leaf."""
        return LeafValue((), self.numbers.constant(x))

    def join(self, one: LeafValue, other: LeafValue) -> LeafValue:
        """Return the value of an array that is one of two, with the leaves that both hold."""
        if one == other:
            return one
        if one.parts == other.parts and not (one.lost or other.lost):
            return self.fresh(one.parts)
        # Leaves that only one of the arrays holds are not followed; `leave` records them.
        lost = dict.fromkeys((*one.lost, *one.parts, *other.parts, *other.lost))
        return self.fresh()._replace(lost=tuple(lost))

    def is_same(self, one: LeafValue, other: LeafValue) -> bool:
        """Return whether two values hold the same leaves; value numbers may differ by iteration."""
        return one.parts == other.parts and one.lost == other.lost

    def layer(self, value: LeafValue, site: Site) -> LeafValue:
        """Return the value of one slice of a scanned array; its leaves record the scan."""
        depth, length = len(site.location), site.around[-1].params["length"]
        parts = tuple(part.layer(depth, length) for part in value.parts)
        # Slices of equal arrays in one scan are equal.
        return LeafValue(parts, self.numbers.of(("layer", site.location, value.number)))

    def stack(self, value: LeafValue, times: int, site: Site) -> LeafValue:
        """Return the value of a loop's stacked outputs, in which leaves are not followed."""
        return self.fresh()._replace(lost=value.parts)

    def enter(self, programs: Programs, values: Values, site: Site) -> list[LeafValue]:
        """Record operands whose leaves are not followed into a step's inner programs."""
        given, step = self._begin_step(values, site)
        carried = {operand for operand, _ in programs.carried}
        for at, value in enumerate(given):
            own = (*site.location, at)
            if reason := _why_not_entered(programs, value.parts, at, site):
                self._note(site, (-1, at), own, [(part, reason) for part in value.parts])
                step.copied[at], given[at] = own, value._replace(parts=())
            # The carry is one array of the loop, so that uses of its leaves share a gradient.
            elif at in carried:
                step.copied[at], given[at] = own, self.fresh(_as_array(value.parts, own))
            elif programs.own_derivative:  # all operands share one copy of each leaf
                step.copied[at] = site.location
                given[at] = value._replace(parts=_as_array(value.parts, site.location))
        return given

    def leave(
        self, programs: Programs, values: Values, outcomes: Values, site: Site
    ) -> list[LeafValue | None]:
        """Record leaves that a step's inner programs lose; mark the others as plain arrays."""
        equation, found = site.around[-1], list(outcomes)
        is_call = programs.flow is Flow.CALL and programs.mesh is None
        # The outcomes of a call keep the value numbers of its inner program.
        numbers = [] if is_call else self._numbers(equation, values)
        reason = f"it is carried through {equation.primitive.name}"
        for at, out in enumerate(outcomes):
            if out is None or _is_passed_on(equation, values, out):
                continue
            where = (-1 if programs.flow is Flow.LOOP else len(programs.inner), at)
            self._note(site, where, site.location, [(part, reason) for part in out.lost])
            number = out.number if is_call else numbers[at]
            found[at] = LeafValue(_as_array(out.parts, site.location), number)
        return found

    def step(self, equation: Equation, rule: OpRule, values: Values, site: Site) -> list[LeafValue]:
        """Follow the leaves that a step moves, and record uses of the leaves that it does not."""
        given, step = self._begin_step(values, site)
        numbers = self._numbers(equation, given)
        held: list[list[LeafPart]] = [[] for _ in numbers]
        for at, value in enumerate(given):
            reason = ""
            if value.parts and is_moved(equation, rule, at):
                try:
                    moved = move_parts(equation, rule, at, value.parts)
                except CutAcrossError as error:
                    # The leaf is not followed any further; this step becomes its last use.
                    reason = str(error)
                else:
                    held = [[*parts, *more] for parts, more in zip(held, moved, strict=True)]
                    continue
            step.copied[at] = own = (*site.location, at)
            uses = [(p, reason or read_product(equation, rule, at, p)) for p in value.parts]
            self._note(site, (at,), own, uses, given)
        return [LeafValue(tuple(p), number) for p, number in zip(held, numbers, strict=True)]

    def _numbers(self, equation: Equation, values: Values) -> list[int]:
        """Return the value numbers of the outcomes of a step."""
        given = [self.fresh() if value is None else value for value in values]
        return self.numbers.outcomes(equation, [value.number for value in given])

    def _begin_step(self, values: Values, site: Site) -> tuple[list[LeafValue], LeafStep]:
        """Return the operands of a step, and a new record of the step if they hold leaves."""
        given = [
            self.fresh() if value is None else value._replace(lost=()) if value.lost else value
            for value in values
        ]
        step = LeafStep()
        if any(value.parts for value in given):
            self.steps[site.location] = step
        else:
            # An earlier walk of the same loop may have recorded the step.
            self.steps.pop(site.location, None)
        return given, step

    def _note(
        self, site: Site, where: Location, copied: Location,
        uses: Sequence[tuple[LeafPart, ProductUse | str]], values: Sequence[LeafValue] = (),
    ) -> None:  # fmt: skip
        """Record the uses of the leaves in one operand, or why they cannot be measured."""
        for which, (part, use) in enumerate(uses):
            product, reason = (ProductUse(), use) if isinstance(use, str) else (use, "")
            operands = tuple(values[i].number for i in product.operands)
            # A state has an axis for each scan, so uses that share one must be in the same scans.
            depths = tuple(level.depth for level in part.scans)
            self.steps[site.location].uses[*site.location, *where, which] = NotedUse(
                site.around[-1],
                part,
                part.copied or copied,
                product,
                reason,
                source=(_scope(site), operands, product.source, depths),
            )


def _why_not_entered(programs: Programs, parts: Sequence[LeafPart], at: int, site: Site) -> str:
    """Return why leaves are not followed into a step's inner programs; empty if they are."""
    primitive, times = site.around[-1].primitive, programs.times or 0
    if primitive not in CONTROL:
        return f"no rule follows it through {primitive.name}"
    is_cut = at in programs.sliced and not all(part.is_stack(times) for part in parts)
    return f"it is carried through {primitive.name}" if is_cut or programs.mesh is not None else ""


def _as_array(parts: Sequence[LeafPart], copied: Location) -> tuple[LeafPart, ...]:
    """Mark leaves as held in a plain array, whose uses share a gradient; keep earlier marks."""
    return tuple(part._replace(copied=part.copied or copied) for part in parts)


def _is_passed_on(equation: Equation, values: Values, out: LeafValue) -> bool:
    """Return whether an outcome of inner programs is passed on unchanged, as `control` does."""
    is_remat = equation.primitive is primitives.remat_p
    return is_inlined(equation) or (is_remat and any(out is value for value in values))


_CALLS = {
    primitives.jit_p,
    primitives.remat_p,
    primitives.custom_jvp_call_p,
    primitives.custom_vjp_call_p,
}
"""The primitives that run their inner program exactly once."""


def _scope(site: Site) -> Location:
    """Return the location of the innermost loop or branch around a step.

    All steps in it run equally often, so that uses of equal inputs may share their state.
    """
    for depth in reversed(range(len(site.around) - 1)):
        if site.around[depth].primitive not in _CALLS:
            return site.location[: 2 * depth + 2]
    return ()
