"""Programs inside of programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import Sharding

from nnopt_jax.trace.coupling.reading import Inside, Reader, Reading, Rule, Smaller, Step
from nnopt_jax.trace.coupling.rules.moves import picked
from nnopt_jax.trace.coupling.value import Left, Value
from nnopt_jax.trace.jaxpr import Equation, closed, primitives, scanned


def agreed(reader: Reader, values: Sequence[Value]) -> Value:
    """One of several arrays, of which it is not known which."""
    first, *others = values
    for other in others:
        for ours, theirs in zip(first.axes, other.axes, strict=True):
            reader.book.join(ours, theirs)
    left = []
    for axis in range(len(first.axes)):
        found = {value.remains(axis) for value in values}
        left.append(found.pop() if len(found) == 1 else Left.UNKNOWN)
    constants = {value.constant for value in values}
    return Value(first.axes, tuple(left), constants.pop() if len(constants) == 1 else None)


def _jit(reader: Reader, equation: Equation, ins: list[Value]) -> Inside:
    reading = reader.program(closed(equation.params["jaxpr"]), ins, inline=True)
    return Inside(list(reading.outputs), (reading,))


def _placed(values: Sequence[Any], at: Sequence[Any]) -> list[Any]:
    return [
        lax.with_sharding_constraint(x, to) if isinstance(to, Sharding) else x
        for x, to in zip(values, at, strict=True)
    ]


def _jit_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    k = step.equation.params
    found = smaller.inline(step, _placed(values, k["in_shardings"]))
    return _placed(found, k["out_shardings"])


def _remat(reader: Reader, equation: Equation, ins: list[Value]) -> Inside:
    reading = reader.program(closed(equation.params["jaxpr"]), ins)
    return Inside(list(reading.outputs), (reading,))


def _remat_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    k = step.equation.params
    again = jax.checkpoint(
        lambda *given: smaller.run(step.inner[0], given),
        prevent_cse=k["prevent_cse"],
        policy=k["policy"],
    )
    return again(*values)


def _cond(reader: Reader, equation: Equation, ins: list[Value]) -> Inside:
    readings = tuple(
        reader.program(closed(branch), ins[1:]) for branch in equation.params["branches"]
    )
    outs = zip(*(reading.outputs for reading in readings), strict=True)
    return Inside([agreed(reader, found) for found in outs], readings)


def _cond_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    branches = [
        lambda *given, reading=reading: smaller.run(reading, given) for reading in step.inner
    ]
    return lax.switch(values[0], branches, *values[1:])


def _looped(
    reader: Reader, program: Any, before: list[Value], carry: list[Value], after: list[Value]
) -> tuple[Reading, list[Value]]:
    """Reads the body of a loop until what is known of the carry holds in every turn."""
    while True:
        reading = reader.program(closed(program), [*before, *carry, *after])
        found = [
            agreed(reader, pair) for pair in zip(carry, reading.outputs[: len(carry)], strict=True)
        ]
        if all(
            a.left == b.left and a.constant == b.constant for a, b in zip(carry, found, strict=True)
        ):
            return reading, found
        carry = found


def _scan(reader: Reader, equation: Equation, ins: list[Value]) -> Inside:
    consts, count = scanned(equation)
    rows = ins[consts + count :]
    for value in rows:
        reader.book.fix(value.axes[0], reader.reason("a loop goes along it"))
    reading, carry = _looped(
        reader,
        equation.params["jaxpr"],
        ins[:consts],
        ins[consts : consts + count],
        [picked(value, range(1, len(value.axes))) for value in rows],
    )
    length = equation.params["length"]
    turns = reader.book.fixed(length, "turns of a loop")
    stacked = [
        Value((turns, *out.axes), (Left.UNKNOWN, *out.left), out.constant)
        for out in reading.outputs[count:]
    ]
    return Inside([*carry, *stacked], (reading,))


def _scan_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    k = step.equation.params
    consts, count = scanned(step.equation)
    whole = values[:consts]

    def body(state: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        found = smaller.run(step.inner[0], [*whole, *state, *row])
        return found[:count], found[count:]

    last, out = lax.scan(
        body,
        values[consts : consts + count],
        values[consts + count :],
        length=k["length"],
        reverse=k["reverse"],
        unroll=k["unroll"],
    )
    return [*last, *out]


def _while(reader: Reader, equation: Equation, ins: list[Value]) -> Inside:
    k = equation.params
    tests, bodies = k["cond_nconsts"], k["cond_nconsts"] + k["body_nconsts"]
    body, carry = _looped(reader, k["body_jaxpr"], ins[tests:bodies], ins[bodies:], [])
    test = reader.program(closed(k["cond_jaxpr"]), [*ins[:tests], *carry])
    return Inside(carry, (test, body))


def _while_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    k, (test, body) = step.equation.params, step.inner
    tests, bodies = k["cond_nconsts"], k["cond_nconsts"] + k["body_nconsts"]
    return lax.while_loop(
        lambda state: smaller.run(test, [*values[:tests], *state])[0],
        lambda state: smaller.run(body, [*values[tests:bodies], *state]),
        values[bodies:],
    )


PROGRAMS: dict[Any, Rule] = {
    primitives.jit_p: Rule(_jit, _jit_smaller),
    primitives.remat_p: Rule(_remat, _remat_smaller),
    primitives.cond_p: Rule(_cond, _cond_smaller),
    primitives.scan_p: Rule(_scan, _scan_smaller),
    primitives.while_p: Rule(_while, _while_smaller),
}
"""Steps that hold programs."""
