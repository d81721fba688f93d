"""Custom `jvp` and `vjp` rules of functions that run without the removed units."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.abstract_walk import Location, Site, Walk
from nnopt_jax.trace.coupling.remains import Residue, Value
from nnopt_jax.trace.jaxpr import Equation, Program, bind, primitives


class Derived(NamedTuple):
    """A program that a custom derivative rule runs, with the values of its outputs.

    Args:
        program: the program.
        location: its location in the walk.
        outputs: the values of its outputs.
    """

    program: Program
    location: Location
    outputs: Sequence[Value]


Plain = Callable[..., list[Any]]
"""A function that computes the program of a step without the removed units."""

Run = Callable[[int, Sequence[Any]], list[Any]]
"""A function that computes program `number` of a derivative rule without the removed units."""


def derive(
    walk: Walk[Value], site: Site, ins: Sequence[Any], outs: Sequence[Any]
) -> Callable[[], tuple[Derived, ...]]:
    """Return a cached function that traces and analyzes the derivative rule of a step.

    The rule of a step is analyzed at once. A rule inside of another rule, which may nest without
    end, is analyzed only when it is used.

    Args:
        walk: the analysis.
        site: the site of the step.
        ins: its operands.
        outs: its outcomes.
    """
    equation = site.around[-1]
    rule = _jvp_programs if equation.primitive is primitives.custom_jvp_call_p else _vjp_programs
    found = functools.cache(lambda: rule(walk, site, ins, outs))
    pairs = zip(site.around[:-1], site.location[1::2], strict=False)
    if not any(outer.primitive in DERIVED and at for outer, at in pairs):
        # A rule that cannot be traced fails when it is used, as in the model.
        with contextlib.suppress(Exception):
            found()
    return found


def _walk(
    walk: Walk[Value], site: Site, number: int, program: Any, inputs: Any, known: Sequence[Value]
) -> Derived:
    """Analyze a program of a derivative rule, and couple its first outputs with known values."""
    inner = site.inner(number)
    found = walk.run(program, inputs, site=inner)
    for one, other in zip(known, found, strict=False):
        walk.domain.join(one, other)
    return Derived(program, inner.location, found)


def _jvp_programs(
    walk: Walk[Value], site: Site, ins: Sequence[Value], outs: Sequence[Value]
) -> tuple[Derived, ...]:
    """Return the program of a `jvp` rule: outcomes, their tangents, then integer outcomes."""
    equation = site.around[-1]
    moving, others = _partition(equation.invars, list(map(_spec, equation.invars)))

    def push_forward(moving: Any, others: Any, slopes: Any) -> Any:
        return jax.jvp(_float_function(equation, others), moving, slopes, has_aux=True)

    program = jax.make_jaxpr(push_forward)(tuple(moving), others, tuple(moving))
    values, rest = _partition(equation.invars, ins)
    floats, ints = _partition(equation.outvars, outs)
    given, known = [*values, *rest, *map(_slope, values)], [*floats, *floats, *ints]
    # Number 0 is the program of the step itself.
    return (_walk(walk, site, 1, program, given, known),)


def _slope(value: Value) -> Value:
    """Return the abstract value of a tangent: zero at removed units whose primal is a number."""
    remains = map(value.remains_at, range(len(value.axes)))
    left = tuple(Residue.UNKNOWN if isinstance(x, Residue) else 0.0 for x in remains)
    return Value(value.axes, left)


def _vjp_programs(
    walk: Walk[Value], site: Site, ins: Sequence[Value], outs: Sequence[Value]
) -> tuple[Derived, ...]:
    """Return the programs of a `vjp` rule: forward, which saves residuals, and backward."""
    equation = site.around[-1]
    moving, others = _partition(equation.invars, list(map(_spec, equation.invars)))

    def run_forward(moving: Any, others: Any) -> Any:
        primals, back, rest = jax.vjp(_float_function(equation, others), *moving, has_aux=True)
        return primals, rest, back

    program, (primals, _, back) = jax.make_jaxpr(run_forward, return_shape=True)(
        tuple(moving), others
    )
    leaves, tree = jax.tree.flatten(back)
    values, more = _partition(equation.invars, ins)
    floats, ints = _partition(equation.outvars, outs)
    forward = _walk(walk, site, 1, program, [*values, *more], [*floats, *ints])
    again = jax.make_jaxpr(lambda leaves, slopes: jax.tree.unflatten(tree, leaves)(slopes))(
        leaves, primals
    )
    slopes = [Value(x.axes, (Residue.UNKNOWN,) * len(x.axes)) for x in floats]
    # Residuals follow the outcomes.
    kept = forward.outputs[len(outs) :]
    return forward, _walk(walk, site, 2, again, [*kept, *slopes], values)


def run_jvp(equation: Equation, values: Sequence[Any], plain: Plain, run: Run) -> list[Any]:
    """Compute a function with a custom `jvp` rule without the removed units; keep the rule.

    Args:
        equation: the step at full sizes.
        values: its operands at smaller sizes.
        plain: a function that computes its program.
        run: a function that computes a program of its rule.
    """
    forward = jax.custom_jvp(plain)

    @forward.defjvp
    def rule(given: Any, slopes: Any) -> Any:
        moving, others = _partition(equation.invars, given)
        tangents, _ = _partition(equation.invars, slopes)
        found = run(0, [*moving, *others, *tangents])
        count = sum(map(_inexact, equation.outvars))
        # The program returns float outcomes, their tangents, then integer outcomes.
        primals, tangents, rest = found[:count], found[count : 2 * count], found[2 * count :]
        # The tangents of integers have the dtype float0 in JAX.
        still = [np.zeros(np.shape(x), jax.dtypes.float0) for x in rest]
        outs = equation.outvars
        return _combine(outs, primals, rest), _combine(outs, tangents, still)

    return forward(*values)


def run_vjp(equation: Equation, values: Sequence[Any], plain: Plain, run: Run) -> list[Any]:
    """Compute a function with a custom `vjp` rule without the removed units; keep the rule.

    The arguments are those of `run_jvp`.
    """
    function = jax.custom_vjp(plain)

    def run_forward(*given: Any) -> Any:
        moving, others = _partition(equation.invars, given)
        found = run(0, [*moving, *others])
        count, every = sum(map(_inexact, equation.outvars)), len(equation.outvars)
        return _combine(equation.outvars, found[:count], found[count:every]), found[every:]

    def run_backward(kept: Any, slopes: Any) -> Any:
        tangents, _ = _partition(equation.outvars, slopes)
        found = run(1, [*kept, *tangents])
        # Integer operands have no cotangents.
        return tuple(_combine(equation.invars, found, [None] * len(equation.invars)))

    function.defvjp(run_forward, run_backward)
    return function(*values)


DERIVED = {primitives.custom_jvp_call_p: run_jvp, primitives.custom_vjp_call_p: run_vjp}
"""The functions that run steps with custom derivative rules, by primitive."""


def _float_function(equation: Equation, others: Sequence[Any]) -> Callable[..., Any]:
    """Return a step as a function of its float operands; integer outcomes are auxiliary."""

    def function(*moving: Any) -> tuple[list[Any], list[Any]]:
        found = bind(equation, _combine(equation.invars, moving, others))
        return _partition(equation.outvars, found)

    return function


def _inexact(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _spec(variable: Any) -> jax.ShapeDtypeStruct:
    aval = variable.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _partition(variables: Sequence[Any], values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Divide values into floats, which have derivatives, and all others."""
    pairs = list(zip(variables, values, strict=True))
    return [x for v, x in pairs if _inexact(v)], [x for v, x in pairs if not _inexact(v)]


def _combine(variables: Sequence[Any], moving: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    a, b = iter(moving), iter(others)
    return [next(a) if _inexact(variable) else next(b) for variable in variables]
