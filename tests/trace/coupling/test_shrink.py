"""The smaller function is a function as any other: jitted, differentiated, mapped, exported."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, ShapeError
from tests import tolerance


def drawn(*shape, seed=0):
    rng = np.random.default_rng(seed + sum(shape))
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


PARAMS = {"up": drawn(3, 6), "bias": drawn(6), "down": drawn(6, 2)}
KEEP = {"up:1": [0, 2, 3, 5]}
X = drawn(4, 3)


def network(p, x, activation=jnp.tanh):
    return activation(x @ p["up"] + p["bias"][None]) @ p["down"]


WITHIN = tolerance.relative(network, PARAMS, X)
"""How far two orders of the sums of `network` may lie apart."""


def halves(apply, params=PARAMS, keep=KEEP, x=X, **settings):
    graph = nnopt.graph(apply, params, x, **settings)
    return graph, graph.shrink(params, keep)


def close(found, wanted, most=WITHIN):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=most * np.abs(b).max())


def by_hand(p, x):
    """The network of `KEEP`, with NumPy."""
    at = np.array(KEEP["up:1"])
    p = jax.tree.map(np.asarray, p)
    return np.tanh(np.asarray(x) @ p["up"][:, at] + p["bias"][at]) @ p["down"][at]


def test_parameters_are_those_that_stay():
    _, small = halves(network)
    at = np.array(KEEP["up:1"])
    np.testing.assert_array_equal(small.params["up"], np.asarray(PARAMS["up"])[:, at])
    np.testing.assert_array_equal(small.params["bias"], np.asarray(PARAMS["bias"])[at])
    np.testing.assert_array_equal(small.params["down"], np.asarray(PARAMS["down"])[at])
    assert small.widths == {"bias": (4,), "down": (4, 2), "up": (3, 4)}


def test_any_batch_under_jit_and_vmap_and_without():
    _, small = halves(network)
    run = jax.jit(small.apply)
    for batch in (1, 4, 7):
        close(run(small.params, drawn(batch, 3)), by_hand(PARAMS, drawn(batch, 3)))
    many = drawn(2, 4, 3)
    close(
        jax.vmap(small.apply, (None, 0))(small.params, many),
        np.stack([by_hand(PARAMS, x) for x in many]),
    )
    close(small.apply(small.params, X), by_hand(PARAMS, X))


def test_one_trace_serves_all_calls_of_one_shape():
    traces = []

    def counted(p, x):
        traces.append(x.shape)
        return network(p, x)

    graph = nnopt.graph(counted, PARAMS, X)
    small = graph.shrink(PARAMS, KEEP)
    run = jax.jit(small.apply)
    traces.clear()
    run(small.params, X)
    run(small.params, X + 1)
    assert len(traces) == 1


def test_scan_and_checkpoint_go_through():
    _, small = halves(network)

    def twice(p, xs):
        again = jax.checkpoint(small.apply)
        return jax.lax.scan(lambda total, x: (total + again(p, x).sum(), None), 0.0, xs)[0]

    many = drawn(2, 4, 3)
    wanted = sum(by_hand(PARAMS, x).sum() for x in many)
    np.testing.assert_allclose(twice(small.params, many), wanted, rtol=1e-5)
    slope = jax.grad(twice)(small.params, many)["down"]
    at = np.array(KEEP["up:1"])
    hidden = np.tanh(
        np.asarray(many) @ np.asarray(PARAMS["up"])[:, at] + np.asarray(PARAMS["bias"])[at]
    )
    np.testing.assert_allclose(slope, hidden.sum((0, 1))[:, None] + np.zeros((4, 2)), rtol=1e-5)


def test_gradients_are_those_of_the_masked_model():
    graph, small = halves(network)
    loss = lambda f: lambda p: (f(p, X) ** 2).sum()  # noqa: E731
    slope = jax.grad(loss(network))
    close(
        jax.jit(jax.grad(loss(small.apply)))(small.params),
        graph.shrink(slope(graph.mask(PARAMS, KEEP)), KEEP).params,
        tolerance.relative(slope, PARAMS),
    )


def test_exported_and_loaded_it_computes_the_same():
    _, small = halves(network)
    sent = export.export(jax.jit(small.apply))(small.params, X).serialize()
    close(export.deserialize(sent).call(small.params, X), by_hand(PARAMS, X))


def test_mapped_over_rows_it_is_exported_for_any_number_of_them():
    _, small = halves(network)
    rows = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), 3), jnp.float32)
    with pytest.raises(ShapeError, match=r"argument 2: has shape \(b, 3\).*map it: jax\.vmap"):
        export.export(jax.jit(small.apply))(small.params, rows)

    def mapped(params, rows):
        return jax.vmap(lambda row: small.apply(params, row[None])[0])(rows)

    sent = export.export(jax.jit(mapped))(small.params, rows)
    for count in (1, 4):
        close(sent.call(small.params, X[:count]), by_hand(PARAMS, X[:count]))


def test_parameters_may_change_their_dtype():
    _, small = halves(network)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small.params)
    found = small.apply(half, X.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    close(found.astype(jnp.float32), by_hand(PARAMS, X), 5e-2)


def test_other_arguments_reach_the_function_as_they_are():
    def apply(p, x, *, train, names):
        assert train is True
        assert names == ["a"]
        return network(p, x)

    graph = nnopt.graph(apply, PARAMS, X, train=True, names=["a"])
    small = graph.shrink(PARAMS, KEEP)
    close(small.apply(small.params, X, train=True, names=["a"]), by_hand(PARAMS, X))


def test_statistics_that_come_out_shrink_with_their_layer():
    def apply(p, x):
        hidden = x @ p["up"]
        return jnp.tanh(hidden) @ p["down"], {"mean": hidden.mean(0)}

    assert not nnopt.graph(apply, PARAMS, X).coupled.dimensions
    graph, small = halves(apply, outputs=lambda found: found[0])
    found, statistics = small.apply(small.params, X)
    wanted, whole = apply(graph.mask(PARAMS, KEEP), X)
    close(found, wanted)
    close(statistics["mean"], whole["mean"][np.array(KEEP["up:1"])])


# Derivative rules that are not the true derivative: only one who keeps them gets these numbers.


@jax.custom_jvp
def forward_rule(x):
    return jnp.tanh(x)


@forward_rule.defjvp
def _(given, slopes):
    return forward_rule(*given), 3.0 * slopes[0]


@jax.custom_vjp
def backward_rule(x):
    return jnp.tanh(x)


backward_rule.defvjp(lambda x: (backward_rule(x), x), lambda x, slope: (jnp.sign(x) * slope,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_settings(x, power):
    return jnp.tanh(x) * power


with_settings.defvjp(
    lambda x, power: (with_settings(x, power), x), lambda power, x, slope: (power * 5 * slope,)
)


@jax.custom_vjp
def with_integers(x, times):
    return jnp.tanh(x) * times


with_integers.defvjp(
    lambda x, times: (with_integers(x, times), times), lambda times, slope: (times * slope, None)
)

RULES = {
    "jvp": forward_rule,
    "vjp": backward_rule,
    "settings": lambda x: with_settings(x, 2),
    "integers": lambda x: with_integers(x, jnp.arange(x.shape[0])[:, None]),
    "relu": jax.nn.relu,
}


@pytest.mark.parametrize("name", RULES)
def test_derivative_rules_are_kept(name):
    apply = functools.partial(network, activation=RULES[name])
    graph, small = halves(apply)
    more = drawn(7, 3)
    loss = lambda f: lambda p: (f(p, more) ** 2).sum()  # noqa: E731
    slope = jax.jit(jax.grad(loss(apply)))
    masked = slope(graph.mask(PARAMS, KEEP))
    found = jax.jit(jax.grad(loss(small.apply)))(small.params)
    close(found, graph.shrink(masked, KEEP).params, tolerance.relative(slope, PARAMS))
    if name in ("jvp", "vjp"):  # it is not a true derivative, so that a lost rule would show
        true = jax.grad(loss(network))(graph.mask(PARAMS, KEEP))
        assert np.abs(true["up"] - masked["up"]).max() > 0.1


def test_slopes_forward_and_second_derivatives_follow_the_rule():
    apply = functools.partial(network, activation=forward_rule)
    graph, small = halves(apply)
    mask = graph.mask(PARAMS, KEEP)
    once = lambda f, p: jax.jvp(lambda x: f(p, x), (X,), (X,))  # noqa: E731
    twice = lambda f, p: jax.hessian(lambda x: (f(p, x[None]) ** 2).sum())(X[0])  # noqa: E731
    for slope in (once, twice):
        within = tolerance.relative(functools.partial(slope, apply), PARAMS)
        close(slope(small.apply, small.params), slope(apply, mask), within)


def test_a_rule_that_needs_all_units_keeps_them():
    @jax.custom_vjp
    def sorted_back(x):
        return jnp.tanh(x)

    sorted_back.defvjp(lambda x: (jnp.tanh(x), x), lambda x, slope: (jnp.sort(x) * slope,))
    apply = functools.partial(network, activation=sorted_back)
    coupled = nnopt.graph(apply, PARAMS, X).coupled
    assert not coupled.dimensions
    assert "sort along it" in coupled.frozen["up", 1]


def test_arguments_at_which_units_are_needed_are_an_error():
    def apply(p, x):
        hidden = x @ p["up"]
        return (jnp.sort(hidden) if x.shape[0] > 5 else hidden) @ p["down"]

    _, small = halves(apply)
    small.apply(small.params, X)
    with pytest.raises(CompositionError, match=r"up: axis 1 .*sort along it"):
        small.apply(small.params, drawn(6, 3))
