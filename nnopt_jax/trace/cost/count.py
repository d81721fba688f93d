"""Adds up what the steps of a program cost, by the leaf they are done for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nnopt_jax.trace.abstract_walk import Domain, Location, Site, Walk
from nnopt_jax.trace.cost.origin import FLOWING, LEAF, NUMBER, Origin, contracted, outcome
from nnopt_jax.trace.jaxpr import Equation, Program
from nnopt_jax.trace.primitives import TABLE, Flow, Kind, Programs, Rule, Table
from nnopt_jax.tree.bits import tree_bits

ACTIVATIONS, ELEMENTWISE = "(activations)", "(elementwise)"
"""Rows of contractions that no leaf takes part in, and of all else that no leaf alone does."""

_WHILE = "while: how often it runs is not known; its body is counted once"
_DEAREST = "cond: of branches that cost different the dearest is counted"


class Tally(NamedTuple):
    """What was counted.

    Args:
        macs: multiplications that a contraction sums.
        flops: two for each of those, and one for each entry of other steps.
        transcendentals: exponentials, roots and so on, one for each entry.
        read: bits of activations that contractions take.
        written: bits of activations that contractions and lookups give.
    """

    macs: int = 0
    flops: int = 0
    transcendentals: int = 0
    read: int = 0
    written: int = 0

    def plus(self, other: Tally) -> Tally:
        """Add two."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Tally:
        """Count as often as that."""
        return Tally(*(count * a for a in self))


class Entry(NamedTuple):
    """What one step costs.

    Args:
        row: a leaf's path, or one of the rows of no leaf.
        tally: all its runs.
        note: what must be known to read the numbers.
    """

    row: str
    tally: Tally
    note: str = ""


def count(
    program: Program, origins: Sequence[Origin], table: Table = TABLE
) -> tuple[dict[str, Tally], tuple[str, ...]]:
    """Count what a program costs.

    Args:
        program: any.
        origins: where its inputs come from.
        table: where primitives are described.

    Returns:
        What was counted, by the path of a leaf or by one of the rows of no leaf; and notes of what
        must be known to read the numbers.
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
    """The domain of the abstract walk that counts: values are the origins of arrays.

    A layer comes from where the stack does.

    Args:
        entries: by location, since bodies of loops are walked more than once.
    """

    entries: dict[Location, Entry] = dataclasses.field(default_factory=dict)

    def constant(self, x: Any) -> Origin:
        """Numbers come from no leaf."""
        return NUMBER

    def join(self, one: Origin, other: Origin) -> Origin:
        """The last of the two in the order of origins."""
        return max(one, other)

    def leave(
        self, programs: Programs, values: Sequence[Any], outcomes: Sequence[Any], site: Site
    ) -> Sequence[Any]:
        """Keep the dearest of branches; note loops of unknown length."""
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
        """Note what a step costs."""
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
