"""Equations that hold programs: run as `Programs` says, they give what JAX gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

from nnopt_jax.trace.jaxpr import bind, is_variable, primitives
from nnopt_jax.trace.primitives import TABLE, Flow, named, programs_of, rule_of

X = jnp.linspace(0.1, 1.0, 6).reshape(2, 3)


def run(inner, operands):
    """Outcomes of a program of an equation with these operands."""
    given = [operands[i] for i in inner.inputs]
    return jax.core.eval_jaxpr(inner.program.jaxpr, inner.program.consts, *given)


def follow(equation, operands):
    """The outcomes of an equation, from nothing but its `Programs`."""
    found, count = programs_of(equation), len(equation.outvars)
    if found.flow is Flow.BRANCH:
        (choice,) = found.chooses
        return run(found.inner[int(operands[choice])], operands)
    if found.flow is Flow.CALL:
        return run(found.body, operands)
    operands, stacks = list(operands), {o: [] for o in found.stacked}
    rows = {i: operands[i] for i in found.sliced}
    outcomes, turn = [None] * count, 0
    for i, o in found.carried:
        outcomes[o] = operands[i]
    while True:
        tested = run(found.inner[0], operands)[0] if found.times is None else turn < found.times
        if not tested:
            break
        for i, x in rows.items():
            operands[i] = x[turn]
        for o, y in zip(found.body.outputs, run(found.body, operands), strict=True):
            outcomes[o] = y
            if o in stacks:
                stacks[o].append(y)
        for i, o in found.carried:
            operands[i] = outcomes[o]
        turn += 1
    return [jnp.stack(stacks[o]) if o in stacks else y for o, y in enumerate(outcomes)]


@jax.custom_jvp
def with_jvp(x):
    return jnp.sin(x)


with_jvp.defjvp(lambda x, t: (with_jvp(*x), t[0]))


@jax.custom_vjp
def with_vjp(x):
    return jnp.sin(x)


with_vjp.defvjp(lambda x: (with_vjp(x), ()), lambda _, t: (t,))


def scanned(x):
    rows = jnp.stack([x[:, 0]] * 4)
    return lax.scan(lambda c, y: (c * y[:, None], (c.sum(), y)), x, rows)


def looped(x):
    return lax.while_loop(lambda s: s[0] < x.sum(), lambda s: (s[0] + 1, s[1] * x), (0.0, x))


def branched(x):
    return lax.cond(x[0, 0] > 0.5, lambda y: y + 1, lambda y: y - x, x)


CASES = {
    "jit": (jax.jit(jnp.sin), Flow.CALL, 1),
    "remat": (jax.checkpoint(jnp.sin), Flow.CALL, 1),
    "custom_jvp_call": (with_jvp, Flow.CALL, 1),
    "custom_vjp_call": (with_vjp, Flow.CALL, 1),
    "composite": (lax.composite(lambda x: jnp.sin(x) + 1, name="a.b"), Flow.CALL, 1),
    "scan": (scanned, Flow.LOOP, 4),
    "while": (looped, Flow.LOOP, None),
    "cond": (branched, Flow.BRANCH, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_programs_run_as_described(name):
    function, flow, times = CASES[name]
    program = jax.make_jaxpr(function)(X)
    (primitive,) = named(name)
    known = dict(zip(program.jaxpr.invars, [X], strict=True))
    read = lambda v: known[v] if is_variable(v) else v.val  # noqa: E731
    for equation in program.jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        wanted = bind(equation, operands)
        known.update(zip(equation.outvars, wanted, strict=True))
        if equation.primitive is primitive:
            found = programs_of(equation)
            assert (found.flow, found.times) == (flow, times)
            for got, want in zip(follow(equation, operands), wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-6)
            return
    pytest.fail(f"no {name} in {program}")


def test_mesh_axes_that_cut_operands():
    mesh = AbstractMesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    function = jax.shard_map(
        lambda x, y: x + y,
        mesh=mesh,
        in_specs=(P(None, ("a", "b")), P(None, "a")),
        out_specs=P(None, ("a", "b")),
        check_vma=False,
    )
    equation = jax.make_jaxpr(function)(jnp.ones((3, 8)), jnp.ones((3, 4))).jaxpr.eqns[0]
    found = programs_of(equation)
    assert found.mesh.size == 8
    assert found.operand_cuts == (((), ("a", "b")), ((), ("a",)))
    assert found.outcome_cuts == (((), ("a", "b")),)
    assert found.body.program.jaxpr.invars[0].aval.shape == (3, 1)


def test_other_equations_hold_no_programs():
    equation = jax.make_jaxpr(jnp.sin)(X).jaxpr.eqns[0]
    assert programs_of(equation) is None


def test_an_exported_call_is_opaque():
    exported = jax.export.export(jax.jit(jnp.sin))(X)
    called = jax.make_jaxpr(exported.call)(X).jaxpr.eqns[0]
    inner = programs_of(called).body.program.jaxpr.eqns[0]
    assert programs_of(inner) is None
    assert rule_of(inner).kind.value == "opaque"


def test_every_control_primitive_is_covered():
    others = {primitives.closed_call_p, primitives.call_p, *named("shard_map")}
    assert {*TABLE.programs} == {named(name)[0] for name in CASES} | others
