"""Units are chosen by their norm, masked while training, and taken out in the end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, SelectionError, ValueRangeError

UNITS = 8


def apply(params, x):
    x = jax.nn.relu(x @ params["fc1"] + params["fc1_bias"][None])
    return jax.nn.relu(x @ params["fc2"]) @ params["fc3"]


@pytest.fixture(scope="module")
def net():
    draws = np.random.default_rng(0)
    shapes = {"fc1": (4, UNITS), "fc1_bias": (UNITS,), "fc2": (UNITS, 6), "fc3": (6, 3)}
    params = {name: draws.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    x = draws.normal(size=(5, 4)).astype(np.float32)
    return params, nnopt.graph(apply, params, x), x


def norms(params):
    """By hand: column, bias and next row of each unit."""
    first = (params["fc1"] ** 2).sum(0) + params["fc1_bias"] ** 2 + (params["fc2"] ** 2).sum(1)
    second = (params["fc2"] ** 2).sum(0) + (params["fc3"] ** 2).sum(1)
    return {"fc1:1": np.sqrt(first), "fc2:1": np.sqrt(second)}


def greatest(scores, count):
    return np.isin(np.arange(scores.size), np.argsort(-scores)[:count])


def test_the_units_of_greatest_norm_stay(net):
    params, graph, _ = net
    tx = nnopt.pruning.structured(0.5)
    state = tx.init(params, graph=graph)
    units = nnopt.pruning.kept_units(state)
    for name, scores in norms(params).items():
        np.testing.assert_array_equal(units[name], greatest(scores, scores.size // 2))
    shown = tx.apply(params, state)
    np.testing.assert_array_equal(shown["fc1"][:, ~units["fc1:1"]], 0)
    np.testing.assert_array_equal(
        shown["fc1_bias"], np.where(units["fc1:1"], params["fc1_bias"], 0)
    )
    both = np.outer(units["fc1:1"], units["fc2:1"])
    np.testing.assert_array_equal(shown["fc2"], np.where(both, params["fc2"], 0))


def test_taken_out_it_computes_what_the_mask_computes(net):
    params, graph, x = net
    tx = nnopt.pruning.structured(0.5)
    state = tx.init(params, graph=graph)
    small = graph.shrink(params, nnopt.pruning.kept_units(state))
    assert small.widths == {"fc1": (4, 4), "fc1_bias": (4,), "fc2": (4, 3), "fc3": (3, 3)}
    np.testing.assert_allclose(
        small.apply(small.params, x), apply(tx.apply(params, state), x), rtol=1e-5, atol=1e-6
    )


def test_one_threshold_over_all_dimensions(net):
    params, graph, _ = net
    state = nnopt.pruning.structured(0.5, allocation="global").init(params, graph=graph)
    units = nnopt.pruning.kept_units(state)
    even = {name: scores / scores.mean() for name, scores in norms(params).items()}
    cut = np.sort(np.concatenate([*even.values()]))[-7]  # seven of fourteen
    for name, scores in even.items():
        np.testing.assert_array_equal(units[name], scores >= cut)


def test_one_unit_always_stays(net):
    params, graph, _ = net
    state = nnopt.pruning.structured(1.0).init(params, graph=graph)
    assert [int(x.sum()) for x in nnopt.pruning.kept_units(state).values()] == [1, 1]


def test_counts_are_rounded_up_to_a_multiple(net):
    params, graph, _ = net
    state = nnopt.pruning.structured(0.6, multiple=4).init(params, graph=graph)
    kept = {name: int(x.sum()) for name, x in nnopt.pruning.kept_units(state).items()}
    assert kept == {"fc1:1": 4, "fc2:1": 4}


def test_dimensions_and_scores_of_ones_own(net):
    params, graph, _ = net
    tx = nnopt.pruning.structured(
        0.5, where="fc1:*", score=lambda path, leaf: leaf * (path == "fc1_bias")
    )
    units = nnopt.pruning.kept_units(tx.init(params, graph=graph))
    assert list(units) == ["fc1:1"]
    np.testing.assert_array_equal(units["fc1:1"], greatest(params["fc1_bias"], UNITS // 2))


@pytest.mark.parametrize("mode", ["hard", "soft", "frozen"])
def test_a_schedule_prunes_while_the_network_learns(net, mode):
    params, graph, x = net
    schedule = optax.linear_schedule(0.0, 0.5, 3)
    tx = nnopt.pruning.structured(schedule, mode=mode)
    optimizer = optax.sgd(1e-2)
    state = tx.init(params, graph=graph)
    memory = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def step(params, state, memory):
        _, grads = nnopt.value_and_grad(lambda p: jnp.square(apply(p, x)).sum(), tx)(params, state)
        updates, memory = optimizer.update(grads.train, memory)
        return *nnopt.step(tx, params, state, updates, grads), memory

    kept = []
    for _ in range(4):
        params, state, memory = step(params, state, memory)
        kept.append(int(nnopt.pruning.kept_units(state)["fc1:1"].sum()))
    assert kept == [7, 5, 4, 4]  # shares of 1/6, 1/3, 1/2
    gone = ~np.asarray(nnopt.pruning.kept_units(state)["fc1:1"])
    assert (np.asarray(params["fc1"])[:, gone] == 0).all() == (mode == "hard")
    assert (np.asarray(tx.apply(params, state)["fc1"])[:, gone] == 0).all()


def test_later_links_keep_its_zeros(net):
    params, graph, x = net
    tx = nnopt.chain(nnopt.pruning.structured(0.5), nnopt.quantization.uniform(8, where="**"))
    state = tx.init(params, graph=graph)
    packed = tx.pack(params, state)
    units = nnopt.pruning.kept_units(state[0])
    dense = nnopt.materialize(packed)
    np.testing.assert_array_equal(dense["fc1"][:, ~units["fc1:1"]], 0)
    small = graph.shrink(dense, units)
    np.testing.assert_allclose(small.apply(small.params, x), apply(dense, x), rtol=1e-5, atol=1e-5)


def test_errors_say_what_to_give(net):
    params, graph, _ = net
    with pytest.raises(CompositionError, match=r"has no graph; bind it, tx\.bind\("):
        nnopt.pruning.structured(0.5).init(params)
    with pytest.raises(CompositionError, match=r"takes no graph=; write .*\.bind\(graph\)"):
        nnopt.pruning.structured(0.5, graph=graph)
    with pytest.raises(SelectionError, match="fc1:2"):
        nnopt.pruning.structured(0.5, where="fc1:2").init(params, graph=graph)
    with pytest.raises(CompositionError, match=r"not a state of pruning\.structured"):
        nnopt.pruning.kept_units(nnopt.pruning.magnitude(0.5).init(params))
    with pytest.raises(ValueRangeError, match=r"multiple.*allocation='uniform' only"):
        nnopt.pruning.structured(0.5, allocation="global", multiple=8)
    with pytest.raises(ValueRangeError, match="score"):
        nnopt.pruning.structured(0.5, score="l3")
