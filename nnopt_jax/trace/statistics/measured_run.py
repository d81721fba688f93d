"""Execution of a program with measurements at the known uses of its leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.control import CONTROL, Inside, Slices
from nnopt_jax.trace.jaxpr import Equation, Program, bind, evaluate
from nnopt_jax.trace.statistics.leaf_domain import LeafStep
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.use_sites import UseSite
from nnopt_jax.typing import Array

Extras = dict[Any, Any]
"""States, by statistic and use."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafCopies:
    """An array that holds leaves, with copies so that each use of a leaf has its own gradient.

    Args:
        x: the array.
        copies: a copy of the array for each use, by the location of the copy.
    """

    x: Array
    copies: dict[Location, Array]


def plain(value: Any, copied: Location = ()) -> Any:
    """Return the array of a value of a program.

    Args:
        value: an array, or the copies of one.
        copied: the location of the copy.
    """
    return value.copies.get(copied, value.x) if isinstance(value, LeafCopies) else value


@dataclasses.dataclass(frozen=True)
class MeasuredRun(Inside):
    """An interpreter of a program, or of the programs inside of one of its steps.

    Args:
        sites: the uses of leaves.
        steps: the steps whose operands hold leaves.
        statistics: the statistics by name.
        location: the location of the step.
    """

    sites: Mapping[Location, UseSite]
    steps: Mapping[Location, LeafStep]
    statistics: Mapping[str, Statistic]
    location: Location = ()

    def run(
        self, program: Program, values: Sequence[Any], at: int | None = 0
    ) -> tuple[list[Any], Extras]:
        """Compute a program, and measure at the uses in it; it may return leaves.

        Args:
            program: the traced program.
            values: arrays and `LeafCopies`, one for each input.
            at: the number of the program inside of the step; None for the outermost program.

        Returns:
            The outputs, and the states of what was measured.
        """
        around = self._within(at)
        extras: Extras = {}

        def compute(number: int, equation: Equation, given: list[Any]) -> list[Any]:
            step = dataclasses.replace(self, location=(*around, number))
            found, more = step._computed(equation, given)
            extras.update(more)
            return found

        return evaluate(program, values, compute), extras

    def _computed(self, equation: Equation, values: Sequence[Any]) -> tuple[list[Any], Extras]:
        step = self.steps.get(self.location)
        if step is None:
            return bind(equation, [plain(value) for value in values]), {}
        values = [
            plain(value, step.copied[at]) if at in step.copied else value
            for at, value in enumerate(values)
        ]
        if equation.primitive in CONTROL:
            return CONTROL[equation.primitive](equation, values, self)
        found = bind_copies(equation, values)
        arrays = [plain(value) for value in (*values, *found)]
        extras = {
            (name, *site.key): self.statistics[name].show(site.noted.product.on(arrays))
            for site in map(self.sites.__getitem__, step.uses)
            for name in site.owned
        }
        return found, extras

    def _within(self, at: int | None) -> Location:
        """Return the location of the step, or of one of its programs."""
        return self.location if at is None else (*self.location, at)

    def _sites(self, location: Location) -> list[UseSite]:
        depth = len(location)
        return [site for where, site in self.sites.items() if where[:depth] == location]

    def dense(self, values: Sequence[Any]) -> list[Any]:
        """Return plain arrays, from the copies that belong to the step."""
        return [plain(value, self.location) for value in values]

    def slices(self, value: Any) -> Slices:
        """Let the scan slice an array and each of its copies."""
        return Slices(value, lambda part, _: part)

    def nothing(self, at: int | None = None) -> Extras:
        """Return the initial states of all uses inside."""
        location = self._within(at)
        return {
            (name, *site.key): self.statistics[name].start(site.shapes(name, len(location)))
            for site in self._sites(location)
            for name in site.owned
        }

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Merge the states of two runs, adding those that both have."""
        twice = sorted(one.keys() & other)
        both = {key: self.statistics[key[0]].add(one[key], other[key]) for key in twice}
        return one | other | both

    def split(self, extras: Extras) -> tuple[Extras, Extras]:
        """Split states into those with an entry for each iteration of a scan, and the others."""
        depth = len(self.location)
        over = {
            site.key
            for site in self._sites(self.location)
            if any(level.depth == depth for level in site.noted.part.scans)
        }
        each = {key: state for key, state in extras.items() if key[1:] in over}
        return each, {key: state for key, state in extras.items() if key[1:] not in over}


def bind_copies(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Compute a step, and again for each copy of its operands.

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
