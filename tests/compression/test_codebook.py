"""Weight sharing: what the table learns, when it is fitted, and what masks keep from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Codebook

WEIGHTS = jax.random.normal(jax.random.key(0), (8, 6))
PARAMS = {"kernel": WEIGHTS}
SLOPES = jnp.cos(jnp.arange(48.0)).reshape(8, 6)


def _loss(shown):
    return (shown["kernel"] * SLOPES).sum()


def _segments(indices, slopes, clusters):
    """The gradient of a table, summed by a loop."""
    total = np.zeros(clusters)
    for index, slope in zip(np.ravel(indices), np.ravel(slopes), strict=True):
        total[index] += slope
    return total


def test_table_gradient_is_the_sum_over_each_cluster():
    tx = nnopt.compression.codebook(5, learned=True)
    state = tx.init(PARAMS)
    _, grads = nnopt.value_and_grad(_loss, tx)(PARAMS, state)
    indices = tx.encode(PARAMS, state)["kernel"].indices
    np.testing.assert_allclose(
        grads.train.learned["kernel"][0], _segments(indices, SLOPES, 5), atol=1e-5
    )
    np.testing.assert_array_equal(grads.train.params["kernel"], SLOPES)


def test_masked_weights_add_nothing_to_the_table():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.compression.codebook(4, learned=True))
    state = tx.init(PARAMS)
    _, grads = nnopt.value_and_grad(_loss, tx)(PARAMS, state)
    leaf = tx.encode(PARAMS, state)["kernel"]
    wanted = _segments(leaf.values.indices, np.where(leaf.mask, SLOPES, 0), 4)
    np.testing.assert_allclose(grads.train.learned[1]["kernel"][0], wanted, atol=1e-5)


def test_table_on_a_grid_learns_straight_through():
    tx = nnopt.chain(nnopt.compression.codebook(4, learned=True), nnopt.quantization.uniform(8))
    state = tx.init(PARAMS)
    _, grads = nnopt.value_and_grad(_loss, tx)(PARAMS, state)
    indices = tx.encode(PARAMS, state)["kernel"].indices
    np.testing.assert_allclose(
        grads.train.learned[0]["kernel"][0], _segments(indices, SLOPES, 4), atol=1e-5
    )


def test_table_of_codes_learns_in_units_of_codes():
    tx = nnopt.chain(nnopt.quantization.uniform(8), nnopt.compression.codebook(4, learned=True))
    state = tx.init(PARAMS)
    _, grads = nnopt.value_and_grad(_loss, tx)(PARAMS, state)
    leaf = tx.encode(PARAMS, state)["kernel"]
    wanted = _segments(leaf.codes.indices, SLOPES, 4) * float(leaf.scale[0, 0])
    np.testing.assert_allclose(grads.train.learned[1]["kernel"][0], wanted, atol=1e-5)
    table = np.asarray(leaf.codes.table)
    np.testing.assert_array_equal(table, np.round(table))


def test_entries_that_change_places_are_still_the_nearest():
    tx = nnopt.compression.codebook(3, learned=True)
    table = jnp.array([1.0, -1.0, 0.25])
    state = tx.init(PARAMS)._replace(learned={"kernel": (table,)})
    distance = np.abs(np.asarray(WEIGHTS)[..., None] - np.asarray(table))
    wanted = np.asarray(table)[distance.argmin(-1)]
    np.testing.assert_array_equal(tx.apply(PARAMS, state)["kernel"], wanted)
    _, grads = nnopt.value_and_grad(_loss, tx)(PARAMS, state)
    np.testing.assert_allclose(
        grads.train.learned["kernel"][0], _segments(distance.argmin(-1), SLOPES, 3), atol=1e-5
    )


def test_pruned_weights_have_no_say_in_the_table():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.75), nnopt.compression.codebook(2))
    state = tx.init(PARAMS)
    leaf = tx.encode(PARAMS, state)["kernel"]
    kept = np.asarray(WEIGHTS)[np.asarray(leaf.mask)]
    for level in np.asarray(leaf.values.table):
        assert np.abs(level) >= np.abs(kept).min() - 1e-6


@pytest.mark.parametrize("every", [1, 3])
def test_table_is_fitted_anew_from_time_to_time(every):
    tx = nnopt.compression.codebook(2, every=every)
    state = tx.init(PARAMS)
    shifted = {"kernel": WEIGHTS + 10}
    for count in range(1, 7):
        before = np.asarray(state.rest["kernel"][0])
        _, state = tx.update(shifted, state)
        after = np.asarray(state.rest["kernel"][0])
        if count == every:
            assert (np.abs(after - before) > 5).all()
        else:
            np.testing.assert_allclose(after, before, atol=1e-5)


def test_random_start_without_a_key_is_refused():
    tx = nnopt.compression.codebook(4, init="random")
    with pytest.raises(nnopt.errors.ValueRangeError, match=r"tx\.init\(params, key=jax\.random"):
        tx.init(PARAMS)
    assert nnopt.plan(tx, PARAMS).rows[0].path == "kernel"


def test_random_start_is_drawn_with_the_key():
    tx = nnopt.compression.codebook(4, init="random", iterations=0)
    tables = [
        np.asarray(tx.init(PARAMS, key=jax.random.key(seed)).rest["kernel"][0])
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).any()


def test_a_leaf_draws_the_same_whatever_others_there_are():
    tx = nnopt.compression.codebook(4, init="random", iterations=0)
    key = jax.random.key(0)
    alone = tx.init(PARAMS, key=key).rest["kernel"]
    among = tx.init({"a": WEIGHTS, "kernel": WEIGHTS}, key=key).rest
    np.testing.assert_array_equal(alone[0], among["kernel"][0])
    assert (among["a"][0] != among["kernel"][0]).any()


def test_three_hundred_clusters_need_sixteen_bits():
    params = {"kernel": jax.random.normal(jax.random.key(1), (40, 10))}
    tx = nnopt.compression.codebook(300)
    leaf = tx.pack(params, tx.init(params))["kernel"]
    assert isinstance(leaf, Codebook)
    assert leaf.indices.dtype == jnp.uint16
    np.testing.assert_array_equal(leaf.materialize(), tx.apply(params, tx.init(params))["kernel"])


TREE = {"a": WEIGHTS, "b": 0.1 * WEIGHTS[:, :4], "c": jnp.ones(3)}


def _optimum(x, clusters):
    """The least distortion, by dynamic programming over all divisions, in float64."""
    x = np.sort(np.asarray(x, np.float64))
    total, squares = np.append(0, x.cumsum()), np.append(0, (x * x).cumsum())
    n = len(x)
    best = np.append(0, np.full(n, np.inf))
    for _ in range(clusters):
        best = np.array([0] + [
            min(best[i] + squares[j] - squares[i] - (total[j] - total[i]) ** 2 / (j - i)
                for i in range(j))
            for j in range(1, n + 1)])  # fmt: skip
    return best[n]


def test_one_table_for_all_leaves_is_nearly_the_best_there_is():
    tx = nnopt.compression.codebook(4, scope="tree")
    state = tx.init(TREE)
    assert set(state.rest) == {"*", "a", "b"}
    assert jax.tree.leaves(state.rest) == [state.rest["*"]]
    shown = tx.apply(TREE, state)
    error = sum(float(jnp.square(shown[name] - TREE[name]).sum()) for name in "ab")
    values = np.concatenate([np.ravel(TREE[name]) for name in "ab"])
    assert error < 1.001 * _optimum(values, 4) + 1e-6
    levels = np.unique(np.concatenate([np.ravel(shown[name]) for name in "ab"]))
    np.testing.assert_array_equal(levels, state.rest["*"])


def test_one_table_learns_from_all_leaves():
    tx = nnopt.compression.codebook(4, scope="tree", learned=True)
    state = tx.init(TREE)
    moving = nnopt.trainable(tx, TREE, state).learned
    assert [x.shape for x in jax.tree.leaves(moving)] == [(4,)]

    def loss(shown):
        return sum((shown[name] * SLOPES[:, : TREE[name].shape[1]]).sum() for name in "ab")

    _, grads = nnopt.value_and_grad(loss, tx)(TREE, state)
    encoded = tx.encode(TREE, state)
    wanted = sum(
        _segments(encoded[name].indices, SLOPES[:, : TREE[name].shape[1]], 4) for name in "ab"
    )
    np.testing.assert_allclose(grads.train.learned["*"], wanted, atol=1e-5)


def test_one_table_is_stored_once(tmp_path):
    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.5),
        nnopt.compression.codebook(64, scope="tree"),
    )
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(30, 20)), jnp.float32) for name in "abc"}
    apart = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.compression.codebook(64))
    packed, others = (link.pack(params, jax.jit(link.init)(params)) for link in (tx, apart))
    assert packed["a"].values.table is packed["c"].values.table
    sizes = []
    for tree in (packed, others):
        nnopt.save(tmp_path / "x.nnopt", tree)
        sizes.append((tmp_path / "x.nnopt").stat().st_size)
    assert sizes[0] < sizes[1] - 2 * 64 * 3


def test_one_table_is_fitted_anew_from_time_to_time():
    tx = nnopt.compression.codebook(2, scope="tree", every=2, where="re:a|b")
    state = tx.init(TREE)
    shifted = {name: x + 10 for name, x in TREE.items()}
    _, state = tx.update(shifted, state)
    assert np.abs(state.rest["*"]).max() < 5
    _, state = tx.update(shifted, state)
    assert np.asarray(state.rest["*"]).min() > 5


def test_one_table_cannot_hold_codes_and_values():
    tx = nnopt.chain(
        nnopt.quantization.uniform(8, where="a"), nnopt.compression.codebook(4, scope="tree")
    )
    with pytest.raises(
        nnopt.errors.CompositionError,
        match="codebook: a hold codes of a grid and b values; one state cannot",
    ):
        tx.init(TREE)
    both = nnopt.chain(nnopt.quantization.uniform(8), nnopt.compression.codebook(4, scope="tree"))
    shown = both.encode(TREE, both.init(TREE))
    np.testing.assert_array_equal(shown["a"].codes.table, shown["b"].codes.table)


def test_entries_of_all_leaves_count_for_one_table():
    tx = nnopt.compression.codebook(100, scope="tree")
    with pytest.raises(
        nnopt.errors.ShapeError, match="a, b: together have 80 entries for 100 clusters"
    ):
        tx.init(TREE)
    small = {"a": jnp.arange(4.0).reshape(2, 2), "b": 10 + jnp.arange(4.0).reshape(2, 2)}
    shared = nnopt.compression.codebook(8, scope="tree")
    np.testing.assert_array_equal(shared.apply(small, shared.init(small))["b"], small["b"])
