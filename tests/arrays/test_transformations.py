"""Packed trees under jit, vmap, eval_shape, grad and device_put on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import nnopt_jax as nnopt
from nnopt_jax.arrays import is_node

WHERE = "**/kernel"
CHAINS = {
    "prune": nnopt.pruning.magnitude(0.75, where=WHERE),
    "all": nnopt.chain(
        nnopt.pruning.magnitude(0.5, where=WHERE),
        nnopt.compression.codebook(4, where=WHERE),
        nnopt.quantization.uniform(8, where=WHERE),
    ),
}


@pytest.fixture(scope="module", params=CHAINS)
def packed(request):
    """Parameters packed by a chain, and the dense ones they came from."""
    params = {
        "body": {
            "kernel": jax.random.normal(jax.random.key(0), (32, 16)),
            "bias": jnp.ones((1, 16)),
        },
        "head": {"kernel": jax.random.normal(jax.random.key(1), (16, 8))},
    }
    tx = CHAINS[request.param]
    return tx.pack(params, jax.jit(tx.init)(params)), params


def apply(params, x):
    params = nnopt.materialize(params)
    return (
        jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"]) @ params["head"]["kernel"]
    )


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_jit_takes_and_returns_nodes(packed):
    tree, _ = packed
    same(jax.jit(lambda x: x)(tree), tree)


def test_eval_shape_keeps_the_nodes_and_their_logical_shapes(packed):
    tree, params = packed
    abstract = jax.eval_shape(lambda: tree)
    assert jax.tree.structure(abstract) == jax.tree.structure(tree)
    dense = jax.eval_shape(nnopt.materialize, abstract)
    assert jax.tree.map(jnp.shape, dense) == jax.tree.map(jnp.shape, params)
    for leaf, wanted in zip(
        jax.tree.leaves(abstract, is_leaf=is_node), jax.tree.leaves(params), strict=True
    ):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)


def test_vmap_over_stacked_members(packed):
    tree, _ = packed
    inputs = jax.random.normal(jax.random.key(2), (3, 4, 32))
    members = jax.tree.map(lambda x: jnp.stack([x] * 3), tree)
    one = jax.jit(apply)
    expected = np.stack([one(tree, x) for x in inputs])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(apply))(members, inputs), expected, rtol=1e-5, atol=1e-5
    )


def test_gradients_flow_through_the_float_fields(packed):
    tree, _ = packed
    floats, rest = [], []
    for leaf in jax.tree.leaves(tree):
        (floats if jnp.issubdtype(leaf.dtype, jnp.floating) else rest).append(leaf)

    def loss(floats):
        left, right = iter(floats), iter(rest)
        leaves = [
            next(left if jnp.issubdtype(leaf.dtype, jnp.floating) else right)
            for leaf in jax.tree.leaves(tree)
        ]
        return apply(jax.tree.unflatten(jax.tree.structure(tree), leaves), jnp.ones((2, 32))).sum()

    grads = jax.jit(jax.grad(loss))(floats)
    assert [g.shape for g in grads] == [x.shape for x in floats]
    assert all(np.isfinite(g).all() for g in grads)
    assert any(np.abs(g).max() > 0 for g in grads)


def test_specs_of_the_dense_leaves_place_the_packed_ones(packed):
    tree, _ = packed
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "body": {"kernel": P("data", "model"), "bias": P(None, "model")},
        "head": {"kernel": P("model", None)},
    }
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        nnopt.packed_specs(tree, specs, mesh),
        is_leaf=lambda x: isinstance(x, P),
    )
    placed = jax.device_put(tree, shardings)
    same(placed, tree)
    same(jax.jit(nnopt.materialize)(placed), jax.jit(nnopt.materialize)(tree))
    same(jax.jit(lambda x: x, out_shardings=shardings)(tree), tree)
    x = jax.random.normal(jax.random.key(3), (4, 32))
    np.testing.assert_allclose(jax.jit(apply)(placed, x), jax.jit(apply)(tree, x), rtol=1e-5)
    per_device = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert per_device < sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(placed))
