"""Execution of loops, branches and calls by interpreters of programs with packed leaves."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import primitives
from jax.sharding import PartitionSpec, Sharding

from nnopt_jax.trace.jaxpr import Equation, Program, bind, closed, is_variable, scan_sizes
from nnopt_jax.trace.primitives.primitive_names import shard_map_p
from nnopt_jax.trace.traced import is_array
from nnopt_jax.typing import Array

Extras = Any
"""The data that an interpreter collects in addition to the outputs of a program: any pytree."""

Handler = Callable[[Equation, list[Any], "Inside"], tuple[list[Any], Extras]]


class Slices(NamedTuple):
    """The slices of a value along its first axis, one for each iteration of a scan.

    Args:
        arrays: the arrays that the scan itself slices.
        take: a function from a slice of the arrays to the value in an iteration.
    """

    arrays: Any
    take: Callable[[Any], Any]


class Inside(abc.ABC):
    """Base class of interpreters of a step's inner programs: loops, branches and calls.

    Extras are returned with the outputs. A scan stacks the extras that belong to single iterations
    and merges the others; a `while` merges all; a branch that is not taken yields `nothing`. By
    default there are no extras, and they are the empty tuple.
    """

    @abc.abstractmethod
    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Extras]:
        """Compute an inner program on arrays and leaves; return its outputs and extras.

        Args:
            program: a program inside of the step.
            values: its inputs.
            at: its number among the programs of the step.
        """

    def arrays(self, values: Sequence[Any]) -> list[Array]:
        """Convert inputs or outputs of the step to arrays, whether they are arrays or leaves."""
        return list(values)

    def slices(self, value: Any) -> Slices:
        """Return the slices of an input of a scan; by default, the scan slices the array itself."""
        return Slices(value, lambda part: part)

    def cut(self, value: Any, spec: PartitionSpec, mesh: Any) -> tuple[Any, Any]:
        """Return an input as `shard_map` takes it, and the partition spec of each of its arrays."""
        return self.arrays([value])[0], spec

    def run_to_arrays(
        self, program: Program, values: Sequence[Any], at: int = 0
    ) -> tuple[list[Array], Extras]:
        """Compute a program as `run` does, and convert its outputs to arrays."""
        found, extras = self.run(program, values, at)
        return self.arrays(found), extras

    def initial_extras(self, at: int | None = None) -> Extras:
        """Return the extras of an inner program that has not run, or of all inner programs."""
        return ()

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Merge the extras of two runs, one after the other."""
        return ()

    def split(self, extras: Extras) -> tuple[Extras, Extras]:
        """Split extras into those of each iteration of a scan, and those of the whole scan."""
        return (), ()


