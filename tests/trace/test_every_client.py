"""Every analysis asks the one table: the matrix of primitives, and a primitive of one's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import SingleDeviceSharding

import nnopt_jax as nnopt
from nnopt_jax.trace.control import CONTROL
from nnopt_jax.trace.jaxpr import closed
from nnopt_jax.trace.packed.packed_steps import RULES
from nnopt_jax.trace.primitives import (
    TABLE,
    Kind,
    elementwise_rule,
    identity_rule,
    named,
    programs_of,
    rule_of,
)
from tests.trace.primitives.cases import HERE
from tests.trace.primitives.machine import captured
from tests.trace.zoo.models import MODELS

CLIENTS = ("axes", "coupled", "cost", "statistics", "packed")
NAMED = (
    "split tile pad stop_gradient name optimization_barrier sharding_constraint reduce_precision "
    "ragged_dot_general copy device_put pvary"
)
"""Primitives that keep leaves packed, coupled and observed, or multiply them."""


DRAWS = np.random.default_rng(0)
X = DRAWS.normal(size=(4, 5)).astype(np.float32)

MOVED, READ = (Kind.MOVEMENT,), (Kind.REDUCTION,)
DEFERRED = (Kind.ELEMENTWISE, Kind.ORDERED, Kind.UPDATE)
"""What packed leaves go through or are read by: see packed/test_movements.py, test_deferred.py."""


def served(equation) -> dict[str, bool]:
    """For each client whether it has more than a reason for a step."""
    if programs_of(equation) is not None:
        run = equation.primitive in CONTROL
        return {"axes": True, "coupled": True, "cost": True, "statistics": run, "packed": run}
    rule = rule_of(equation)
    known = rule.kind is not Kind.OPAQUE
    stays = rule.kind in (*MOVED, *READ) or rule.is_identity or equation.primitive in RULES
    stays |= rule.kind in DEFERRED and len(rule.outcomes) == 1
    cost = rule.flops is not None
    return {"axes": known, "coupled": known, "cost": cost, "statistics": known, "packed": stays}


OTHERS = (
    (lambda x: lax.with_sharding_constraint(x, SingleDeviceSharding(jax.devices()[0])), X),
    (lax.ragged_dot, X, jnp.ones((2, 5, 3)), jnp.array([1, 3])),
)
"""Steps that have tests of their own, in coupling/test_annotations.py and packed/test_ragged.py."""


def equations_of(program):
    for equation in program.jaxpr.eqns:
        yield equation
        programs = programs_of(equation)
        for inner in programs.inner if programs is not None else ():
            yield from equations_of(closed(inner.program))


def of_the_zoo():
    """One equation for each primitive that the zoo's models have."""
    found = {}
    for make in MODELS.values():
        case = make()
        graph = nnopt.graph(case.apply, case.params, *case.args)
        found |= {equation.primitive: equation for equation in equations_of(graph.traced.program)}
    return found


def of_the_cases():
    """One equation for each primitive that has a case of its own."""
    found = {}
    for case in HERE:
        (primitive,) = named(case.name)
        found[primitive] = captured(case.function, *case.bases[0])[primitive.name][0]
    for function, *given in OTHERS:
        equation = jax.make_jaxpr(function)(*given).jaxpr.eqns[-1]
        found[equation.primitive] = equation
    return found


@pytest.fixture(scope="module")
def matrix():
    equations = of_the_cases() | of_the_zoo()
    return {primitive.name: served(equation) for primitive, equation in equations.items()}


def test_the_matrix(matrix):
    width = max(map(len, matrix))
    print(" " * width, *CLIENTS)
    for name in sorted(matrix):
        print(name.ljust(width), *("x" if matrix[name][c] else "-" for c in CLIENTS))
    counts = {client: sum(row[client] for row in matrix.values()) for client in CLIENTS}
    print("in all".ljust(width), counts)
    assert min(counts[client] for client in CLIENTS) >= 129
    known = {p.name for p in TABLE.rules}
    missing = [n for n in NAMED.split() if n in known and not all(matrix[n].values())]
    assert missing == []


