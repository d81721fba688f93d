"""The cost of a call of a function, counted by step and attributed to leaves."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.trace.abstract_walk import Domain, Location, Site, Values, Walk
from nnopt_jax.trace.cost_table import Cost, CostRow
from nnopt_jax.trace.jaxpr import Equation, Program
from nnopt_jax.trace.packed.packed_leaf import PackedLeaf
from nnopt_jax.trace.packed.packed_run import run
from nnopt_jax.trace.primitives import TABLE, Flow, Kind, OpRule, Programs, Table
from nnopt_jax.trace.traced import Traced
from nnopt_jax.tree.bit_counts import tree_bits

CONSTANT, LEAF, CHOSEN, ACTIVATION = range(4)
"""The kinds of origins of an array: constants alone; a leaf; entries of a leaf that an activation
selects; activations. An array that is computed from several has the largest of their kinds.
"""


class Origin(NamedTuple):
    """The origin of an array: constants, a leaf, looked-up entries of a leaf, or activations.

    Origins are ordered: an array that is computed from several has the largest of their origins.

    Args:
        kind: `CONSTANT`, `LEAF`, `CHOSEN` or `ACTIVATION`.
        size: the number of elements of the leaf; the larger of two leaves takes precedence.
        path: the path of the leaf; empty without one.

    Example:
        >>> from nnopt_jax.trace.cost_count import LEAF, Origin
        >>> max(Origin(LEAF, 64, "kernel"), Origin(LEAF, 8, "scale")).path
        'kernel'
    """

    kind: int
    size: int = 0
    path: str = ""

    @property
    def is_from_leaf(self) -> bool:
        """Whether the array comes from a leaf."""
        return self.kind in (LEAF, CHOSEN)

    @property
    def is_moved(self) -> bool:
        """Whether the array depends on the inputs, so that it is read or written at every call."""
        return self.kind in (CHOSEN, ACTIVATION)


NUMBER, FLOWING = Origin(CONSTANT), Origin(ACTIVATION)


def origin_of(chooses: Sequence[int], given: Sequence[Origin], operands: Sequence[int]) -> Origin:
    """Return the origin of an outcome of a step from the origins of its operands.

    Args:
        chooses: the operands that only select entries of the others.
        given: the origins of all operands.
        operands: the operands that the outcome depends on.
    """
    data = max((given[i] for i in operands if i not in chooses), default=NUMBER)
    chosen = max((given[i] for i in operands if i in chooses), default=NUMBER)
    if not chosen.is_moved:
        return max(data, chosen)
    return Origin(CHOSEN, data.size, data.path) if data.is_from_leaf else FLOWING


def product_owner(left: Origin, right: Origin) -> str:
    """Return the path of the leaf that a product is attributed to; empty for activations.

    A whole leaf takes precedence over selected entries of a leaf, and the larger of two leaves over
    the smaller.
    """
    owned = [at for at in (left, right) if at.is_from_leaf]
    # Entries of two leaves that activations chose are multiplied like activations.
    if not owned or left.kind == right.kind == CHOSEN:
        return ""
    return max(owned, key=lambda at: (at.kind == LEAF, at.size)).path


ACTIVATIONS, ELEMENTWISE = "(activations)", "(elementwise)"
"""The rows for contractions of activations alone, and for other steps without a single leaf."""

_WHILE = "while: the number of iterations is unknown; its body is counted once"
_EXPENSIVE = "cond: only the most expensive branch is counted"


class Tally(NamedTuple):
    """Counts of operations, and of the bits of activations that are read and written.

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


class CostEntry(NamedTuple):
    """The cost of one step, and the row of the table that it is added to.

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
    """Count the operations and activation bits of a program, by leaf.

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


def _rows(entries: Iterable[CostEntry]) -> dict[str, Tally]:
    rows: dict[str, Tally] = {}
    for row, tally, _ in entries:
        if any(tally):
            rows[row] = rows.get(row, Tally()).plus(tally)
    return rows


