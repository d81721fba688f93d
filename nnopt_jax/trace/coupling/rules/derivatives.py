"""Functions with derivative rules of their own, which they keep at smaller sizes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.coupling.reading import Inside, Reader, Reading, Rule, Smaller, Step
from nnopt_jax.trace.coupling.rules.programs import agreed
from nnopt_jax.trace.coupling.value import Left, Value
from nnopt_jax.trace.jaxpr import Equation, bind, closed, primitives


def _inexact(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _spec(variable: Any) -> jax.ShapeDtypeStruct:
    aval = variable.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _divided(variables: Sequence[Any], values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Values that can be differentiated, and the others."""
    pairs = list(zip(variables, values, strict=True))
    return [x for v, x in pairs if _inexact(v)], [x for v, x in pairs if not _inexact(v)]


def _united(variables: Sequence[Any], moving: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    a, b = iter(moving), iter(others)
    return [next(a) if _inexact(variable) else next(b) for variable in variables]


def _own(equation: Equation, others: Sequence[Any]) -> Callable[..., Any]:
    """The step as a function of what can be differentiated; the other outcomes come beside."""

    def function(*moving: Any) -> tuple[list[Any], list[Any]]:
        found = bind(equation, _united(equation.invars, moving, others))
        return _divided(equation.outvars, found)

    return function


def _eager(reader: Reader, lazy: Callable[[], Any]) -> None:
    """Rules count from the beginning; rules inside of rules where somebody asks for them."""
    if reader.depth == 0:
        # A rule that cannot be traced fails where it is used, as it does in the model.
        with contextlib.suppress(Exception):
            lazy()


def _jvp(reader: Reader, equation: Equation, ins: list[Value]) -> Inside:
    reading = reader.program(closed(equation.params["call_jaxpr"]), ins)

    @functools.cache
    def rule() -> Reading:
        variables = equation.invars
        moving, others = _divided(variables, [_spec(variable) for variable in variables])

        def pushed(moving: Any, others: Any, slopes: Any) -> Any:
            return jax.jvp(_own(equation, others), moving, slopes, has_aux=True)

        program = jax.make_jaxpr(pushed)(tuple(moving), others, tuple(moving))
        values, rest = _divided(variables, ins)
        found = reader.deeper().program(program, [*values, *rest, *map(_slope, values)])
        floats, ints = _divided(equation.outvars, reading.outputs)
        for ours, theirs in zip([*floats, *floats, *ints], found.outputs, strict=True):
            agreed(reader, [ours, theirs])
        return found

    _eager(reader, rule)
    return Inside(list(reading.outputs), (reading,), rule)


def _slope(value: Value) -> Value:
    """The slope of what removed units leave is zero where that is a number."""
    left = tuple(
        Left.UNKNOWN if isinstance(value.remains(axis), Left) else 0.0
        for axis in range(len(value.axes))
    )
    return Value(value.axes, left)


def _jvp_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    equation = step.equation
    forward = jax.custom_jvp(lambda *given: smaller.run(step.inner[0], given))

    @forward.defjvp
    def rule(given: Any, slopes: Any) -> Any:
        moving, others = _divided(equation.invars, given)
        along, _ = _divided(equation.invars, slopes)
        found = smaller.run(smaller.late(step), [*moving, *others, *along])
        count = sum(map(_inexact, equation.outvars))
        shown, along, rest = found[:count], found[count : 2 * count], found[2 * count :]
        still = [np.zeros(np.shape(x), jax.dtypes.float0) for x in rest]
        return (
            _united(equation.outvars, shown, rest),
            _united(equation.outvars, along, still),
        )

    return forward(*values)


class _Pulled(NamedTuple):
    """A function and its backward rule, read."""

    forward: Reading
    backward: Reading


def _vjp(reader: Reader, equation: Equation, ins: list[Value]) -> Inside:
    reading = reader.program(closed(equation.params["call_jaxpr"]), ins)

    @functools.cache
    def rule() -> _Pulled:
        variables = equation.invars
        moving, others = _divided(variables, [_spec(variable) for variable in variables])

        def ahead(moving: Any, others: Any) -> Any:
            shown, back, rest = jax.vjp(_own(equation, others), *moving, has_aux=True)
            return shown, rest, back

        program, (shown, rest, back) = jax.make_jaxpr(ahead, return_shape=True)(
            tuple(moving), others
        )
        leaves, tree = jax.tree.flatten(back)
        values, more = _divided(variables, ins)
        inner = reader.deeper()
        forward = inner.program(program, [*values, *more])
        floats, ints = _divided(equation.outvars, reading.outputs)
        for ours, theirs in zip([*floats, *ints], forward.outputs, strict=False):
            agreed(reader, [ours, theirs])
        again = jax.make_jaxpr(lambda leaves, slopes: jax.tree.unflatten(tree, leaves)(slopes))(
            leaves, shown
        )
        kept = forward.outputs[len(shown) + len(rest) :]
        slopes = [Value(x.axes, (Left.UNKNOWN,) * len(x.axes)) for x in floats]
        backward = inner.program(again, [*kept, *slopes])
        for ours, theirs in zip(values, backward.outputs, strict=True):
            agreed(reader, [ours, theirs])
        return _Pulled(forward, backward)

    _eager(reader, rule)
    return Inside(list(reading.outputs), (reading,), rule)


def _vjp_smaller(step: Step, values: list[Any], smaller: Smaller) -> list[Any]:
    equation = step.equation
    function = jax.custom_vjp(lambda *given: smaller.run(step.inner[0], given))

    def ahead(*given: Any) -> Any:
        moving, others = _divided(equation.invars, given)
        found = smaller.run(smaller.late(step).forward, [*moving, *others])
        count, every = sum(map(_inexact, equation.outvars)), len(equation.outvars)
        shown = _united(equation.outvars, found[:count], found[count:every])
        return shown, found[every:]

    def back(kept: Any, slopes: Any) -> Any:
        along, _ = _divided(equation.outvars, slopes)
        found = smaller.run(smaller.late(step).backward, [*kept, *along])
        return tuple(_united(equation.invars, found, [None] * len(equation.invars)))

    function.defvjp(ahead, back)
    return function(*values)


DERIVATIVES: dict[Any, Rule] = {
    primitives.custom_jvp_call_p: Rule(_jvp, _jvp_smaller),
    primitives.custom_vjp_call_p: Rule(_vjp, _vjp_smaller),
}
"""Functions that bring their derivatives."""
