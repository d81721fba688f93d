"""Packed parameters train: gradients, optimizer state and updates for the survivors alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError
from tests.tolerance import relative

RNG = np.random.default_rng(0)
PARAMS = {
    "body": {"bias": jnp.zeros(8), "kernel": jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32)},
    "head": {"kernel": jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)},
}
X = jnp.asarray(RNG.normal(size=(10, 16)), jnp.float32)
PRUNE = nnopt.pruning.magnitude(0.75)
NONE = nnopt.chain()


def loss(params, x):
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"][None])
    return jnp.square(hidden @ params["head"]["kernel"]).sum()


def packed():
    return PRUNE.pack(PARAMS, PRUNE.init(PARAMS))


def test_gradients_are_those_of_the_masked_dense_model():
    small = packed()
    dense = jax.grad(loss)(nnopt.materialize(small), X)
    value, grads = jax.jit(nnopt.value_and_grad(loss, NONE))(small, (), X)
    np.testing.assert_allclose(value, loss(nnopt.materialize(small), X), rtol=1e-6)
    for name in ("body", "head"):
        kept = np.asarray(small[name]["kernel"].support.materialize()).astype(bool)
        got, wanted = grads.train.params[name]["kernel"].values, np.asarray(dense[name]["kernel"])
        most = relative(jax.grad(loss), nnopt.materialize(small), X) * np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted[kept], rtol=0, atol=most)
    assert grads.train.params["head"]["kernel"].values.size == 8


def test_the_optimizer_remembers_the_survivors_alone():
    small = packed()
    moments = optax.adam(1e-2).init(nnopt.trainable(NONE, small, ()))
    floats = [x.size for x in jax.tree.leaves(moments) if x.ndim]
    assert sorted(floats) == sorted(2 * [8, 128 // 4, 32 // 4])
    dense = optax.adam(1e-2).init(nnopt.trainable(PRUNE, PARAMS, PRUNE.init(PARAMS)))
    whole = [x.size for x in jax.tree.leaves(dense) if x.ndim]
    assert sum(whole) == 2 * (8 + 128 + 32)


def test_a_step_is_that_of_the_dense_model_at_the_survivors():
    """Five steps of Adam, against optax on dense parameters whose gradient is masked."""
    optimizer = optax.adam(1e-2)
    small = packed()
    moments = optimizer.init(nnopt.trainable(NONE, small, ()))
    masks = jax.tree.map(lambda x: (x != 0).astype(x.dtype), nnopt.materialize(small))
    masks["body"]["bias"] = jnp.ones(8)
    dense = nnopt.materialize(small)
    dense_moments = optimizer.init(dense)

    @jax.jit
    def step(small, moments):
        _, grads = nnopt.value_and_grad(loss, NONE)(small, (), X)
        updates, moments = optimizer.update(grads.train, moments, nnopt.trainable(NONE, small, ()))
        small, _ = nnopt.step(NONE, small, (), updates, grads)
        return small, moments

    for _ in range(5):
        small, moments = step(small, moments)
        slope = jax.tree.map(jnp.multiply, jax.grad(loss)(dense, X), masks)
        updates, dense_moments = optimizer.update(slope, dense_moments)
        dense = optax.apply_updates(dense, updates)
    for got, want in zip(
        jax.tree.leaves(nnopt.materialize(small)), jax.tree.leaves(dense), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(small) == jax.tree.structure(packed())


def test_tables_and_scales_of_stored_leaves_train_too():
    tx = nnopt.chain(PRUNE, nnopt.compression.codebook(4))
    small = tx.pack(PARAMS, tx.init(PARAMS))
    moving = nnopt.trainable(NONE, small, ())
    assert moving.params["body"]["kernel"].values.table.shape == (4,)
    assert moving.params["body"]["kernel"].values.indices.words is None


def test_what_is_stored_cannot_be_refined():
    for refining in (nnopt.quantization.uniform(8), nnopt.compression.codebook(4)):
        with pytest.raises(CompositionError, match="is in storage form and has nothing to refine"):
            refining.init(packed())