def _jit(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Run the program of a `jit` inline, or under `jit` if it donates arguments or is sharded."""
    k = equation.params
    if is_inlined(equation):
        return inside.run(k["jaxpr"], values)
    given_away = [at for at, gone in enumerate(k["donated_invars"]) if gone]
    shardings = *k["in_shardings"], *k["out_shardings"]

    def inner(*given: Any) -> tuple[list[Any], Extras]:
        found, extras = inside.run_to_arrays(k["jaxpr"], _constrain(given, k["in_shardings"]))
        return _constrain(found, shardings[len(given) :]), extras

    return jax.jit(inner, donate_argnums=given_away)(*values)


def is_inlined(equation: Equation) -> bool:
    """Return whether an equation is a `jit` whose program is run inline."""
    if equation.primitive is not primitives.jit_p:
        return False
    k = equation.params
    shardings = *k["in_shardings"], *k["out_shardings"]
    return not any(k["donated_invars"]) and not any(isinstance(at, Sharding) for at in shardings)


def _constrain(values: Sequence[Any], at: Sequence[Any]) -> list[Any]:
    """Constrain arrays to the given shardings; packed leaves keep their own shardings."""
    return [
        lax.with_sharding_constraint(x, to) if isinstance(to, Sharding) and is_array(x) else x
        for x, to in zip(values, at, strict=True)
    ]


def _remat(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Run a `jax.checkpoint`; inputs that it returns unchanged bypass it and stay leaves."""
    k = equation.params
    program = closed(k["jaxpr"])
    through = dict(zip(program.jaxpr.invars, values, strict=True))
    outputs = [x if is_variable(x) else None for x in program.jaxpr.outvars]
    # Outputs that are inputs would become arrays inside of `jax.checkpoint`.
    made = [at for at, x in enumerate(outputs) if x not in through]

    def inner(*given: Any) -> tuple[list[Any], Extras]:
        found, extras = inside.run(program, given)
        return inside.arrays([found[at] for at in made]), extras

    again = jax.checkpoint(inner, prevent_cse=k["prevent_cse"], policy=k["policy"])
    found, extras = again(*values)
    computed = dict(zip(made, found, strict=True))
    return [computed[at] if at in computed else through[x] for at, x in enumerate(outputs)], extras


def _custom(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Run a function with a custom derivative on leaves; the derivative rule gets arrays."""
    program = closed(equation.params["call_jaxpr"])

    def run_step(*given: Any) -> list[Any]:
        return bind(equation, inside.arrays(given))

    def run_program(*given: Any) -> tuple[list[Any], Extras]:
        return inside.run_to_arrays(program, given)

    def extras_of(given: Sequence[Any]) -> Extras:
        # If there is nothing to collect, the program need not run a second time.
        nothing = inside.initial_extras()
        return run_program(*given)[1] if jax.tree.leaves(nothing) else nothing

    def jvp_rule(given: Any, slopes: Any) -> Any:
        (found, moved), extras = jax.jvp(run_step, given, slopes), extras_of(given)
        # Extras are not differentiated.
        still = jax.tree.map(jax.custom_derivatives.zero_from_primal, extras)
        return (found, extras), (moved, still)

    def forward_rule(*given: Any) -> Any:
        found, back = jax.vjp(run_step, *given)
        return (found, extras_of(given)), back

    if equation.primitive is primitives.custom_jvp_call_p:
        forward = jax.custom_jvp(run_program)
        forward.defjvp(jvp_rule)
    else:
        forward = jax.custom_vjp(run_program)
        forward.defvjp(forward_rule, lambda back, slopes: back(slopes[0]))
    return forward(*values)


def _cond(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    index, *operands = values

    def branch(at: int, program: Program, *given: Any) -> tuple[list[Any], Extras]:
        found, extras = inside.run_to_arrays(program, given, at)
        # All branches must return the same tree: extras of the others are initial.
        return found, inside.merge(inside.initial_extras(), extras)

    programs = enumerate(equation.params["branches"])
    branches = [functools.partial(branch, at, program) for at, program in programs]
    return lax.switch(inside.arrays([index])[0], branches, *operands)


def _while(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    k = equation.params
    # Operands are constants of the test, constants of the body, and the carry.
    tests, bodies = k["cond_nconsts"], k["cond_nconsts"] + k["body_nconsts"]
    test, body, carry = values[:tests], values[tests:bodies], inside.arrays(values[bodies:])

    def run_test(state: list[Any]) -> tuple[Array, Extras]:
        found, extras = inside.run_to_arrays(k["cond_jaxpr"], [*test, *state], 0)
        return found[0], extras

    def run_body(state: list[Any], extras: Extras) -> tuple[list[Any], Extras]:
        found, more = inside.run_to_arrays(k["body_jaxpr"], [*body, *state], 1)
        return found, inside.merge(extras, more)

    # A test that collects nothing can remain the test of the loop.
    if not jax.tree.leaves(inside.initial_extras(0)):
        return lax.while_loop(
            lambda now: run_test(now[0])[0],
            lambda now: run_body(*now),
            (carry, inside.initial_extras(1)),
        )

    def run_body_and_test(now: Any) -> Any:
        """Run the body and the next test, since the test of a `while_loop` cannot return extras."""
        state, extras = run_body(*now[:2])
        answer, more = run_test(state)
        return state, inside.merge(extras, more), answer

    answer, extras = run_test(carry)
    start = carry, inside.merge(inside.initial_extras(), extras), answer
    return lax.while_loop(lambda now: now[2], run_body_and_test, start)[:2]


def _scan(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Run a scan: each iteration gets one slice of stacked leaves; the carry consists of arrays."""
    k = equation.params
    consts, count = scan_sizes(equation)
    whole, rows = values[:consts], [inside.slices(value) for value in values[consts + count :]]
    carry = inside.arrays(values[consts : consts + count])

    def body(state: Any, parts: Any) -> Any:
        carried, extras = state
        layers = [row.take(part) for row, part in zip(rows, parts, strict=True)]
        out, found = inside.run_to_arrays(k["jaxpr"], [*whole, *carried, *layers])
        each, more = inside.split(found)
        return (out[:count], inside.merge(extras, more)), (out[count:], each)

    # Extras of the whole scan are carried; those of each iteration are stacked.
    (last, extras), (out, each) = lax.scan(
        body,
        (carry, inside.split(inside.initial_extras())[1]),
        [row.arrays for row in rows],
        length=k["length"],
        reverse=k["reverse"],
        unroll=k["unroll"],
    )
    return [*last, *out], inside.merge(each, extras)


def _shard_map(equation: Equation, values: list[Any], inside: Inside) -> tuple[list[Any], Extras]:
    """Run a `shard_map` on the shards of leaves; no extras are collected inside."""
    k = equation.params
    program = closed(k["jaxpr"])
    inputs = zip(values, k["in_specs"], strict=True)
    given = [inside.cut(value, spec, k["mesh"]) for value, spec in inputs]
    found = jax.shard_map(
        lambda *parts: inside.run_to_arrays(program, parts)[0],
        mesh=k["mesh"],
        in_specs=tuple(spec for _, spec in given),
        out_specs=list(k["out_specs"]),
        check_vma=k["check_vma"],
        axis_names=k["newly_manual_axes"],
    )(*(value for value, _ in given))
    # Statistics do not follow leaves into a `shard_map`, so there is nothing to collect.
    return found, inside.initial_extras()


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
"""The handlers of steps with inner programs, by primitive."""
