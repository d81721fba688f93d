"""Computes a program and measures at the uses of its leaves, which are known before."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.control import CONTROL, Inside, Slices
from nnopt_jax.trace.jaxpr import Equation, Program, bind, read
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.use_site import UseSite
from nnopt_jax.typing import Array

Extras = dict[Any, Any]
"""States by statistic and use."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafCopies:
    """An array that leaves were moved into, where a gradient is asked for at each of their uses.

    Args:
        x: the array.
        copies: the same array once more for each use, by where it becomes a plain array.
    """

    x: Array
    copies: dict[Location, Array]


def plain(value: Any, copied: Location = ()) -> Any:
    """Return the array of a value of a program.

    Args:
        value: an array, or the copies of one.
        copied: which copy.
    """
    return value.copies.get(copied, value.x) if isinstance(value, LeafCopies) else value


@dataclasses.dataclass(frozen=True)
class MeasuredRun:
    """How a program is run.

    Args:
        sites: the uses of leaves.
        copied: for each step that leaves reach which operands go on as plain arrays, and of which
            copy; all others are moved.
        statistics: by name.
    """

    sites: Mapping[Location, UseSite]
    copied: Mapping[Location, Mapping[int, Location]]
    statistics: Mapping[str, Statistic]

    @functools.cached_property
    def _measured(self) -> dict[Location, list[UseSite]]:
        """The uses at each step that have a state of their own."""
        found: dict[Location, list[UseSite]] = {}
        for location, site in self.sites.items():
            if site.owned:
                found.setdefault(location[: -len(("operand", "part"))], []).append(site)
        return found

    def run(
        self, program: Program, values: Sequence[Any], location: Location = ()
    ) -> tuple[list[Any], Extras]:
        """Compute a program.

        Args:
            program: what was traced.
            values: arrays and `LeafCopies`, one for each input.
            location: of the program.

        Returns:
            What comes out, and what was measured.
        """
        environment = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        environment.update(zip(program.jaxpr.invars, values, strict=True))
        extras: Extras = {}
        for number, equation in enumerate(program.jaxpr.eqns):
            given = [read(environment, variable) for variable in equation.invars]
            found, more = self._step(equation, given, (*location, number))
            environment.update(zip(equation.outvars, found, strict=True))
            extras |= more
        return [read(environment, variable) for variable in program.jaxpr.outvars], extras

    def _step(
        self, equation: Equation, values: Sequence[Any], location: Location
    ) -> tuple[list[Any], Extras]:
        copied = self.copied.get(location)
        if copied is None:
            return bind(equation, [plain(value) for value in values]), {}
        values = [
            plain(value, copied[at]) if at in copied else value for at, value in enumerate(values)
        ]
        if equation.primitive in CONTROL:
            inside = InsideMeasured(self, location)
            return CONTROL[equation.primitive](equation, values, inside)
        found = bind_copies(equation, values)
        arrays = [plain(value) for value in (*values, *found)]
        extras = {
            (name, *site.key): self.statistics[name].show(site.product.on(arrays))
            for site in self._measured.get(location, ())
            if site.product is not None
            for name in site.owned
        }
        return found, extras

    def nothing(self, location: Location = ()) -> Extras:
        """Of all uses in a part of the program, what changes nothing when added."""
        depth = len(location)
        inside = [site for at, site in self.sites.items() if at[:depth] == location]
        return {
            (name, *site.key): self._start(name, site, depth)
            for site in inside
            for name in site.owned
        }

    def _start(self, name: str, site: UseSite, depth: int) -> Any:
        lengths = site.lengths(depth)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*lengths, *x.shape), x.dtype), site.states[name]
        )
        return self.statistics[name].start(shapes)

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Adds up what was gathered twice."""
        twice = sorted(one.keys() & other)
        both = {key: self.statistics[key[0]].add(one[key], other[key]) for key in twice}
        return one | other | both

    def split(self, extras: Extras, depth: int) -> tuple[Extras, Extras]:
        """What belongs to the layers that a scan goes over, and what to all its steps."""
        over = {
            site.key
            for site in self.sites.values()
            if any(level.depth == depth for level in site.part.levels if level.is_over)
        }
        each = {key: state for key, state in extras.items() if key[1:] in over}
        return each, {key: state for key, state in extras.items() if key[1:] not in over}


@dataclasses.dataclass(frozen=True)
class InsideMeasured(Inside):
    """The programs inside of one step.

    Args:
        measured: how they are run.
        location: of the step.
    """

    measured: MeasuredRun
    location: Location

    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Extras]:
        """Computes a program inside of the step; leaves may come out of it."""
        return self.measured.run(program, values, (*self.location, at))

    def dense(self, values: Sequence[Any]) -> list[Any]:
        """Plain arrays, of the copy that is named by the step."""
        return [plain(value, self.location) for value in values]

    def slices(self, value: Any) -> Slices:
        """The scan cuts an array, and each of its copies."""
        return Slices(value, lambda part, _: part)

    def nothing(self, at: int | None = None) -> Extras:
        """Of all uses inside of the step, or of one of its programs."""
        return self.measured.nothing(self.location if at is None else (*self.location, at))

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Adds up what was gathered twice."""
        return self.measured.merge(one, other)

    def split(self, extras: Extras) -> tuple[Extras, Extras]:
        """What belongs to single layers, and what to all steps."""
        return self.measured.split(extras, len(self.location))


def bind_copies(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Compute a step, and once more for each copy of what it moves.

    Args:
        equation: the step.
        values: its operands.
    """
    found = bind(equation, [plain(value) for value in values])
    keys = [key for value in values if isinstance(value, LeafCopies) for key in value.copies]
    copies = {key: bind(equation, [plain(x, key) for x in values]) for key in dict.fromkeys(keys)}
    if not copies:
        return found
    return [
        LeafCopies(x, {key: outs[at] for key, outs in copies.items()}) for at, x in enumerate(found)
    ]
