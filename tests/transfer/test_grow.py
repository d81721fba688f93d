"""Units added where the function itself shows them: what it computes stays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, ValueRangeError
from nnopt_jax.transfer import grow
from nnopt_jax.zoo.lenet import lenet_300_100
from tests import tolerance

KEY = jax.random.key(0)


def drawn(*shape):
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.normal(size=shape, scale=0.5).astype(np.float32))


def net(channels=4, hidden=6):
    """Channels flattened with places, normalization by statistics, a residual, a gate in one."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(channels, (3, 3))(x)))
            x = x + nn.Conv(channels, (3, 3))(x)
            x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
            gate, up = jnp.split(nn.Dense(2 * hidden, name="gate")(x), 2, -1)
            return nn.Dense(3, name="out")(nn.silu(gate) * up)

    return Net()


def lstm(features):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(features))(x))

    return Net()


def stack(width, hidden):
    """Layers of a scan, each with a residual."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(width)(nn.tanh(nn.Dense(hidden)(x))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            rolled = nn.scan(Layer, {"params": 0}, split_rngs={"params": True}, length=3)
            return nn.Dense(2)(rolled(name="layers")(nn.Dense(width)(x), None)[0])

    return Net()


def attention(heads, size):
    """Heads, and what values hold of each."""

    def apply(p, x):
        q, k = (jnp.einsum("td,dhk->thk", x, p[name]) for name in ("q", "k"))
        v = jnp.einsum("td,dhk->thk", x, p["v"])
        scores = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k), -1)
        return jnp.einsum("hts,shk->thk", scores, v).reshape(len(x), -1) @ p["o"]

    shapes = {"q": (5, heads, 4), "k": (5, heads, 4), "v": (5, heads, size), "o": (heads * size, 2)}
    return apply, {name: drawn(*shape) for name, shape in shapes.items()}


def linen(make, small, large, x):
    module = make(*small)
    params = module.init(KEY, x)
    # No zeros or ones that would hide what goes where.
    params = jax.tree.map(lambda leaf: leaf + jnp.abs(drawn(*leaf.shape)) + 0.1, params)
    return module.apply, make(*large).apply, params, x


def functions(make, small, large, x):
    apply, params = make(*small)
    return apply, apply, params, x


CASES = {
    "net": (
        linen, net, (4, 6), (7, 9), drawn(2, 4, 4, 2),
        {"params/Conv_0/kernel:3": 7, "params/gate/kernel:1": 9},
    ),
    "lstm": (linen, lstm, (4,), (7,), drawn(2, 3, 2),
             {"params/OptimizedLSTMCell_0/hf/kernel:1": 7}),
    "stack": (
        linen, stack, (4, 5), (6, 8), drawn(2, 3),
        {"params/layers/Dense_0/kernel:2": 6, "params/layers/Dense_1/kernel:2": 8},
    ),
    "heads": (functions, attention, (2, 3), (5, 3), drawn(6, 5), {"k:1": 5}),
    "values": (functions, attention, (2, 3), (2, 5), drawn(6, 5), {"v:2": 5}),
}  # fmt: skip


LONG = ("net", "stack", "heads")


@pytest.mark.parametrize("incoming", ["copy", pytest.param("random", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in CASES]
)
def test_the_wider_network_computes_the_same(name, incoming):
    how, make, small, large, x, widths = CASES[name]
    apply, wide, params, x = how(make, small, large, x)
    graph = nnopt.graph(apply, params, x)
    grown = jax.jit(lambda params: grow(graph, params, widths, key=KEY, incoming=incoming))(params)
    before, after = apply(params, x), wide(grown, x)
    within = tolerance.relative(wide, grown, x) * float(jnp.abs(before).max())
    np.testing.assert_allclose(after, before, rtol=0, atol=within)
    assert sum(leaf.size for leaf in jax.tree.leaves(grown)) > sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    # New units learn: what reads them has gradients.
    grads = jax.grad(lambda p: jnp.square(wide(p, x)).sum())(grown)
    for each in widths:
        path, axis = sorted(graph.coupled[each].consumed)[0]
        old, new = (nnopt.tree.flatten(t)[path] for t in (params, grads))
        added = jnp.take(new, jnp.arange(old.shape[axis], new.shape[axis]), axis)
        assert float(jnp.abs(added).max()) > 0


def test_old_units_stay_as_they_were_and_new_ones_are_copies():
    apply = lambda p, x: jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]  # noqa: E731
    params = {"a": drawn(3, 4), "bias": drawn(4), "b": drawn(4, 2)}
    graph = nnopt.graph(apply, params, jnp.ones(3))
    wide = grow(graph, params, {"a:1": 10}, key=KEY, noise=0.0)
    for path, axis in (("a", 1), ("bias", 0), ("b", 0)):
        np.testing.assert_array_equal(jnp.take(wide[path], jnp.arange(4), axis), params[path])
    copies = [int(np.flatnonzero(np.asarray(params["bias"]) == x)[0]) for x in wide["bias"][4:]]
    assert sorted(np.bincount(copies)) == [1, 1, 2, 2]
    np.testing.assert_array_equal(wide["a"][:, 4:], params["a"][:, np.array(copies)])
    np.testing.assert_array_equal(wide["b"][4:], 0)


def test_lenet_grows_to_its_full_width():
    half, full = lenet_300_100(width=0.5), lenet_300_100()
    x = jnp.abs(drawn(5, 28, 28, 1))
    params = half.init(KEY, x)
    graph = nnopt.graph(half.apply, params, x)
    assert {each.name: each.size for each in graph.coupled.dimensions} == {
        "params/fc1/kernel:1": 150, "params/fc2/kernel:1": 50,
    }  # fmt: skip
    widths = {name: 2 * graph.coupled[name].size for name in graph.coupled.names}
    grown = grow(graph, params, widths, key=KEY)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(
        jnp.shape, jax.eval_shape(full.init, KEY, x)
    )
    before = half.apply(params, x)
    within = tolerance.relative(full.apply, grown, x) * float(jnp.abs(before).max())
    np.testing.assert_allclose(full.apply(grown, x), before, rtol=0, atol=within)


def test_parts_of_one_axis_grow_side_by_side():
    def apply(p, x):
        return jnp.concatenate([jnp.tanh(x @ p["a"]), jnp.sin(x @ p["b"])], -1) @ p["out"]

    params = {"a": drawn(3, 4), "b": drawn(3, 5), "out": drawn(9, 2)}
    graph = nnopt.graph(apply, params, jnp.ones(3))
    wide = grow(graph, params, {"b:1": 7, "a:1": 6}, key=KEY)
    assert jax.tree.map(jnp.shape, wide) == {"a": (3, 6), "b": (3, 7), "out": (13, 2)}
    np.testing.assert_allclose(apply(wide, drawn(3)), apply(params, drawn(3)), rtol=1e-5)
    np.testing.assert_array_equal(wide["out"][4:6], 0)
    np.testing.assert_array_equal(wide["out"][6:11], params["out"][4:])


def test_what_more_units_would_change_is_refused():
    def apply(p, x):
        x = x @ p["in"]
        x = (x - x.mean()) * p["scale"]
        return jnp.sum((x @ p["q"]) * (x @ p["k"])) + (x @ p["out"]).sum()

    params = {"in": drawn(3, 4), "scale": drawn(4), "q": drawn(4, 5), "k": drawn(4, 5),
              "out": drawn(4, 2)}  # fmt: skip
    graph = nnopt.graph(apply, params, jnp.ones(3))
    widths = {each.name: each.size + 1 for each in graph.coupled.dimensions}
    with pytest.raises(CompositionError) as caught:
        grow(graph, params, widths, key=KEY)
    assert "in:1: something takes a number over all of its units" in str(caught.value)
    assert "k:1: something takes a number over all" in str(caught.value)


def test_bad_input_is_told():
    apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    params = {"a": drawn(3, 4), "b": drawn(4, 2)}
    graph = nnopt.graph(apply, params, jnp.ones(3))
    with pytest.raises(SelectionError, match=r"'a:0' is not a dimension"):
        grow(graph, params, {"a:0": 6}, key=KEY)
    with pytest.raises(ValueRangeError, match=r"a:1: width 4 is not above the 4 units there are"):
        grow(graph, params, {"a:1": 4}, key=KEY)
    with pytest.raises(ShapeError, match=r"b: is float32\[5,2\], and \(4, 2\) in the graph"):
        grow(graph, params | {"b": drawn(5, 2)}, {"a:1": 6}, key=KEY)
    with pytest.raises(SelectionError, match=r"b: is missing"):
        grow(graph, {"a": params["a"]}, {"a:1": 6}, key=KEY)
    with pytest.raises(CompositionError, match=r"graph is a function; give nnopt\.graph"):
        grow(apply, params, {"a:1": 6}, key=KEY)
    with pytest.raises(ValueRangeError, match=r"incoming='split'"):
        grow(graph, params, {"a:1": 6}, key=KEY, incoming="split")


def test_packed_leaves_become_arrays_and_others_stay():
    apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] @ p["c"]  # noqa: E731
    tx = nnopt.quantization.uniform(8)
    params = {"a": drawn(3, 4), "b": drawn(4, 2), "c": drawn(2, 2)}
    packed = tx.pack(params, tx.init(params))
    graph = nnopt.graph(apply, params, jnp.ones(3))
    wide = grow(graph, packed, {"a:1": 6}, key=KEY)
    assert wide["a"].shape == (3, 6)
    assert wide["c"] is packed["c"]
    dense = nnopt.materialize(packed)
    np.testing.assert_allclose(
        apply(nnopt.materialize(wide), drawn(3)), apply(dense, drawn(3)), rtol=1e-5
    )
