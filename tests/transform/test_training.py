"""The loop a user writes, against loops written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Quantized

PARAMS = {"bias": jnp.zeros(4), "kernel": jax.random.normal(jax.random.key(0), (6, 4))}
BATCHES = [
    (jax.random.normal(jax.random.key(i), (5, 6)), jax.random.normal(jax.random.key(9 + i), (5, 4)))
    for i in range(6)
]


def _loss(params, batch):
    x, y = batch
    return ((x @ params["kernel"] + params["bias"][None] - y) ** 2).mean()


def _train(tx, optimizer, params, batches, *, accumulate=False):
    state = tx.init(params)
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def one(params, state, opt_state, batch):
        loss, grads = nnopt.value_and_grad(_loss, tx)(params, state, batch)
        free = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, free)
        done = opt_state.gradient_step if accumulate else None
        params, state = nnopt.step(tx, params, state, updates, grads, step=done)
        return params, state, opt_state, loss

    for batch in batches:
        params, state, opt_state, loss = one(params, state, opt_state, batch)
    return params, state, loss


def _hand_mask(weights, kept):
    order = np.argsort(-np.abs(np.asarray(weights)).ravel(), kind="stable")
    mask = np.zeros(weights.size, bool)
    mask[order[:kept]] = True
    return mask.reshape(weights.shape)


def test_hard_pruning_is_the_loop_one_would_write():
    schedule = optax.linear_schedule(0.0, 0.75, 4)
    got, state, _ = _train(nnopt.pruning.magnitude(schedule), optax.adam(0.05), PARAMS, BATCHES)

    optimizer, params = optax.adam(0.05), PARAMS
    opt_state = optimizer.init(params)
    for count, batch in enumerate(BATCHES, 1):
        updates, opt_state = optimizer.update(jax.grad(_loss)(params, batch), opt_state, params)
        params = optax.apply_updates(params, updates)
        share = 0.75 * min(count, 4) / 4
        mask = _hand_mask(params["kernel"], round(24 * (1 - share)))
        params = params | {"kernel": jnp.where(mask, params["kernel"], 0)}
    np.testing.assert_allclose(got["kernel"], params["kernel"], atol=1e-6)
    np.testing.assert_allclose(got["bias"], params["bias"], atol=1e-6)
    np.testing.assert_array_equal(state.rest["kernel"]["mask"], mask)


def test_fake_quantization_is_the_loop_one_would_write():
    got, _, _ = _train(nnopt.quantization.uniform(4), optax.sgd(0.1), PARAMS, BATCHES)

    params = PARAMS
    for batch in BATCHES:
        scale = jnp.abs(params["kernel"]).max() / 7
        rounded = jnp.clip(jnp.round(params["kernel"] / scale), -7, 7) * scale
        slopes = jax.grad(_loss)(params | {"kernel": rounded}, batch)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes)
    np.testing.assert_allclose(got["kernel"], params["kernel"], atol=1e-5)


def test_learned_tables_move_with_the_optimizer():
    tx = nnopt.compression.codebook(4, learned=True)
    state = tx.init(PARAMS)
    table = np.asarray(state.learned["kernel"][0])
    weights = np.asarray(PARAMS["kernel"])
    chosen = np.abs(weights[..., None] - table).argmin(-1)
    slopes = jax.grad(_loss)(PARAMS | {"kernel": jnp.asarray(table[chosen])}, BATCHES[0])
    wanted = table - 0.1 * np.array([np.asarray(slopes["kernel"])[chosen == c].sum()
                                     for c in range(4)])  # fmt: skip
    params, state, _ = _train(tx, optax.sgd(0.1), PARAMS, BATCHES[:1])
    np.testing.assert_allclose(state.learned["kernel"][0], wanted, atol=1e-5)
    np.testing.assert_allclose(
        params["kernel"], weights - 0.1 * np.asarray(slopes["kernel"]), atol=1e-5
    )


def test_accumulation_counts_real_steps():
    """Two batches a step: masks move once every two, and the gradients are their mean."""
    schedule = optax.linear_schedule(0.0, 0.75, 3)
    tx = nnopt.pruning.magnitude(schedule, mode="soft")
    optimizer = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    got, state, _ = _train(tx, optimizer, PARAMS, BATCHES, accumulate=True)
    assert int(state.count) == 3
    assert int(state.rest["kernel"]["mask"].sum()) == 6

    params = PARAMS
    for count in range(3):
        share = 0.75 * count / 3
        mask = _hand_mask(params["kernel"], round(24 * (1 - share)))
        shown = params | {"kernel": jnp.where(mask, params["kernel"], 0)}
        both = [jax.grad(_loss)(shown, batch) for batch in BATCHES[2 * count : 2 * count + 2]]
        params = jax.tree.map(lambda p, a, b: p - 0.05 * (a + b), params, *both)
    np.testing.assert_allclose(got["kernel"], params["kernel"], atol=1e-5)


def test_integers_among_the_parameters_are_left_alone():
    params = {**PARAMS, "table": jnp.arange(3), "flag": jnp.array([True])}
    tx = nnopt.pruning.magnitude(0.5)
    state = tx.init(params)
    free = nnopt.trainable(tx, params, state)
    assert free.params["table"] is None
    assert free.params["flag"] is None

    def loss(shown, batch):
        assert shown["table"].dtype == jnp.int32
        return _loss(shown, batch) * shown["table"][1]

    value, grads = nnopt.value_and_grad(loss, tx)(params, state, BATCHES[0])
    assert grads.train.params["table"] is None
    assert grads.dense["table"] is None
    optimizer = optax.adam(0.1)
    updates, _ = optimizer.update(grads.train, optimizer.init(free), free)
    moved, _ = nnopt.step(tx, params, state, updates, grads)
    np.testing.assert_array_equal(moved["table"], [0, 1, 2])
    assert np.isfinite(float(value))


def test_packed_parameters_train_through_their_floats():
    tx = nnopt.quantization.uniform(8, granularity="channel")
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    same = nnopt.chain()
    params, _, last = _train(same, optax.sgd(1e-6), packed, BATCHES[:1] * 30)
    kernel = params["kernel"]
    assert isinstance(kernel, Quantized)
    np.testing.assert_array_equal(kernel.codes, packed["kernel"].codes)
    assert (np.asarray(kernel.scale) != np.asarray(packed["kernel"].scale)).all()
    assert float(last) < float(_loss(nnopt.materialize(packed), BATCHES[0]))

    slopes = jax.grad(_loss)(nnopt.materialize(packed), BATCHES[0])["kernel"]
    _, grads = nnopt.value_and_grad(_loss, same)(packed, (), BATCHES[0])
    wanted = (np.asarray(slopes) * np.asarray(packed["kernel"].codes)).sum(0, keepdims=True)
    np.testing.assert_allclose(grads.train.params["kernel"].scale, wanted, atol=1e-4)


def test_aux_is_passed_on():
    tx = nnopt.pruning.magnitude(0.5)
    both = nnopt.value_and_grad(lambda p: (p["kernel"].sum(), "note"), tx, has_aux=True)
    (value, note), _ = both(PARAMS, tx.init(PARAMS))
    assert note == "note"
    np.testing.assert_allclose(value, PARAMS["kernel"].sum(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_updates_keep_the_dtype_of_the_parameters(dtype):
    tx = nnopt.pruning.magnitude(0.5)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    state = tx.init(params)
    updates = jax.tree.map(
        lambda x: jnp.ones(x.shape, jnp.float32), nnopt.trainable(tx, params, state)
    )
    moved, _ = nnopt.step(tx, params, state, updates)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(moved["bias"], np.ones(4))


def test_the_former_name_of_dense_gradients_says_the_new_one():
    grads = nnopt.Grads(train=None, dense={"w": 1.0})
    with pytest.raises(AttributeError, match=r"grads\.shown is now grads\.dense"):
        _ = grads.shown
