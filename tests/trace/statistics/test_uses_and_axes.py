"""Uses and axes are two analyses of one program; where both speak of a leaf they agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import nnopt_jax as nnopt
from tests.trace.zoo.models import MODELS

UNMEASURED = {
    ("linen_weight_norm", "params/Dense_1/kernel"): "mul does not sum over it",
    ("shard_map", "a"): "it is carried through shard_map",
}
"""Leaves that have axes, and whose inputs no statistic knows."""


@pytest.mark.parametrize("name", MODELS)
def test_they_agree_for_every_leaf(name):
    case = MODELS[name]()
    graph = nnopt.graph(case.apply, case.params, *case.args)
    for path in {use.path for use in graph.uses}:
        uses = [(use.contracted, use.batch) for use in graph.uses.of(path) if not use.reason]
        axes = [
            (tuple(sorted(one.contracted)), tuple(sorted(one.batch)))
            for one in graph.axes.uses.get(path, ())
        ]
        if (name, path) in UNMEASURED:
            reasons = {use.reason for use in graph.uses.of(path)}
            assert uses == []
            assert axes
            assert reasons == {UNMEASURED[name, path]}
        else:
            assert sorted(uses) == sorted(axes), path


def idle(p, x):
    """A step of which nothing comes out, alone, in a loop, and in a function of its own."""
    jnp.sin(x @ p["a"])
    both = jax.jit(lambda v, w, x: (x @ v, jnp.tanh(x @ w)))
    x = both(p["b"], p["used"], x)[1]
    turn = lambda state, _: ((state[0] @ p["c"], state[1] @ p["used"]), None)  # noqa: E731
    return jax.lax.scan(turn, (x, x), None, length=2)[0][1]


def test_neither_counts_a_step_of_which_nothing_comes_out():
    params, x = {path: jnp.ones((3, 3)) for path in ("a", "b", "c", "used")}, jnp.ones((2, 3))
    graph = nnopt.graph(idle, params, x)
    assert {use.path for use in graph.uses} == {"used"} == set(graph.axes)
    seen = graph.observe(params, [x], "input_gram")
    assert seen.lacking["input_gram"] == dict.fromkeys("abc", "no step uses it")