def test_the_zoo_has_no_step_that_an_analysis_cannot_follow():
    unknown = {
        (primitive.name, client)
        for primitive, equation in of_the_zoo().items()
        for client, is_served in served(equation).items()
        if not is_served and client != "packed"
    }
    # XLA gives no count for these either; their leaves are none.
    assert unknown <= {(name, "cost") for name in UNCOUNTED}


UNCOUNTED = ("sort", "top_k", "random_bits", "threefry2x32", "random_wrap", "random_unwrap",
             "random_split", "random_fold_in", "random_seed", "argsort", "fft")  # fmt: skip

tag_p, swell_p = Primitive("tag_of_a_test"), Primitive("swell_of_a_test")
for primitive, function in ((tag_p, lambda x: x), (swell_p, lambda x: jnp.tanh(x) * 2)):
    primitive.def_abstract_eval(lambda x: x)
    primitive.def_impl(function)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))

MINE = TABLE.with_rule(tag_p, identity_rule).with_rule(
    swell_p, lambda equation: elementwise_rule(equation, absorbs=(0,))
)


def apply(params, x):
    hidden = swell_p.bind(x @ tag_p.bind(params["up"]))
    return tag_p.bind(hidden) @ params["down"]


PARAMS = {
    "up": DRAWS.normal(size=(5, 6)).astype(np.float32),
    "down": DRAWS.normal(size=(6, 3)).astype(np.float32),
}


def test_one_line_in_the_table_serves_every_client():
    graph = nnopt.graph(apply, PARAMS, X, table=MINE)
    assert graph.axes["up"] == nnopt.Axes(0, 1)
    assert [use.contracted for use in graph.uses.of("up")] == [(0,)]
    assert graph.coupled.names == ("up:1",)
    assert graph.cost().macs == 4 * 5 * 6 + 4 * 6 * 3
    seen = graph.observe(PARAMS, [X], "input_gram")
    np.testing.assert_allclose(seen["input_gram"]["up"], X.T @ X, rtol=1e-5)
    small = graph.shrink(PARAMS, {"up:1": [0, 4]})
    wanted = np.tanh(X @ PARAMS["up"][:, [0, 4]]) * 2 @ PARAMS["down"][[0, 4]]
    np.testing.assert_allclose(small.apply(small.params, X), wanted, rtol=1e-5, atol=1e-6)
    tx = nnopt.quantization.uniform(8, granularity="channel")
    state = tx.init(PARAMS)
    packed, dense = tx.pack(PARAMS, state), tx.apply(PARAMS, state)
    run = nnopt.on_packed(apply, table=MINE)
    assert not run.report(packed, X).materialized
    np.testing.assert_allclose(run(packed, X), apply(dense, X), rtol=1e-5, atol=1e-5)


def test_without_it_nothing_is_wrong_and_all_is_said():
    graph = nnopt.graph(apply, PARAMS, X)
    assert "up" not in graph.axes
    assert "tag_of_a_test" in graph.axes.unknown["up"]
    assert not graph.coupled.dimensions
    assert "no rule for tag_of_a_test at test_every_client.py" in graph.coupled.frozen["up", 1]
    notes = graph.cost().notes
    assert any("tag_of_a_test" in note for note in notes)
    seen = graph.observe(PARAMS, [X], "input_gram")
    assert "tag_of_a_test" in seen.lacking["input_gram"]["up"]
    tx = nnopt.quantization.uniform(8, granularity="channel")
    state = tx.init(PARAMS)
    packed, dense = tx.pack(PARAMS, state), tx.apply(PARAMS, state)
    run = nnopt.on_packed(apply)
    assert [use.reason for use in run.report(packed, X).materialized] == [
        "no rule for tag_of_a_test"
    ]
    np.testing.assert_allclose(run(packed, X), apply(dense, X), rtol=1e-5, atol=1e-5)


def test_the_steps_of_a_vectorized_model_are_served():
    """`vmap` makes batches of products and lookups; the axes of leaves stay theirs."""
    batched = nnopt.graph(lambda p, x: jax.vmap(lambda row: row @ p["up"])(x), PARAMS, X)
    assert batched.axes["up"] == nnopt.Axes(0, 1)
