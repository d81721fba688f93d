"""Walks through a program and adds up what its steps cost, by the leaf they are done for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from nnopt_jax.trace.cost.contractions import products
from nnopt_jax.trace.cost.live import CALLS, called, live, over_steps
from nnopt_jax.trace.cost.origin import (
    ACTIVATION,
    LEAF,
    NUMBER,
    Origin,
    contracted,
    outcome,
)
from nnopt_jax.trace.cost.work import work
from nnopt_jax.trace.jaxpr import Equation, Program, closed, is_variable, primitives, scanned
from nnopt_jax.trace.probed import optimization_barrier_p, shard_map_p
from nnopt_jax.tree.bits import tree_bits

ACTIVATIONS, ELEMENTWISE = "(activations)", "(elementwise)"
"""Rows of contractions that no leaf takes part in, and of all else that no leaf alone does."""


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
        """Both together."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Tally:
        """As often as that."""
        return Tally(*(count * a for a in self))


@dataclasses.dataclass(frozen=True)
class Counted:
    """What a program costs.

    Args:
        origins: where its outputs come from.
        rows: by the path of a leaf, or one of the rows of no leaf.
        notes: what must be known to read the numbers.
    """

    origins: tuple[Origin, ...]
    rows: Mapping[str, Tally] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Of all rows."""
        return sum(tally.flops for tally in self.rows.values())

    def times(self, count: int) -> Self:
        """As often as that."""
        rows = {path: tally.times(count) for path, tally in self.rows.items()}
        return dataclasses.replace(self, rows=rows)


def together(origins: Sequence[Origin], parts: Iterable[Counted], *notes: str) -> Counted:
    """What several parts cost.

    Args:
        origins: where the outputs of the whole come from.
        parts: what it is made of.
        *notes: further ones.
    """
    rows: dict[str, Tally] = {}
    said: dict[str, None] = {}
    for part in parts:
        said.update(dict.fromkeys(part.notes))
        for path, tally in part.rows.items():
            rows[path] = rows[path].plus(tally) if path in rows else tally
    return Counted(tuple(origins), rows, tuple(dict.fromkeys((*said, *notes))))


def count(program: Program, origins: Sequence[Origin], wanted: Sequence[bool]) -> Counted:
    """Counts what a program costs.

    Args:
        program: any.
        origins: where its inputs come from.
        wanted: for each output whether it is needed; what only others depend on is not counted.
    """
    jaxpr = program.jaxpr
    known = dict.fromkeys(jaxpr.constvars, NUMBER)
    known.update(zip(jaxpr.invars, origins, strict=True))
    steps = []
    for equation, needed in live(program, wanted).steps:
        given = [_origin(known, x) for x in equation.invars]
        found = _STEPS.get(equation.primitive, _single)(equation, given, needed)
        known.update(zip(equation.outvars, found.origins, strict=True))
        steps.append(found)
    return together([_origin(known, x) for x in jaxpr.outvars], steps)


def _origin(known: Mapping[Any, Origin], x: Any) -> Origin:
    """Of an operand; one that nothing needs has none."""
    return known.get(x, NUMBER) if is_variable(x) else NUMBER


def _single(equation: Equation, given: list[Origin], needed: list[bool]) -> Counted:
    """A step that holds no program."""
    macs = products(equation)
    if macs is not None:
        return _contraction(equation, given, macs)
    made = outcome(equation.primitive, given)
    out = (made,) * len(equation.outvars)
    if equation.primitive is optimization_barrier_p:
        out = tuple(given)
    lookup = equation.primitive is primitives.gather_p and given[0].kind == LEAF and made.moves
    if lookup:
        return Counted(out, {given[0].path: Tally(written=_bits(equation.outvars))})
    cost = work(equation)
    if cost is None:
        return Counted(out, notes=(f"not counted: {equation.primitive.name}",))
    row = made.path if made.kind == LEAF else ELEMENTWISE
    tally = Tally(flops=cost.flops, transcendentals=cost.transcendentals)
    return Counted(out, {row: tally} if any(cost) else {})


def _contraction(equation: Equation, given: list[Origin], macs: int) -> Counted:
    operands = given[:2]
    made = outcome(equation.primitive, given)
    moving = [x for x, at in zip(equation.invars[:2], operands, strict=True) if at.moves]
    if made.moves:
        made = Origin(ACTIVATION)
    written = _bits(equation.outvars) if made.moves else 0
    tally = Tally(macs, 2 * macs, 0, _bits(moving), written)
    return Counted((made,), {contracted(*operands) or ACTIVATIONS: tally})


def _bits(variables: Sequence[Any]) -> int:
    return tree_bits([x.aval for x in variables])


def _call(equation: Equation, given: list[Origin], needed: list[bool]) -> Counted:
    found = count(called(equation), given, needed)
    if equation.primitive is not shard_map_p:
        return found
    return found.times(equation.params["mesh"].size)


def _scan(equation: Equation, given: list[Origin], needed: list[bool]) -> Counted:
    """What is carried may come from more and more with each step."""
    body, wanted = closed(equation.params["jaxpr"]), over_steps(equation, needed)
    consts, carried = scanned(equation)
    first, last = consts, consts + carried
    while True:
        found = count(body, given, wanted)
        after = list(map(max, given[first:last], found.origins))
        if after == given[first:last]:
            return found.times(equation.params["length"])
        given = [*given[:first], *after, *given[last:]]


def _while(equation: Equation, given: list[Origin], needed: list[bool]) -> Counted:
    k = equation.params
    tests, bodies = k["cond_nconsts"], k["cond_nconsts"] + k["body_nconsts"]
    body, test = closed(k["body_jaxpr"]), closed(k["cond_jaxpr"])
    carry = given[bodies:]
    while True:
        found = count(body, [*given[tests:bodies], *carry], [True] * len(carry))
        after = list(map(max, carry, found.origins))
        if after == carry:
            break
        carry = after
    tested = count(test, [*given[:tests], *carry], [True])
    note = "while: how often it runs is not known; its body is counted once"
    return together(carry, [found, tested], note)


def _cond(equation: Equation, given: list[Origin], needed: list[bool]) -> Counted:
    each = [count(closed(b), given[1:], needed) for b in equation.params["branches"]]
    dearest = max(each, key=lambda found: found.flops)
    out = [max(every) for every in zip(*(found.origins for found in each), strict=True)]
    silent = [dataclasses.replace(found, rows={}) for found in each if found is not dearest]
    alike = all(found.rows == dearest.rows for found in each)
    return together(out, [dearest, *silent], *([] if alike else [_DEAREST]))


_DEAREST = "cond: of branches that cost different the dearest is counted"

Step = Callable[[Equation, list[Origin], list[bool]], Counted]
_STEPS: dict[Any, Step] = {
    **dict.fromkeys(CALLS, _call),
    primitives.scan_p: _scan,
    primitives.while_p: _while,
    primitives.cond_p: _cond,
}
"""Steps that hold programs."""