@dataclasses.dataclass
class Counting(Domain[Origin]):
    """The analysis that counts the cost of each step; its abstract values are origins.

    A slice of a stacked array has the origin of the stack.

    Args:
        entries: the cost of each step by location, since bodies of loops are walked more than once.
    """

    entries: dict[Location, CostEntry] = dataclasses.field(default_factory=dict)

    def constant(self, x: Any) -> Origin:
        """Return the origin of a constant, which belongs to no leaf."""
        return NUMBER

    def join(self, one: Origin, other: Origin) -> Origin:
        """Return the larger of two origins."""
        return max(one, other)

    def leave(self, programs: Programs, values: Values, outcomes: Values, site: Site) -> Values:
        """Count only the most expensive branch of a `cond`; note loops of unknown length."""
        if programs.flow is Flow.LOOP and programs.times is None:
            self.entries[site.location] = CostEntry(ELEMENTWISE, Tally(), _WHILE)
        if programs.flow is Flow.BRANCH:
            self._keep_most_expensive(programs, site)
        return outcomes

    def _keep_most_expensive(self, programs: Programs, site: Site) -> None:
        each = [self._inside((*site.location, at)) for at in range(len(programs.inner))]
        costs = [_rows(branch.values()) for branch in each]
        flops = [sum(tally.flops for tally in rows.values()) for rows in costs]
        dearest = flops.index(max(flops))
        # Entries of the other branches stay with a count of zero, for their notes.
        for branch in (*each[:dearest], *each[dearest + 1 :]):
            self.entries |= {at: x._replace(tally=Tally()) for at, x in branch.items()}
        if any(rows != costs[dearest] for rows in costs):
            self.entries[site.location] = CostEntry(ELEMENTWISE, Tally(), _EXPENSIVE)

    def _inside(self, location: Location) -> dict[Location, CostEntry]:
        depth = len(location)
        return {at: x for at, x in self.entries.items() if at[:depth] == location}

    def step(
        self, equation: Equation, rule: OpRule, values: list[Origin], site: Site
    ) -> Sequence[Origin]:
        """Record the cost of a step and return the origins of its outcomes."""
        values = [NUMBER if value is None else value for value in values]
        sources = map(rule.sources_of, range(len(rule.outcomes)))
        outs = [origin_of(rule.chooses, values, operands) for operands in sources]
        if rule.kind is Kind.CONTRACTION:
            entry, outs = _contraction(equation, rule, values, outs[0])
        elif rule.kind is Kind.LOOKUP and values[0].kind == LEAF and outs[0].is_moved:
            entry = CostEntry(values[0].path, Tally(written=_bits(equation.outvars)))
        elif rule.flops is None:
            entry = CostEntry(ELEMENTWISE, Tally(), f"not counted: {equation.primitive.name}")
        else:
            tally = Tally(0, rule.operations or 0, rule.transcendentals or 0)
            made = outs[0] if outs else NUMBER
            entry = CostEntry(made.path if made.kind == LEAF else ELEMENTWISE, tally)
        # A loop is walked until a fixed point; its last walk replaces the earlier entries.
        self.entries[site.location] = entry._replace(tally=entry.tally.times(site.times))
        return outs


def _contraction(
    equation: Equation, rule: OpRule, values: list[Origin], made: Origin
) -> tuple[CostEntry, list[Origin]]:
    operands = values[:2]
    moving = [x for x, at in zip(equation.invars[:2], operands, strict=True) if at.is_moved]
    written = _bits(equation.outvars) if made.is_moved else 0
    tally = Tally(rule.products, 2 * rule.products, 0, _bits(moving), written)
    entry = CostEntry(product_owner(*operands) or ACTIVATIONS, tally)
    # The outcome of a product with a looked-up row is an activation.
    return entry, [FLOWING if made.is_moved else made]


def _bits(variables: Sequence[Any]) -> int:
    return tree_bits([x.aval for x in variables])


CALLS, FEWEST, SECONDS = 100, 5, 2.0


def milliseconds(function: Callable[..., Any], given: Sequence[Any]) -> float:
    """Return the median time of a call after the first one, which compiles.

    Args:
        function: a function of arrays; it is compiled here.
        given: its arguments, as arrays.

    Returns:
        The median in milliseconds of a hundred calls, or of as many as two seconds allow, but of
        at least five.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.trace.cost_count import milliseconds
        >>> milliseconds(jnp.sin, [jnp.ones(8)]) > 0
        True
    """
    run, given = jax.jit(function), jax.device_put(list(given))
    jax.block_until_ready(run(*given))
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < FEWEST or (len(times) < CALLS and time.perf_counter() - begin < SECONDS):
        start = time.perf_counter()
        jax.block_until_ready(run(*given))
        times.append(1000 * (time.perf_counter() - start))
    # The median ignores calls that other work on the machine delayed.
    return statistics.median(times)


def count_cost(given: Traced, *, latency: bool = False) -> Cost:
    """Count the cost of a call of a function for each leaf of its parameters.

    Args:
        given: the function, with shapes, arrays or packed leaves as its inputs.
        latency: whether to compile and time it; inputs that are shapes are then filled with zeros.
    """

    def run_packed(*values: Any) -> list[Any]:
        """Run the function as `on_packed` does, without materializing leaves."""
        leaves = [
            PackedLeaf(value, path) if is_node(value) else value
            for value, path in zip(values, given.paths, strict=True)
        ]
        return run(given.program, leaves, lambda *_: None, given.table)

    inputs = list(zip(given.paths, given.values, given.arguments, strict=True))
    # A packed leaf is several inputs, one for each of its arrays.
    origins = [
        Origin(LEAF, value.size, path) if which == 0 else FLOWING
        for path, value, which in inputs
        for _ in jax.tree.leaves(value)
    ]
    found, notes = count(jax.make_jaxpr(run_packed)(*given.values), origins, given.table)
    rows = [
        _row(path, found.get(path, Tally()), summary(value), value.size, _bytes(tree_bits(value)))
        for path, value, which in inputs
        if which == 0
    ]
    # Rows without a leaf are left out if they are empty.
    rows += [_row(path, found[path]) for path in (ACTIVATIONS, ELEMENTWISE) if path in found]
    time = milliseconds(run_packed, jax.tree.map(_zeros, given.values)) if latency else None
    return Cost(tuple(rows), time, notes)


def _row(path: str, tally: Tally, form: str = "", parameters: int = 0, stored: int = 0) -> CostRow:
    macs, flops, transcendentals, read, written = tally
    moved = _bytes(read), _bytes(written)
    return CostRow(path, form, parameters, stored, macs, flops, transcendentals, *moved)


def _bytes(bits: int) -> int:
    # Codes of a few bits may end within a byte.
    return -(-bits // 8)


def _zeros(value: Any) -> Any:
    """Replace a shape with an array of zeros, also inside a packed leaf; keep other values."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return value
    return jnp.zeros(value.shape, value.dtype)
