"""The analysis that follows leaves through a program, and notes each of their uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from nnopt_jax.trace.abstract_walk import Domain, Location, Site
from nnopt_jax.trace.control import CONTROL, is_inlined
from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.primitives import Flow, MeshCut, Programs, Rule
from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.leaf_movement import CutAcrossError, moved_parts, moves
from nnopt_jax.trace.statistics.leaf_part import LeafPart
from nnopt_jax.trace.statistics.leaf_uses import leaf_use
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.trace.statistics.read_product import read_product
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.use_site import UseSite
from nnopt_jax.trace.statistics.value_numbers import ValueNumbers
from nnopt_jax.typing import Shape


class LeafValue(NamedTuple):
    """What is known of an array.

    Args:
        parts: what it holds of leaves.
        number: the same for arrays that hold the same.
        lost: what it may hold of leaves, in one branch or one turn of a loop and not in others.
    """

    parts: tuple[LeafPart, ...] = ()
    number: int = 0
    lost: tuple[LeafPart, ...] = ()


@dataclasses.dataclass
class LeafStep:
    """A step that leaves reach.

    Args:
        copied: operands that go on as plain arrays, and the name of the copy that they hold.
        sites: the uses there.
    """

    copied: dict[int, Location] = dataclasses.field(default_factory=dict)
    sites: dict[Location, UseSite] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class LeafDomain(Domain[LeafValue]):
    """The domain of the abstract walk that finds uses.

    What it notes is by location, since bodies of loops are walked more than once: a leaf that they
    change is not followed the second time.

    Args:
        shapes: of the leaves, by path.
        statistics: those whose states are kept; without any, arrays have no numbers.
        steps: those that leaves reach.
        numbers: of arrays.
        states: shapes of states, by statistic and what they are made of.
    """

    shapes: Mapping[str, Shape]
    statistics: Sequence[Statistic] = ()
    steps: dict[Location, LeafStep] = dataclasses.field(default_factory=dict)
    numbers: ValueNumbers = dataclasses.field(default_factory=ValueNumbers)
    states: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    @property
    def sites(self) -> dict[Location, UseSite]:
        """All uses."""
        return {at: site for step in self.steps.values() for at, site in step.sites.items()}

    def fresh(self, parts: tuple[LeafPart, ...] = ()) -> LeafValue:
        """Of an array like no other."""
        return LeafValue(parts, self.numbers.new())

    def constant(self, x: Any) -> LeafValue:
        """Constants hold no leaf."""
        return LeafValue((), self.numbers.constant(x) if self.statistics else 0)

    def join(self, one: LeafValue, other: LeafValue) -> LeafValue:
        """Leaves are followed that both hold alike."""
        if one == other:
            return one
        if one.parts == other.parts and not (one.lost or other.lost):
            return self.fresh(one.parts)
        lost = dict.fromkeys((*one.lost, *one.parts, *other.parts, *other.lost))
        return self.fresh()._replace(lost=tuple(lost))

    def same(self, one: LeafValue, other: LeafValue) -> bool:
        """Numbers of what a loop carries are its own in each turn."""
        return one.parts == other.parts and one.lost == other.lost

    def layer(self, value: LeafValue, site: Site) -> LeafValue:
        """The axis that a scan goes along numbers layers."""
        depth, length = len(site.location), site.around[-1].params["length"]
        parts = tuple(part.layer(depth, length) for part in value.parts)
        return LeafValue(parts, self.numbers.of(("layer", site.location, value.number)))

    def stack(self, value: LeafValue, times: int, site: Site) -> LeafValue:
        """Leaves are not followed into a stack."""
        return self.fresh()._replace(lost=value.parts)

    def part(self, value: LeafValue, cut: MeshCut, mesh: Any, site: Site) -> LeafValue:
        """One device has its own."""
        return self.fresh()

    def whole(self, value: LeafValue, cut: MeshCut, mesh: Any, site: Site) -> LeafValue:
        """Nothing is known of it."""
        return self.fresh()

    def enter(
        self, programs: Programs, values: Sequence[LeafValue | None], site: Site
    ) -> list[LeafValue | None]:
        """Note where leaves do not enter, and where they do as plain arrays."""
        given, step = list(values), self._reached(values, site)
        carried = {operand for operand, _ in programs.carried}
        for at, value in enumerate(values):
            if value is None:
                continue
            own, parts, copied = (*site.location, at), value.parts, ()
            if parts and (reason := _stops(programs, parts, at, site)):
                self._note(site, (-1, at), own, parts, [reason] * len(parts))
                parts, copied = (), own
            elif at in carried or programs.own_derivative:
                # In a derivative rule all leaves have one copy, whichever operand they are in.
                copied = own if at in carried else site.location
                parts = _as_array(parts, copied)
            number = self.numbers.new() if at in carried else value.number
            given[at] = LeafValue(parts, number)
            if step is not None and copied:
                step.copied[at] = copied
        return given

    def leave(
        self,
        programs: Programs,
        values: Sequence[LeafValue | None],
        outcomes: Sequence[LeafValue | None],
        site: Site,
    ) -> list[LeafValue | None]:
        """Note where leaves are lost; those that are not come out as plain arrays."""
        equation = site.around[-1]
        numbers = self._numbers(equation, values)
        found = list(outcomes)
        for at, out in enumerate(outcomes):
            if out is None or _comes_through(equation, values, out):
                continue
            self._lose(programs, values, at, out, site)
            is_call = programs.flow is Flow.CALL and programs.mesh is None
            number = out.number if is_call else numbers[at]
            found[at] = LeafValue(_as_array(out.parts, site.location), number)
        return found

    def _lose(
        self, programs: Programs, values: Sequence[LeafValue | None], at: int, out: LeafValue,
        site: Site,
    ) -> None:  # fmt: skip
        """Note the leaves that an outcome may hold."""
        reason = f"it is carried through {site.around[-1].primitive.name}"
        entered = {outcome: operand for operand, outcome in programs.carried}.get(at)
        before = values[entered] if entered is not None else None
        mine = () if before is None else tuple(p for p in out.lost if p in before.parts)
        rest = tuple(part for part in out.lost if part not in mine)
        if mine:
            own = (*site.location, entered)
            self._note(site, (-1, entered), own, mine, [reason] * len(mine))
        self._note(site, (len(programs.inner), at), site.location, rest, [reason] * len(rest))

    def step(
        self, equation: Equation, rule: Rule, values: list[LeafValue], site: Site
    ) -> Sequence[LeafValue]:
        """Follow the leaves that a step moves, and note its uses of all others."""
        numbers, step = self._numbers(equation, values), self._reached(values, site)
        held: list[list[LeafPart]] = [[] for _ in numbers]
        for at, value in enumerate(values) if step is not None else ():
            if value is None or not value.parts:
                continue
            found, reason = _moved(equation, rule, at, value.parts)
            if found is None:
                uses = [reason or read_product(equation, rule, at, part) for part in value.parts]
                own = step.copied[at] = (*site.location, at)
                self._note(site, (at,), own, value.parts, uses, values)
                continue
            for parts, more in zip(held, found, strict=True):
                parts += more
        return [LeafValue(tuple(p), number) for p, number in zip(held, numbers, strict=True)]

    def _numbers(self, equation: Equation, values: Sequence[LeafValue | None]) -> list[int]:
        """Of the outcomes of a step."""
        if not self.statistics:
            return [0] * len(equation.outvars)
        given = [self.numbers.new() if value is None else value.number for value in values]
        return self.numbers.outcomes(equation, given)

    def _reached(self, values: Sequence[LeafValue | None], site: Site) -> LeafStep | None:
        """The step, where an operand holds a leaf; what was noted there before is forgotten."""
        self.steps.pop(site.location, None)
        if not any(value is not None and value.parts for value in values):
            return None
        return self.steps.setdefault(site.location, LeafStep())

    def _note(
        self, site: Site, where: Location, copied: Location, parts: Sequence[LeafPart],
        uses: Sequence[ProductUse | str], values: Sequence[LeafValue | None] = (),
    ) -> None:  # fmt: skip
        for which, (part, use) in enumerate(zip(parts, uses, strict=True)):
            found = UseSite(
                leaf_use(self.shapes[part.path], part, site.around[-1], use),
                part,
                part.copied or copied,
            )
            if not isinstance(use, str):
                found = self._with_states(found, use, values, site)
            self.steps[site.location].sites[*site.location, *where, which] = found

    def _with_states(
        self, found: UseSite, use: ProductUse, values: Sequence[LeafValue | None], site: Site
    ) -> UseSite:
        layout = LeafLayout.of(self.shapes[found.part.path], found.part, use)
        operands = tuple(values[i].number for i in use.operands)
        depths = tuple(level.depth for level in layout.scans)
        source = _scope(site), operands, use.source, depths
        states = {
            one.name: self._state(one, use, source, site.around[-1]) for one in self.statistics
        }
        states = {name: state for name, state in states.items() if state is not None}
        return dataclasses.replace(found, product=use, layout=layout, states=states, source=source)

    def _state(
        self, statistic: Statistic, use: ProductUse, source: Hashable, equation: Equation
    ) -> Any:
        """The shapes of a state; of one input they are found once."""
        key = statistic.name, source
        if not statistic.of_inputs or key not in self.states:
            avals = [x.aval for x in (*equation.invars, *equation.outvars)]
            self.states[key] = jax.eval_shape(
                lambda *arrays: statistic.show(use.on(arrays)),
                *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals),
            )
        return self.states[key]


def _moved(
    equation: Equation, rule: Rule, at: int, parts: Sequence[LeafPart]
) -> tuple[list[list[LeafPart]] | None, str]:
    """What each outcome holds of an operand; None where the step uses it, and a reason."""
    if not moves(equation, rule, at):
        return None, ""
    try:
        return moved_parts(equation, rule, at, parts), ""
    except CutAcrossError as error:
        return None, str(error)


def _stops(programs: Programs, parts: Sequence[LeafPart], at: int, site: Site) -> str:
    """Why leaves are not followed into the programs of a step, if they are not."""
    primitive = site.around[-1].primitive
    if primitive not in CONTROL:
        return f"no rule follows it through {primitive.name}"
    is_cut = at in programs.sliced and not all(part.is_stack(programs.times) for part in parts)
    return f"it is carried through {primitive.name}" if is_cut or programs.mesh is not None else ""


def _as_array(parts: Sequence[LeafPart], copied: Location) -> tuple[LeafPart, ...]:
    """Leaves in a plain array; of one that was a plain array before its first name stays."""
    return tuple(part._replace(copied=part.copied or copied) for part in parts)


def _comes_through(equation: Equation, values: Sequence[LeafValue | None], out: LeafValue) -> bool:
    """Whether the run gives an outcome as it is inside: `control` says where."""
    is_remat = equation.primitive is primitives.remat_p
    return is_inlined(equation) or (is_remat and any(out is value for value in values))


_CALLS = {
    primitives.jit_p,
    primitives.remat_p,
    primitives.custom_jvp_call_p,
    primitives.custom_vjp_call_p,
}
"""Steps whose inner program runs whenever they do."""


def _scope(site: Site) -> Location:
    """The program of the innermost loop or branch around a step: all in it runs equally often."""
    for depth in reversed(range(len(site.around) - 1)):
        if site.around[depth].primitive not in _CALLS:
            return site.location[: 2 * depth + 2]
    return ()
