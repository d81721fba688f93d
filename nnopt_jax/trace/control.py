"""Programs inside of programs: leaves go in; arrays, and what was gathered on the way, come out."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, Sharding

from nnopt_jax.trace.jaxpr import Equation, Program, bind, closed, is_variable, primitives, scanned
from nnopt_jax.trace.probed import shard_map_p
from nnopt_jax.trace.traced import is_array
from nnopt_jax.typing import Array

Extras = Any
"""What a run gathers beside its outputs: any pytree."""

Handler = Callable[[Equation, list[Any], "Inside"], tuple[list[Any], Extras]]


class Slices(NamedTuple):
    """What a scan cuts along the first axis, one entry for each of its steps.

    Args:
        arrays: what the scan itself cuts.
        take: `take(part of arrays, number of the step)` is what the step works on.
    """

    arrays: Any
    take: Callable[[Any, Array], Any]


class Inside(abc.ABC):
    """How an interpreter runs the programs inside of one step of its own.

    Extras come out with the outputs: a scan stacks those that belong to its steps and adds up the
    others, a loop adds up, and a branch that is not taken gives what gathers nothing. Where
    there are no extras, as by default, they are the empty tuple.
    """

    @abc.abstractmethod
    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Extras]:
        """Computes a program; leaves may come out of it.

        Args:
            program: one that is inside of the step.
            values: its inputs.
            at: which of the step's programs it is.
        """

    def dense(self, values: Sequence[Any]) -> list[Array]:
        """The arrays that inputs or outputs of the step stand for."""
        return list(values)

    def slices(self, value: Any) -> Slices:
        """How a scan goes over an array or a leaf: an array it cuts itself."""
        return Slices(value, lambda part, _: part)

    def cut(self, value: Any, spec: PartitionSpec, mesh: Any) -> tuple[Any, Any]:
        """How `shard_map` cuts an input: what it is given, and a spec for each of its arrays."""
        return self.dense([value])[0], spec

    def run_dense(
        self, program: Program, values: Sequence[Any], at: int = 0
    ) -> tuple[list[Array], Extras]:
        """As `run`; arrays come out."""
        found, extras = self.run(program, values, at)
        return self.dense(found), extras

    def nothing(self, at: int | None = None) -> Extras:
        """Extras of programs that have not run: of one of them, or of all inside of the step."""
        return ()

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Extras of two runs, one after the other."""
        return ()

    def split(self, extras: Extras) -> tuple[Extras, Extras]:
        """What belongs to single steps of a scan, and what to all of it."""
        return (), ()


