"""Add up the costs of the steps of a program, by the leaf that each step works for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nnopt_jax.trace.abstract_walk import Domain, Location, Site, Walk
from nnopt_jax.trace.cost.origin import FLOWING, LEAF, NUMBER, Origin, contracted, outcome
from nnopt_jax.trace.jaxpr import Equation, Program
from nnopt_jax.trace.primitives import TABLE, Flow, Kind, Programs, Rule, Table
from nnopt_jax.tree.bit_counts import tree_bits

ACTIVATIONS, ELEMENTWISE = "(activations)", "(elementwise)"
"""Rows for contractions without a leaf, and for other steps that are not done for a single leaf."""

_WHILE = "while: how often it runs is not known; its body is counted once"
_DEAREST = "cond: of branches that cost different the dearest is counted"


class Tally(NamedTuple):
    """Counted operations and activation bits.

    Args:
        macs: multiply-accumulates of contractions.
        flops: two for each multiply-accumulate, and one for each entry of other steps.
        transcendentals: exponentials, roots and so on, one for each entry.
        read: bits of the activations that contractions read.
        written: bits of the activations that contractions and lookups write.
    """

    macs: int = 0
    flops: int = 0
    transcendentals: int = 0
    read: int = 0
    written: int = 0

    def plus(self, other: Tally) -> Tally:
        """Return the sum of two tallies."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Tally:
        """Return the tally multiplied by a number of runs."""
        return Tally(*(count * a for a in self))


class Entry(NamedTuple):
    """The cost of one step.

    Args:
        row: the path of a leaf, `ACTIVATIONS` or `ELEMENTWISE`.
        tally: the counts of all its runs.
        note: a caveat about the numbers.
    """

    row: str
    tally: Tally
    note: str = ""


def count(
    program: Program, origins: Sequence[Origin], table: Table = TABLE
) -> tuple[dict[str, Tally], tuple[str, ...]]:
    """Count the cost of a program.

    Args:
        program: the program.
        origins: the origin of each input.
        table: the rules of the primitives.

    Returns:
        A tally for each row, by the path of a leaf, `ACTIVATIONS` or `ELEMENTWISE`; and notes with
        caveats about the numbers.
    """
    domain = Counting()
    Walk(domain, table).run(program, origins)
    entries = [domain.entries[location] for location in sorted(domain.entries)]
    return _rows(entries), tuple(dict.fromkeys(entry.note for entry in entries if entry.note))


def _rows(entries: Iterable[Entry]) -> dict[str, Tally]:
    rows: dict[str, Tally] = {}
    for row, tally, _ in entries:
        if any(tally):
            rows[row] = rows.get(row, Tally()).plus(tally)
    return rows


@dataclasses.dataclass
class Counting(Domain[Origin]):
    """The domain of the abstract walk that counts costs; its values are the origins of arrays.

    A slice of a stacked array has the origin of the stack.

    Args:
        entries: the cost of each step by location, since bodies of loops are walked more than once.
    """

    entries: dict[Location, Entry] = dataclasses.field(default_factory=dict)

    def constant(self, x: Any) -> Origin:
        """Return the origin of a constant, which belongs to no leaf."""
        return NUMBER

    def join(self, one: Origin, other: Origin) -> Origin:
        """Return the larger of two origins."""
        return max(one, other)

    def leave(
        self, programs: Programs, values: Sequence[Any], outcomes: Sequence[Any], site: Site
    ) -> Sequence[Any]:
        """Count only the most expensive of the branches; note loops of unknown length."""
        if programs.flow is Flow.LOOP and programs.times is None:
            self.entries[site.location] = Entry(ELEMENTWISE, Tally(), _WHILE)
        if programs.flow is Flow.BRANCH:
            self._keep_dearest(programs, site)
        return outcomes

    def _keep_dearest(self, programs: Programs, site: Site) -> None:
        each = [self._inside((*site.location, at)) for at in range(len(programs.inner))]
        costs = [_rows(branch.values()) for branch in each]
        flops = [sum(tally.flops for tally in rows.values()) for rows in costs]
        dearest = flops.index(max(flops))
        for branch in (*each[:dearest], *each[dearest + 1 :]):
            self.entries |= {at: x._replace(tally=Tally()) for at, x in branch.items()}
        if any(rows != costs[dearest] for rows in costs):
            self.entries[site.location] = Entry(ELEMENTWISE, Tally(), _DEAREST)

    def _inside(self, location: Location) -> dict[Location, Entry]:
        depth = len(location)
        return {at: x for at, x in self.entries.items() if at[:depth] == location}

    def step(
        self, equation: Equation, rule: Rule, values: list[Origin], site: Site
    ) -> Sequence[Origin]:
        """Record the cost of a step and return the origins of its outcomes."""
        values = [NUMBER if value is None else value for value in values]
        sources = map(rule.sources_of, range(len(rule.outcomes)))
        outs = [outcome(rule.chooses, values, operands) for operands in sources]
        if rule.kind is Kind.CONTRACTION:
            entry, outs = _contraction(equation, rule, values, outs[0])
        elif rule.kind is Kind.LOOKUP and values[0].kind == LEAF and outs[0].moves:
            entry = Entry(values[0].path, Tally(written=_bits(equation.outvars)))
        elif rule.flops is None:
            entry = Entry(ELEMENTWISE, Tally(), f"not counted: {equation.primitive.name}")
        else:
            tally = Tally(0, rule.operations or 0, rule.transcendentals or 0)
            made = outs[0] if outs else NUMBER
            entry = Entry(made.path if made.kind == LEAF else ELEMENTWISE, tally)
        self.entries[site.location] = entry._replace(tally=entry.tally.times(site.times))
        return outs


def _contraction(
    equation: Equation, rule: Rule, values: list[Origin], made: Origin
) -> tuple[Entry, list[Origin]]:
    operands = values[:2]
    moving = [x for x, at in zip(equation.invars[:2], operands, strict=True) if at.moves]
    written = _bits(equation.outvars) if made.moves else 0
    tally = Tally(rule.products, 2 * rule.products, 0, _bits(moving), written)
    entry = Entry(contracted(*operands) or ACTIVATIONS, tally)
    return entry, [FLOWING if made.moves else made]


def _bits(variables: Sequence[Any]) -> int:
    return tree_bits([x.aval for x in variables])
