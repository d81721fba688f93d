"""The graph as a value: what it holds, what it prints, and what it says of wrong input."""

from __future__ import annotations

import dataclasses
import functools
import gc
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, StatisticsError

KEY = jax.random.key(0)


def drawn(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def apply(p, x):
    return jnp.tanh(x @ p["up"] + p["bias"][None]) @ p["down"]


PARAMS = {"bias": drawn(4), "down": drawn(4, 2), "up": drawn(3, 4)}
X = drawn(5, 3)


@pytest.fixture(scope="module")
def graph():
    return nnopt.graph(apply, PARAMS, X)


def cells(text):
    """The rows of a table, whose columns are two spaces or more apart."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_it_is_printed_as_a_table_of_leaves(graph):
    assert cells(str(graph)) == [
        ["leaf", "shape", "used by", "contracted", "output", "batch", "coupled"],
        ["bias", "4", "add", "-", "-", "-", "up:1"],
        ["down", "4,2", "dot_general", "0", "1", "-", "up:1"],
        ["up", "3,4", "dot_general", "0", "1", "-", "up:1"],
    ]
    assert cells(str(graph.axes)) == [
        ["leaf", "contracted", "output", "batch", "by default"],
        ["down", "0", "1", "-", "left out: the last product"],
        ["up", "0", "1", "-", "taken"],
        ["bias", "-", "-", "-", "left alone: add does not sum over it"],
    ]


def test_its_repr_is_short_for_any_number_of_leaves(graph):
    assert repr(graph) == "Graph(apply, 3 leaves)"
    params = {f"layer_{i}": {"w": np.zeros((2, 2)), "b": np.zeros(2)} for i in range(20)}

    def deep(p, x):
        for i in range(20):
            x = jnp.sin(x @ p[f"layer_{i}"]["w"] + p[f"layer_{i}"]["b"][None])
        return x

    large = nnopt.graph(deep, params, X[:, :2])
    assert {leaf.dtype for leaf in jax.tree.leaves(large.params)} == {jnp.dtype("float32")}
    assert repr(large) == "Graph(deep, 40 leaves)"
    assert len(str(large).splitlines()) == 41
    assert repr(nnopt.graph(functools.partial(apply), PARAMS, X)) == "Graph(partial, 3 leaves)"


def test_it_does_not_change(graph):
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.apply = jnp.sin
    for analysis in (graph.axes, graph.coupled, graph.uses):
        with pytest.raises(dataclasses.FrozenInstanceError):
            analysis.new = 1
    assert graph.axes is graph.axes
    assert graph.coupled is graph.coupled


def test_it_holds_no_arrays():
    shape = (1, 457)  # of no other array here

    def model(p, x, scale):
        return (x * scale) @ p["w"] @ p["v"]

    w, packed = jnp.ones(shape), nnopt.arrays.Factored(jnp.ones((457, 1)), jnp.ones(shape))
    params = {"w": w, "v": packed}
    found = nnopt.graph(model, params, jnp.ones((2, 1)), scale=jnp.ones(()))
    assert len(found.axes) == 2
    assert found.coupled.names
    assert len(found.uses)
    assert found.cost(latency=True).flops
    found.shrink({"w": w, "v": np.ones((457, 457), "f")}, {found.coupled.names[0]: [0]})
    held = (found.params, found.args, dict(found.kwargs), found.traced.values)
    assert not [x for x in jax.tree.leaves(held) if isinstance(x, jax.Array | np.ndarray)]
    assert any(x.shape == shape for x in jax.live_arrays())
    del w, params, packed
    gc.collect()
    assert not any(x.shape == shape for x in jax.live_arrays())
    assert found.cost().flops  # still a value


def test_shapes_and_arrays_make_the_same_graph(graph):
    shapes = jax.eval_shape(lambda *args: args, PARAMS, X)
    other = nnopt.graph(apply, *shapes)
    assert str(other) == str(graph)
    assert other.uses == graph.uses
    assert dict(other.axes) == dict(graph.axes) == {"up": Axes(0, 1), "down": Axes(0, 1)}
    assert other.coupled.frozen == graph.coupled.frozen
    assert other.cost() == graph.cost() == graph.cost(PARAMS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), graph.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), PARAMS
    )


def test_packed_leaves_are_what_they_stand_for(graph):
    tx = nnopt.quantization.uniform(8)
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    other = nnopt.graph(apply, packed, X)
    assert str(other) == str(graph)
    rows = {row.path: row for row in other.cost(packed).rows}
    assert rows["up"].form.startswith("Quantized(")
    assert rows["up"].bytes < 4 * 12
    assert {row.path: row.bytes for row in other.cost().rows}["up"] == 4 * 12
    seen = graph.observe(packed, [X], ("input_gram",))
    np.testing.assert_allclose(seen["input_gram"]["up"], X.T @ X, rtol=1e-5)


def test_a_loss_has_slopes():
    def loss(p, x, y):
        return jnp.square(apply(p, x) - y).sum()

    y = drawn(5, 2)
    found = nnopt.graph(loss, PARAMS, X, y)
    assert dict(found.axes) == {"up": Axes(0, 1), "down": Axes(0, 1)}
    assert set(found.axes.left_out) == {"down"}
    hidden = np.tanh(X @ PARAMS["up"] + PARAMS["bias"])
    slope = 2 * hidden.T @ (hidden @ PARAMS["down"] - y)
    seen = found.observe(PARAMS, [(X, y)], ("gradient",))
    np.testing.assert_allclose(seen["gradient"]["down"], slope, rtol=1e-4)


def test_batches_are_tuples_of_arguments():
    def two(p, x, scale):
        return (x * scale[:, None]) @ p["up"]

    found = nnopt.graph(two, PARAMS, X, X[:, 0])
    seen = found.observe(PARAMS, [(X, np.full(5, 2.0, "f")), (X, np.full(5, 3.0, "f"))])
    np.testing.assert_allclose(seen["input_absmax"]["up"], 3 * np.abs(X).max())
    with pytest.raises(CompositionError, match=r"a batch has 1 entries, and the function takes 2"):
        found.observe(PARAMS, [X])
    with pytest.raises(CompositionError, match=r"has 3 entries.*give a tuple of as many"):
        found.observe(PARAMS, [(X, X[:, 0], X)])

    def pair(p, both):
        return both[0] @ p["up"] + both[1]

    one = nnopt.graph(pair, PARAMS, (X, drawn(5, 4)))
    seen = one.observe(PARAMS, [((X, drawn(5, 4)),), [X, drawn(5, 4)]])  # a list is one argument
    np.testing.assert_allclose(seen["input_absmax"]["up"], np.abs(X).max())
    with pytest.raises(CompositionError, match=r"takes 1 argument after .*\(batch,\) for one"):
        one.observe(PARAMS, [(X, drawn(5, 4))])


def test_keywords_and_arguments_that_are_no_arrays_reach_the_function():
    def model(p, x, kind, *, train, layers):
        assert kind == "tanh"
        assert train is False
        return getattr(jnp, kind)(x @ p[layers[0]]) @ p[layers[1]]

    found = nnopt.graph(model, PARAMS, X, "tanh", train=False, layers=["up", "down"])
    assert found.args[1] == "tanh"
    assert dict(found.axes) == {"up": Axes(0, 1), "down": Axes(0, 1)}
    assert found.coupled.names == ("up:1",)
    small = found.shrink(PARAMS, {"up:1": [0, 3]})
    by_hand = np.tanh(X @ PARAMS["up"][:, [0, 3]]) @ PARAMS["down"][[0, 3]]
    result = small.apply(small.params, X, "tanh", train=False, layers=["up", "down"])
    np.testing.assert_allclose(result, by_hand, rtol=1e-5)
    closed = nnopt.graph(lambda p, x, *, train: x @ p["up"], PARAMS, X, train=True)
    seen = closed.observe(PARAMS, [X])
    np.testing.assert_allclose(seen["input_absmax"]["up"], np.abs(X).max())
    masked = nnopt.graph(lambda p, x, *, mask: (x * mask) @ p["up"], PARAMS, X, mask=X)
    with pytest.raises(CompositionError, match="mask: is an array, and the graph holds no arrays"):
        masked.observe(PARAMS, [X])


def test_modules_of_equinox_may_hold_functions():
    model = eqx.nn.MLP(3, 2, 4, 1, activation=jax.nn.relu, key=KEY)
    found = nnopt.graph(lambda model, x: jax.vmap(model)(x), model, X)
    assert callable(found.params.activation)
    assert dict(found.axes) == {"layers/0/weight": Axes(1, 0), "layers/1/weight": Axes(1, 0)}
    (name,) = found.coupled.names
    small = found.shrink(model, {name: [1, 2]})
    first, second = (np.asarray(layer.weight) for layer in model.layers)
    bias, last = (np.asarray(layer.bias) for layer in model.layers)
    hidden = np.maximum(X @ first[[1, 2]].T + bias[[1, 2]], 0)
    result = small.apply(small.params, X)
    np.testing.assert_allclose(result, hidden @ second[:, [1, 2]].T + last, rtol=1e-4, atol=1e-6)
    seen = found.observe(model, [X])
    np.testing.assert_allclose(seen["input_absmax"]["layers/0/weight"], np.abs(X).max())


def test_states_of_nnx():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    definition, state = nnx.split(model)
    found = nnopt.graph(lambda state, x: nnx.merge(definition, state)(x), state, X)
    kernels = sorted(path for path in found.axes)
    assert len(kernels) == 2
    assert all(found.axes[path] == Axes(0, 1) for path in kernels)
    (name,) = found.coupled.names
    assert found.coupled[name].size == 4
    assert found.cost(state).macs == 5 * (3 * 4 + 4 * 2)


def test_part_of_what_comes_out_may_be_the_output():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(6)(x))
            return nn.Dense(2)(nn.relu(x))

    variables = jax.eval_shape(Net().init, KEY, X)

    def run(variables, x):
        return Net().apply(variables, x, mutable=["batch_stats"])

    whole = nnopt.graph(run, variables, X)
    assert not whole.coupled.dimensions
    first = nnopt.graph(run, variables, X, outputs=lambda found: found[0])
    assert first.coupled.names == ("params/Dense_0/kernel:1",)
    for found in (whole, first):
        assert set(found.axes.left_out) == {"params/Dense_1/kernel"}


def test_other_parameters_are_named_all_at_once(graph):
    for ask in (graph.cost, lambda params: graph.observe(params, [X])):
        with pytest.raises(SelectionError) as error:
            ask({"down": PARAMS["down"], "upp": PARAMS["up"], "more": X})
        text = str(error.value)
        assert "bias: is a leaf of the graph and is missing" in text
        assert "up: is a leaf of the graph and is missing" in text
        assert "upp: is not a leaf of the graph. Did you mean up?" in text
        assert "more: is not a leaf of the graph" in text
        with pytest.raises(ShapeError) as error:
            ask({"bias": drawn(5), "down": PARAMS["down"], "up": drawn(3, 5)})
        text = str(error.value)
        assert "bias: has shape (5,), and (4,) in the graph" in text
        assert "up: has shape (3, 5), and (3, 4) in the graph" in text
        assert "make a graph of these parameters" in text


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("groups", r"nnopt\.graph\(apply, params, \*inputs\)\.coupled"),
        ("Groups", r"nnopt\.trace\.CoupledAxes"),
        ("shrink", r"nnopt\.graph\(apply, params, \*inputs\)\.shrink\(params, keep\)"),
        ("cost", r"nnopt\.graph\(apply, params, \*inputs\)\.cost\(\)"),
        ("observe", r"nnopt\.graph\(.*\)\.observe\(params, batches, names\)"),
        ("uses", r"nnopt\.graph\(apply, params, \*inputs\)\.uses"),
    ],
)
def test_removed_names_say_the_new_ones(name, new):
    with pytest.raises(AttributeError, match=rf"nnopt_jax\.{name} is now .*{new}"):
        getattr(nnopt, name)
    with pytest.raises(ImportError, match=rf"nnopt_jax\.{name} is now .*{new}"):
        exec(f"from nnopt_jax import {name}")


@pytest.mark.parametrize(("name", "new"), [("Groups", "CoupledAxes"), ("Shrunk", "ShrunkModel")])
def test_removed_names_of_the_analysis_say_the_new_ones(name, new):
    with pytest.raises(AttributeError, match=rf"trace\.{name} is now nnopt_jax\.trace\.{new}"):
        getattr(nnopt.trace, name)
    with pytest.raises(ImportError, match=rf"trace\.{name} is now nnopt_jax\.trace\.{new}"):
        exec(f"from nnopt_jax.trace import {name}")


def test_former_names_of_rules_and_reports_say_the_new_ones():
    for name, new in (("Rule", "OpRule"), ("Start", "RuntimeStart")):
        with pytest.raises(ImportError, match=rf"primitives\.{name} is now .*\.{new}"):
            exec(f"from nnopt_jax.trace.primitives import {name}")
    with pytest.raises(AttributeError, match=r"dense is now PackedReport\.materialized"):
        _ = nnopt.trace.PackedReport(()).dense


def test_unknown_names_are_errors_as_ever():
    with pytest.raises(AttributeError, match="has no attribute 'grups'"):
        _ = nnopt.grups
    with pytest.raises(AttributeError):
        _ = nnopt.trace.Group


def test_functions_come_first():
    with pytest.raises(CompositionError, match="graph: dict is not a function; it comes before"):
        nnopt.graph(PARAMS, apply, X)

    def branching(p, x):
        return x @ p["up"] if p["bias"].sum() > 0 else x

    with pytest.raises(CompositionError, match=r"branching: test_graph_api.py:.* depends on bias"):
        nnopt.graph(branching, PARAMS, X)


def test_statistics_of_slopes_need_a_loss(graph):
    with pytest.raises(StatisticsError, match="'gradient' need"):
        graph.observe(PARAMS, [X], "gradient")


def test_several_graphs_share_parameters():
    """A prompt at once, and one token after another with what was kept."""
    params = {"embed": drawn(9, 4), "kv": drawn(4, 4), "out": drawn(4, 9)}

    def prefill(p, tokens):
        kept = p["embed"][tokens] @ p["kv"]
        return kept.mean(0) @ p["out"], kept

    def decode(p, token, kept):
        kept = jnp.concatenate([kept, (p["embed"][token] @ p["kv"])[None]])
        return kept.mean(0) @ p["out"], kept

    tokens = jnp.arange(5)
    first = nnopt.graph(prefill, params, tokens)
    second = nnopt.graph(decode, params, tokens[0], drawn(5, 4))
    expected = {"embed": Axes(0, 1, lookup=True), "kv": Axes(0, 1), "out": Axes(0, 1)}
    assert dict(first.axes) == dict(second.axes) == expected
    rows = [{row.path: row.macs for row in each.cost(params).rows} for each in (first, second)]
    assert (rows[0]["kv"], rows[1]["kv"]) == (5 * 16, 16)
    assert (rows[0]["out"], rows[1]["out"]) == (36, 36)
    kept = first.apply(params, tokens)[1]
    seen = second.observe(params, [(tokens[1], kept), (tokens[2], kept)])
    np.testing.assert_allclose(
        seen["input_absmax"]["kv"], np.abs(params["embed"][1:3]).max(), rtol=1e-6
    )
