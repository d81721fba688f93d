"""Differentiable k-means against NumPy, and in bounded memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.ops.clustering import kmeans
from nnopt_jax.ops.histogram import pool
from nnopt_jax.ops.lookup_tables import assign
from nnopt_jax.ops.soft_clustering import soft_assign, soft_kmeans

X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
TABLE = np.array([-1.0, 0.2, 1.5], np.float32)


def attention(x, table, width):
    """In float64, by the formula."""
    logits = -(((x.ravel()[:, None] - table[None, :]) / width) ** 2)
    parts = np.exp(logits - logits.max(1, keepdims=True))
    return parts / parts.sum(1, keepdims=True)


@pytest.mark.isa
@pytest.mark.parametrize("width", [0.1, 0.7])
def test_one_step_and_what_is_shown_are_the_formulas(width):
    near = attention(X.astype(np.float64), TABLE.astype(np.float64), width)
    np.testing.assert_allclose(
        soft_assign(X, TABLE, width), (near @ TABLE).reshape(X.shape), atol=1e-5
    )
    np.testing.assert_allclose(
        soft_kmeans(X, TABLE, width, iterations=1), near.T @ X.ravel() / near.sum(0), atol=1e-5
    )


def test_masked_values_have_no_say():
    mask = X > -0.5
    near = attention(X, TABLE, 0.4) * mask.ravel()[:, None]
    got = soft_kmeans(X, TABLE, 0.4, mask=mask, iterations=1)
    np.testing.assert_allclose(got, near.T @ X.ravel() / near.sum(0), atol=1e-5)
    other = np.where(mask, X, 9.0)
    np.testing.assert_array_equal(got, soft_kmeans(other, TABLE, 0.4, mask=mask, iterations=1))


def test_gradients_are_those_of_the_formula():
    """Three iterations and the result, written out with all pairs in memory."""
    slopes = np.cos(np.arange(30)).reshape(6, 5).astype(np.float32)

    def plain(x, table):
        for _ in range(3):
            near = jax.nn.softmax(-jnp.square((x.ravel()[:, None] - table[None, :]) / 0.5), axis=1)
            table = (x.ravel()[:, None] * near).sum(0) / near.sum(0)
        near = jax.nn.softmax(-jnp.square((x.ravel()[:, None] - table[None, :]) / 0.5), axis=1)
        return ((near * table[None, :]).sum(1).reshape(6, 5) * slopes).sum()

    def ours(x, table):
        table = soft_kmeans(x, table, 0.5, iterations=3)
        return (soft_assign(x, table, 0.5) * slopes).sum()

    for got, wanted in zip(
        jax.grad(ours, (0, 1))(X, TABLE), jax.grad(plain, (0, 1))(X, TABLE), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_narrow_width_is_hard_k_means():
    table = np.asarray(kmeans(X, 3))
    np.testing.assert_allclose(soft_assign(X, table, 1e-3), table[assign(X, table)], atol=1e-5)
    np.testing.assert_allclose(soft_kmeans(X, table, 1e-3), table, atol=1e-5)


def test_entries_that_nothing_is_near_stay():
    table = np.array([-50.0, 0.0], np.float32)
    moved = np.asarray(soft_kmeans(X, table, 0.1))
    assert moved[0] == -50
    np.testing.assert_allclose(moved[1], X.mean(), atol=1e-5)


@pytest.mark.parametrize("shape", [(), (0, 4), (3, 0)])
def test_scalars_and_empty_leaves(shape):
    shown = soft_assign(jnp.ones(shape), TABLE, 0.3)
    assert shown.shape == shape
    assert np.isfinite(soft_kmeans(jnp.ones(shape), TABLE, 0.3)).all()


def test_memory_does_not_grow_with_values_times_clusters():
    """Forward and backward: a few arrays of the values' size, where all pairs would be 256."""
    clusters = 256
    table = jax.ShapeDtypeStruct((clusters,), jnp.float32)

    def loss(x, table):
        table = soft_kmeans(x, table, 0.1, iterations=2)
        return jnp.square(soft_assign(x, table, 0.1)).sum()

    def bytes_for(size):
        x = jax.ShapeDtypeStruct((size,), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(x, table).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = bytes_for(2**16), bytes_for(2**20)
    assert large - small < 16 * 4 * 2**20
    assert small < 100 * 2**20


@pytest.mark.slow
def test_a_pool_of_arrays_is_fitted_as_one():
    """Large arrays by their atoms: the table comes as near as that of all values."""
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(300, 300)), rng.normal(3, 0.2, size=(50,)), rng.normal(size=(4, 4))]
    arrays = [x.astype(np.float32) for x in arrays]
    masks = [None, None, np.zeros((4, 4), bool)]
    values, weights = pool([jnp.asarray(x) for x in arrays], masks)
    assert values.size == 65536 + 50 + 16
    np.testing.assert_allclose(weights.sum(), 90_050)
    everything = np.concatenate([x.ravel() for x in arrays[:2]])

    def error(table):
        return np.square(everything - np.asarray(table)[assign(everything, table)]).sum()

    together, whole = kmeans(values, 8, weights=weights), kmeans(everything, 8)
    assert error(together) < 1.001 * error(whole)
