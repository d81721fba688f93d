"""DKM: soft in training by the paper's formulas, hard when stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt
from nnopt_jax.arrays import Codebook, Masked, SoftCodebook

WEIGHTS = jax.random.normal(jax.random.key(0), (8, 6))
PARAMS = {"kernel": WEIGHTS}


def _step(x, table, tau):
    """One step of the paper, and what the model sees after it, in float64."""
    x, table = np.ravel(x).astype(np.float64), np.asarray(table, np.float64)

    def attention(table):
        parts = np.exp(-((x[:, None] - table[None, :]) ** 2) / tau)
        return parts / parts.sum(1, keepdims=True)

    near = attention(table)
    table = near.T @ x / near.sum(0)
    return table, attention(table) @ table


def test_training_sees_the_weighed_means_and_storage_the_nearest():
    tx = nnopt.compression.dkm(4, temperature=0.05, iterations=1)
    state = tx.init(PARAMS)
    table, wanted = _step(WEIGHTS, state.rest["kernel"][0], 0.05 * float(jnp.var(WEIGHTS)))
    trained = tx.encode(PARAMS, state, train=True)["kernel"]
    assert isinstance(trained, SoftCodebook)
    np.testing.assert_allclose(trained.materialize(), wanted.reshape(8, 6), atol=1e-5)
    _, state = tx.update(PARAMS, state)
    np.testing.assert_allclose(state.rest["kernel"][0], table, atol=1e-5)
    stored = tx.encode(PARAMS, state)["kernel"]
    assert isinstance(stored, Codebook)
    distance = np.abs(np.asarray(WEIGHTS)[..., None] - table)
    np.testing.assert_allclose(stored.materialize(), table[distance.argmin(-1)], atol=1e-5)


def test_gradients_pass_through_the_clustering():
    """Against finite differences of the loss that training sees, in a few directions."""
    tx = nnopt.compression.dkm(3, temperature=0.3, iterations=2)
    state = tx.init(PARAMS)
    slopes = jnp.cos(jnp.arange(48.0)).reshape(8, 6)

    def loss(params):
        return (params["kernel"] * slopes).sum()

    _, grads = nnopt.value_and_grad(loss, tx)(PARAMS, state)
    width = jnp.sqrt(0.3 * jnp.var(WEIGHTS))  # not differentiated: a setting, not a path

    def seen(x):
        table = state.rest["kernel"][0]
        for _ in range(2):
            near = jax.nn.softmax(-jnp.square((x.reshape(-1, 1) - table[None]) / width), axis=1)
            table = (near * x.reshape(-1, 1)).sum(0) / near.sum(0)
        near = jax.nn.softmax(-jnp.square((x.reshape(-1, 1) - table[None]) / width), axis=1)
        return ((near * table[None]).sum(1) * slopes.ravel()).sum()

    wanted = jax.grad(seen)(WEIGHTS)
    np.testing.assert_allclose(grads.train.params["kernel"], wanted, atol=1e-5)
    assert np.abs(np.asarray(wanted) - slopes).max() > 0.1  # no straight-through estimate


def test_the_scale_of_the_weights_does_not_matter():
    tx = nnopt.compression.dkm(4, temperature=0.1)
    state, large = tx.init(PARAMS), tx.init({"kernel": 1000 * WEIGHTS})
    seen = tx.encode(PARAMS, state, train=True)["kernel"].materialize()
    other = tx.encode({"kernel": 1000 * WEIGHTS}, large, train=True)["kernel"].materialize()
    np.testing.assert_allclose(other, 1000 * seen, rtol=1e-3, atol=1e-2)


def test_low_temperatures_train_what_is_stored():
    tx = nnopt.compression.dkm(4, temperature=1e-6)
    state = tx.init(PARAMS)
    seen = tx.encode(PARAMS, state, train=True)["kernel"].materialize()
    np.testing.assert_allclose(seen, tx.apply(PARAMS, state)["kernel"], atol=1e-4)


def test_pruned_weights_have_no_say_and_stay_zero_in_training():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.75), nnopt.compression.dkm(2))
    state = tx.init(PARAMS)
    leaf = tx.encode(PARAMS, state, train=True)["kernel"]
    assert isinstance(leaf, Masked)
    shown = np.asarray(leaf.materialize())
    mask = np.asarray(leaf.mask)
    assert not shown[~mask].any()
    assert np.abs(np.asarray(leaf.values.table)).min() > 0.5 * np.abs(shown[mask]).min()


def test_a_grid_for_the_table_is_seen_in_training():
    tx = nnopt.chain(nnopt.compression.dkm(4), nnopt.quantization.uniform(4))
    state = tx.init(PARAMS)
    table = tx.encode(PARAMS, state, train=True)["kernel"].table
    codes = np.asarray(table.codes)
    np.testing.assert_array_equal(codes, np.round(codes))
