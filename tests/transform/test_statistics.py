"""Statistics of a loss, against closed forms of a quadratic one; and methods that lack them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Masked
from nnopt_jax.errors import SelectionError, StatisticsError
from nnopt_jax.transform import wrapping

RNG = np.random.default_rng(0)
CURVATURES = [a @ a.T for a in RNG.normal(size=(3, 4, 4))]
POINT = RNG.normal(size=4)
PARAMS = {"w": jnp.asarray(POINT, jnp.float32), "steps": jnp.arange(2)}
BATCHES = [jnp.asarray(a, jnp.float32) for a in CURVATURES]


def _quadratic(params, curvature):
    return 0.5 * params["w"] @ curvature @ params["w"] + 0.0 * params["steps"].sum()


def test_closed_forms_of_a_quadratic():
    names = ("gradient", "fisher", "hessian_gradient")
    found = nnopt.graph(_quadratic, PARAMS, BATCHES[0]).observe(PARAMS, iter(BATCHES), names)
    slopes = [a @ POINT for a in CURVATURES]
    wanted = {
        "gradient": np.mean(slopes, 0),
        "fisher": np.mean(np.square(slopes), 0),
        "hessian_gradient": np.mean([a @ g for a, g in zip(CURVATURES, slopes, strict=True)], 0),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name]["w"], value, rtol=1e-5)
        assert set(found[name]) == {"w"}  # whole numbers have no slope


def test_a_jitted_init_takes_what_was_observed():
    graph = nnopt.graph(_quadratic, PARAMS, BATCHES[0])
    tx = _by_gradient("w")
    seen = graph.observe(PARAMS, BATCHES, tx.needs)
    states = (tx.init(PARAMS, stats=seen), jax.jit(tx.init)(PARAMS, stats=seen))
    jax.tree.map(np.testing.assert_array_equal, *states)
    again = jax.tree.map(lambda x: x, seen)
    assert str(again) == str(seen)
    assert (again.lacking, again.uses) == (seen.lacking, seen.uses)


def test_small_dtypes_are_summed_in_float32():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    batches = [jnp.full(2, 1 + 1 / 64, jnp.bfloat16)] * 300
    graph = nnopt.graph(lambda p, x: (p["w"] * x).sum(), params, batches[0])
    found = graph.observe(params, batches, "gradient")["gradient"]["w"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 + 1 / 64, rtol=1e-6)


def test_unknown_names_and_no_batches():
    graph = nnopt.graph(_quadratic, PARAMS, BATCHES[0])
    with pytest.raises(SelectionError, match=r"no statistic 'gradiant'. Did you mean gradient"):
        graph.observe(PARAMS, BATCHES, ["gradiant"])
    with pytest.raises(StatisticsError, match="there is no batch"):
        graph.observe(PARAMS, [], "gradient")


def _by_gradient(where="**"):
    return wrapping(
        "demo",
        where,
        init=lambda leaves, start: (
            {},
            {path: start.stats["gradient"][path] > 0 for path in leaves},
        ),
        encode=lambda leaves, state, train: {
            path: Masked(leaf, state.rest[path]) for path, leaf in leaves.items()
        },
        needs=("gradient",),
    )


def test_a_method_gets_those_of_its_leaves():
    tx = nnopt.at("head/**", _by_gradient("**/w"))
    params = {"body": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
    slope = jax.tree.map(lambda x: jnp.array([1.0, -1.0]), params)
    state = tx.init(params, stats={"gradient": slope})
    assert tx.apply(params, state)["head"]["w"].tolist() == [1.0, 0.0]
    assert tx.apply(params, state)["body"]["w"].tolist() == [1.0, 1.0]
    assert nnopt.chain(tx, nnopt.pruning.magnitude(0.5, where="**")).needs == ("gradient",)


def test_what_lacks_is_named_at_once():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(StatisticsError) as error:
        _by_gradient().init(params)
    assert str(error.value) == (
        "demo: needs the gradient of a, b; give tx.init(params, stats=nnopt.graph(loss, params, "
        "*batch).observe(params, batches, tx.needs))"
    )


def test_what_nobody_uses_is_refused():
    params, stats = {"w": jnp.ones(2)}, {"gradient": {"w": jnp.ones(2)}, "fisher": {}, "mine": {}}
    with pytest.raises(StatisticsError, match="demo: takes gradient, and does not use fisher, min"):
        _by_gradient().init(params, stats=stats)
    tx = nnopt.chain(_by_gradient(), nnopt.quantization.uniform(8, where="**"))
    with pytest.raises(StatisticsError, match="takes gradient, and does not use fisher, mine; lea"):
        tx.init(params, stats=stats)
    tx.init(params, stats={"gradient": stats["gradient"]})  # the second transform does not get it
    with pytest.raises(StatisticsError, match="magnitude: takes no statistics, and does not use"):
        nnopt.pruning.magnitude(0.5, where="**").init(params, stats={"gradient": {}})


def test_the_true_reason_for_a_gap():
    def apply(p, tokens):
        return p["embed"][tokens] @ p["head"] + 0 * p["dead"].sum()

    params = {"embed": jnp.ones((8, 4)), "head": jnp.ones((4, 2)), "dead": jnp.ones((2, 2))}
    tokens = jnp.array([1, 2])
    tx = nnopt.quantization.quantize_activations(scale="static", where="**")
    seen = nnopt.graph(apply, params, tokens).observe(params, [tokens], tx.needs)
    with pytest.raises(StatisticsError) as error:
        tx.init(params, stats=seen)
    text = str(error.value)
    assert "embed: has no input_absmax: gather looks rows up; leave it out by where=" in text
    assert "dead: has no input_absmax: " in text
    assert "head" not in text


@pytest.mark.parametrize(
    "name", ["input_moments", "input_range", "input_histogram", "output_moments"]
)
def test_statistics_of_several_arrays_are_given_as_they_are(name):
    given = {}

    def init(leaves, start):
        given.update(start.stats[name])
        return {}, dict.fromkeys(leaves)

    tx = wrapping("demo", "w", init=init, encode=lambda leaves, state, train: leaves, needs=(name,))
    params, x = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.arange(6.0).reshape(2, 3)
    graph = nnopt.graph(lambda p, x: x @ p["w"] + p["b"][None], params, x)
    seen = graph.observe(params, [x], name)
    nnopt.chain(nnopt.at("**", tx)).init(params, stats=seen)
    assert given == {"w": seen[name]["w"]}


def test_plan_needs_none():
    assert nnopt.plan(_by_gradient(), {"w": jnp.ones(8)}).rows[0].bound
