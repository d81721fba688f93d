"""Transforms bound to a model: which leaves they take, and what is wrong before weights move."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError
from nnopt_jax.transform.binding import AxesTable

LEFT_OUT = {"head": "the last product", "table": "is looked up"}


class Model:
    """What binding asks of a graph."""

    def __init__(self, params, found, uses=None, left_out=None, coupled=None):
        self.params = jax.eval_shape(lambda: params)
        unknown = {path: "is added" for path in params if path not in found}
        self.axes = AxesTable(found, uses or {}, left_out or {}, unknown)
        self.coupled = coupled


@pytest.fixture(scope="module")
def net():
    """A convolution of Equinox, whose bias has three axes; a table; dense layers `(out, in)`."""
    draws = np.random.default_rng(0)
    shapes = {
        "conv": (8, 4, 3, 3),
        "conv_bias": (8, 1, 1),
        "dense": (6, 8),
        "head": (4, 6),
        "table": (10, 8),
    }
    params = {name: jnp.asarray(draws.normal(size=s), jnp.float32) for name, s in shapes.items()}
    found = {
        "conv": Axes((2, 3, 1), 0),
        "dense": Axes(1, 0),
        "head": Axes(1, 0),
        "table": Axes(0, 1, lookup=True),
    }
    return params, Model(params, found, left_out=LEFT_OUT)


def test_by_default_the_weights_are_taken(net):
    params, graph = net
    tx = nnopt.pruning.magnitude(0.5)
    assert set(tx.init(params).rest) == set(params)  # the bias too: it has three axes
    assert set(tx.bind(graph).init(params).rest) == {"conv", "dense"}
    regrown = nnopt.pruning.rigl(0.5, end_step=9).bind(graph)
    assert set(regrown.init(params, key=jax.random.key(0)).rest) == {"conv", "dense"}


def test_what_is_left_out_is_taken_by_name(net):
    params, graph = net
    named = nnopt.pruning.magnitude(0.5, where="head").bind(graph)
    assert set(named.init(params).rest) == {"head"}
    inside = nnopt.at("re:head|dense", nnopt.pruning.magnitude(0.5)).bind(graph)
    assert set(inside.init(params).rest) == {"dense", "head"}


@pytest.mark.parametrize("form", ["alone", "chain", "at"])
def test_a_plan_lists_what_is_left_out(net, form):
    params, graph = net
    tx = nnopt.pruning.magnitude(0.5)
    if form == "chain":
        tx = nnopt.chain(tx, nnopt.quantization.uniform(8))
    elif form == "at":
        tx = nnopt.at("re:conv|dense", nnopt.chain(tx))
    plan = nnopt.plan(tx.bind(graph), params)
    notes = {row.path: row.note for row in plan.rows if row.note}
    wanted = {"head": "left out: the last product", "table": "left out: is looked up"}
    assert notes == ({} if form == "at" else wanted)
    assert ("notes" in str(plan).splitlines()[1]) == bool(notes)
    assert all(row["note"] == notes.get(row["path"], "") for row in plan.to_json()["rows"])


def test_a_plan_says_where_axes_are_assumed():
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones((8, 4)), "c": jnp.ones(4)}
    tx = nnopt.chain(nnopt.pruning.magnitude(pattern="2:4"), nnopt.pruning.magnitude(0.75))
    notes = {row.path: row.note for row in nnopt.plan(tx, params).rows}
    assert notes == {"a": "axes assumed", "b": "axes assumed", "c": ""}
    said = tx.bind(axes={"a": Axes(0, 1)})
    assert {row.path: row.note for row in nnopt.plan(said, params).rows} == notes | {"a": ""}
    single = nnopt.plan(nnopt.pruning.magnitude(0.5), params)  # single weights need no axes
    assert not any(row.note for row in single.rows)


def test_axes_that_no_leaf_has():
    params = {"a": {"k": jnp.ones((8, 4))}, "b": jnp.ones((8, 4))}
    tx = nnopt.pruning.magnitude(pattern="2:4").bind(axes={"c/k": Axes(0, 1), "a/*": Axes(0, 1)})
    for ask in (tx.init, lambda p: nnopt.plan(tx, p)):
        with pytest.raises(SelectionError, match=r"axes=\{'c/k': \.\.\.\} selects no leaf\. Did"):
            ask(params)
    # Under `at` the rest of the tree counts, too.
    inside = nnopt.at("b", nnopt.pruning.magnitude(pattern="2:4"))
    assert set(inside.bind(axes={"a/k": Axes(0, 1)}).init(params).rest) == {"b"}
    with pytest.raises(SelectionError, match="selects no leaf"):
        inside.bind(axes={"c/k": Axes(0, 1)}).init(params)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"**": Axes(0, 1), "a": Axes(1, 0)}, {"a": Axes(1, 0), "b": Axes(0, 1)}),
        ({"a": Axes(1, 0), "**": Axes(0, 1)}, {"a": Axes(1, 0), "b": Axes(0, 1)}),
        ({"re:[ab]": Axes(0, 1), "re:[bc]": Axes(1, 0)}, {"a": Axes(0, 1), "b": Axes(1, 0)}),
        ({"re:[bc]": Axes(1, 0), "re:[ab]": Axes(0, 1)}, {"a": Axes(0, 1), "b": Axes(0, 1)}),
    ],
)
def test_a_path_beats_patterns_and_a_later_pattern_the_ones_before(rules, expected):
    bound = nnopt.pruning.magnitude(pattern="2:4").bind(axes=rules)
    assert {path: bound.binding.of(path, (4, 8)) for path in expected} == expected


def test_exceptions_to_a_pattern_may_have_another_rank():
    params = {"a": jnp.ones((2, 4, 4)), "b": jnp.ones((8, 4))}
    rules = {"**": Axes(0, 1), "a": Axes(1, 2, 0)}
    tx = nnopt.pruning.magnitude(pattern="2:4").bind(axes=rules)
    masks = tx.pack(params, tx.init(params))
    assert all((np.asarray(nnopt.materialize(leaf)) != 0).any() for leaf in masks.values())
    graph = nnopt.graph(lambda p, x: x @ p["a"][0] + x @ p["b"][:4], params, jnp.ones(4))
    with pytest.raises(ShapeError, match=r"a: .*contradicts the graph"):
        tx.bind(graph, axes={"**": Axes(0, 1), "a": Axes(2, 1, 0)})


def test_axes_of_another_rank():
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones((8, 4, 2))}
    tx = nnopt.pruning.magnitude(0.5).bind(axes={"*": Axes(0, 1)})
    with pytest.raises(ShapeError, match=r"b: Axes\(0, 1\) gives roles to axes 0, 1, and shape"):
        tx.init(params)


def test_a_graph_of_other_parameters(net):
    params, graph = net
    tx = nnopt.pruning.magnitude(0.5).bind(graph)
    with pytest.raises(ShapeError, match=r"(?s)conv: has shape .*dense: has shape .*tx\.bind"):
        tx.init(params | {"conv": jnp.ones((8, 5, 3, 3)), "dense": jnp.ones((7, 8))})
    others = {("dense2" if path == "dense" else path): leaf for path, leaf in params.items()}
    with pytest.raises(SelectionError, match=r"(?s)dense2: is not among .*dense: is in the graph"):
        tx.init(others)


def test_axes_that_contradict_the_graph(net):
    params, graph = net
    tx = nnopt.pruning.magnitude(pattern="2:4")
    with pytest.raises(ShapeError, match=r"(?s)dense: axes=.* contradicts .*head: axes="):
        tx.bind(graph, axes={"re:dense|head": Axes(0, 1)})
    with pytest.raises(CompositionError, match=r"a dict is not a graph; give nnopt\.graph"):
        tx.bind(params)


def test_a_leaf_whose_uses_disagree():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8)), "c": jnp.ones((8, 8))}
    both = (Axes(0, 1), Axes(1, 0))
    found = {"a": both[0], "b": both[1], "c": both[0]}
    uses = {"a": both, "b": both, "c": (both[0], Axes(0, 1, lookup=True))}
    graph = Model(params, found, uses)
    assert set(nnopt.pruning.magnitude(0.5).bind(graph).init(params).rest) == {"a", "b", "c"}
    tx = nnopt.pruning.magnitude(pattern="2:4")
    said = r"uses disagree: Axes\(0, 1\) and Axes\(1, 0\); give tx\.bind\(graph, axes=\{'"
    with pytest.raises(ShapeError, match=rf"(?s)a: .*{said}a': .*b: .*{said}b'"):
        tx.bind(graph)
    bound = tx.bind(graph, axes={"re:[ab]": Axes(1, 0)})
    mask = np.asarray(bound.init(params).rest["a"]["mask"])
    np.testing.assert_array_equal(mask, np.tile([True, True, False, False], (8, 2)))


def test_structured_takes_the_coupled_axes_of_its_graph():
    def apply(p, x):
        return jnp.tanh(x @ p["fc1"]) @ p["fc2"]

    params = {"fc1": jnp.array([[1.0, 3.0]]), "fc2": jnp.array([[2.0], [1.0]])}
    graph = nnopt.graph(apply, params, jnp.ones((1, 1)))
    tx = nnopt.chain(nnopt.pruning.structured(0.5), nnopt.quantization.uniform(8)).bind(graph)
    state = tx.init(params)
    np.testing.assert_array_equal(nnopt.pruning.kept_units(state[0])["fc1:1"], [False, True])
    with pytest.raises(ShapeError, match="fc1: has shape"):
        nnopt.pruning.structured(0.5).bind(graph).init(params | {"fc1": jnp.ones((2, 2))})


def test_a_module_with_functions_in_it():
    net = eqx.nn.MLP(8, 4, 16, 2, key=jax.random.key(0))
    tx = nnopt.chain(
        nnopt.pruning.magnitude(pattern="2:4"), nnopt.quantization.uniform(8, where="**/weight")
    ).bind(axes={"**/weight": Axes(1, 0)})
    assert {row.path for row in nnopt.plan(tx, net).rows} == {
        f"layers/{i}/{name}" for i in range(3) for name in ("weight", "bias")
    }
    state, x = tx.init(net), jnp.linspace(-1.0, 1.0, 8)
    kept = np.asarray(tx.apply(net, state).layers[0].weight) != 0
    assert (kept.reshape(16, 2, 4).sum(2) <= 2).all()
    value, grads = nnopt.value_and_grad(lambda p, x: jnp.square(p(x)).sum(), tx)(net, state, x)
    moving, optimizer = nnopt.trainable(tx, net, state), optax.adam(1e-2)
    updates, _ = optimizer.update(grads.train, optimizer.init(moving), moving)
    net, state = nnopt.step(tx, net, state, updates, grads)
    shown = tx.apply(net, state)
    assert float(jnp.square(shown(x)).sum()) < float(value)
    packed = nnopt.materialize(tx.pack(net, state))
    assert packed.activation is net.activation
    for mine, theirs in zip(packed.layers, shown.layers, strict=True):
        np.testing.assert_array_equal(mine.weight, theirs.weight)


def test_saving_a_function_names_its_leaf(tmp_path):
    params = {"act": jnp.tanh, "w": jnp.ones((4, 4))}
    tx = nnopt.pruning.magnitude(0.5)
    with pytest.raises(nnopt.errors.ArtifactError, match="act: is a "):
        nnopt.save(tmp_path / "a.nnopt", tx.pack(params, tx.init(params)))


def test_a_plan_says_that_uses_disagree():
    params = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 4)), "head": jnp.ones((4, 2))}

    def apply(p, x):
        return (x @ p["w"] + x @ p["w"].T) @ p["v"] @ p["head"]

    tx = nnopt.quantization.uniform(8, granularity="channel")
    plan = nnopt.plan(tx.bind(nnopt.graph(apply, params, jnp.ones((3, 4)))), params)
    (row,) = (row for row in plan.rows if row.path == "w")
    assert row.after == "unchanged"
    assert "left out: its uses disagree" in row.note