def _jit(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Inlined, but where it says what it gives away or how its arrays lie."""
    k = equation.params
    if is_inlined(equation):
        return inside.run(k["jaxpr"], values)
    given_away = [at for at, gone in enumerate(k["donated_invars"]) if gone]
    lies = *k["in_shardings"], *k["out_shardings"]

    def inner(*given: Any) -> tuple[list[Any], Extras]:
        found, extras = inside.run_dense(k["jaxpr"], _placed(given, k["in_shardings"]))
        return _placed(found, lies[len(given) :]), extras

    return jax.jit(inner, donate_argnums=given_away)(*values)


def is_inlined(equation: Equation) -> bool:
    """Whether the program of an equation runs as if its steps were written in its place."""
    if equation.primitive is not primitives.jit_p:
        return False
    k = equation.params
    lies = *k["in_shardings"], *k["out_shardings"]
    return not any(k["donated_invars"]) and not any(isinstance(at, Sharding) for at in lies)


def _placed(values: Sequence[Any], at: Sequence[Any]) -> list[Any]:
    """Arrays where they are said to lie; leaves lie as their parts came."""
    return [
        lax.with_sharding_constraint(x, to) if isinstance(to, Sharding) and is_array(x) else x
        for x, to in zip(values, at, strict=True)
    ]


def _remat(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """What comes out as it went in does not go through: leaves stay what they are."""
    k = equation.params
    program = closed(k["jaxpr"])
    through = dict(zip(program.jaxpr.invars, values, strict=True))
    outputs = [x if is_variable(x) else None for x in program.jaxpr.outvars]
    made = [at for at, x in enumerate(outputs) if x not in through]

    def inner(*given: Any) -> tuple[list[Any], Extras]:
        found, extras = inside.run(program, given)
        return inside.dense([found[at] for at in made]), extras

    again = jax.checkpoint(inner, prevent_cse=k["prevent_cse"], policy=k["policy"])
    found, extras = again(*values)
    computed = dict(zip(made, found, strict=True))
    return [computed[at] if at in computed else through[x] for at, x in enumerate(outputs)], extras


def _custom(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Leaves where it only runs; where it is differentiated its own rule has the arrays."""
    program = closed(equation.params["call_jaxpr"])

    def own(*given: Any) -> list[Any]:
        return bind(equation, inside.dense(given))

    def plain(*given: Any) -> tuple[list[Any], Extras]:
        return inside.run_dense(program, given)

    def gathered(given: Sequence[Any]) -> Extras:
        nothing = inside.nothing()
        return plain(*given)[1] if jax.tree.leaves(nothing) else nothing

    def slope(given: Any, slopes: Any) -> Any:
        (found, moved), extras = jax.jvp(own, given, slopes), gathered(given)
        still = jax.tree.map(jax.custom_derivatives.zero_from_primal, extras)
        return (found, extras), (moved, still)

    def forth(*given: Any) -> Any:
        found, back = jax.vjp(own, *given)
        return (found, gathered(given)), back

    if equation.primitive is primitives.custom_jvp_call_p:
        forward = jax.custom_jvp(plain)
        forward.defjvp(slope)
    else:
        forward = jax.custom_vjp(plain)
        forward.defvjp(forth, lambda back, slopes: back(slopes[0]))
    return forward(*values)


def _cond(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    index, *operands = values

    def branch(at: int, program: Program, *given: Any) -> tuple[list[Any], Extras]:
        found, extras = inside.run_dense(program, given, at)
        return found, inside.merge(inside.nothing(), extras)

    programs = enumerate(equation.params["branches"])
    branches = [functools.partial(branch, at, program) for at, program in programs]
    return lax.switch(inside.dense([index])[0], branches, *operands)


def _while(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    k = equation.params
    tests, bodies = k["cond_nconsts"], k["cond_nconsts"] + k["body_nconsts"]
    test, body, carry = values[:tests], values[tests:bodies], inside.dense(values[bodies:])

    def goes_on(state: list[Any]) -> tuple[Array, Extras]:
        found, extras = inside.run_dense(k["cond_jaxpr"], [*test, *state], 0)
        return found[0], extras

    def once(state: list[Any], extras: Extras) -> tuple[list[Any], Extras]:
        found, more = inside.run_dense(k["body_jaxpr"], [*body, *state], 1)
        return found, inside.merge(extras, more)

    if not jax.tree.leaves(inside.nothing(0)):
        return lax.while_loop(
            lambda now: goes_on(now[0])[0], lambda now: once(*now), (carry, inside.nothing(1))
        )

    def and_test(now: Any) -> Any:
        """A test gives but its answer: the next one is made here, where more can come out."""
        state, extras = once(*now[:2])
        answer, more = goes_on(state)
        return state, inside.merge(extras, more), answer

    answer, extras = goes_on(carry)
    start = carry, inside.merge(inside.nothing(), extras), answer
    return lax.while_loop(lambda now: now[2], and_test, start)[:2]


def _scan(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Of stacked leaves each step has its layer; what is carried is dense."""
    k = equation.params
    consts, count = scanned(equation)
    whole, rows = values[:consts], [inside.slices(value) for value in values[consts + count :]]
    carry = inside.dense(values[consts : consts + count])

    def body(state: Any, now: Any) -> Any:
        (carried, extras), (number, parts) = state, now
        layers = [row.take(part, number) for row, part in zip(rows, parts, strict=True)]
        out, found = inside.run_dense(k["jaxpr"], [*whole, *carried, *layers])
        each, more = inside.split(found)
        return (out[:count], inside.merge(extras, more)), (out[count:], each)

    (last, extras), (out, each) = lax.scan(
        body,
        (carry, inside.split(inside.nothing())[1]),
        (jnp.arange(k["length"]), [row.arrays for row in rows]),
        length=k["length"],
        reverse=k["reverse"],
        unroll=k["unroll"],
    )
    return [*last, *out], inside.merge(each, extras)


def _shard_map(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Each device has its own part of the leaves; nothing is gathered there."""
    k = equation.params
    program = closed(k["jaxpr"])
    inputs = zip(values, k["in_specs"], strict=True)
    given = [inside.cut(value, spec, k["mesh"]) for value, spec in inputs]
    found = jax.shard_map(
        lambda *parts: inside.run_dense(program, parts)[0],
        mesh=k["mesh"],
        in_specs=tuple(spec for _, spec in given),
        out_specs=list(k["out_specs"]),
        check_vma=k["check_vma"],
        axis_names=k["newly_manual_axes"],
    )(*(value for value, _ in given))
    return found, inside.nothing()


CONTROL: dict[Any, Handler] = {
    primitives.jit_p: _jit,
    primitives.remat_p: _remat,
    primitives.custom_jvp_call_p: _custom,
    primitives.custom_vjp_call_p: _custom,
    primitives.cond_p: _cond,
    primitives.while_p: _while,
    primitives.scan_p: _scan,
    shard_map_p: _shard_map,
}
"""How each kind of inner program runs."""
