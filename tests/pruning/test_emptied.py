"""Everything in a layer pruned: zeros that can be applied, trained on, packed, saved and run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt

PARAMS = {"large": jnp.full((4, 6), 3.0), "tiny": jnp.full((6, 2), 1e-3)}
WAYS = {
    "all": nnopt.pruning.magnitude(1.0),
    "global": nnopt.pruning.magnitude(0.5, allocation="global"),
    "soft blocks": nnopt.pruning.magnitude(1.0, pattern=(2, 2), mode="soft"),
    "movement": nnopt.pruning.movement(nnopt.pruning.cubic(1.0, 1)),
}


@pytest.mark.parametrize(
    "way", ["all", *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[1:])]
)
def test_a_layer_that_is_gone(way, tmp_path):
    tx = nnopt.chain(WAYS[way], nnopt.quantization.uniform(8))
    params, state = PARAMS, tx.init(PARAMS, stats={name: PARAMS for name in tx.needs})

    def loss(params, x):
        return ((x @ params["large"] @ params["tiny"]) ** 2).sum()

    x = jnp.ones((1, 4))
    for _ in range(2):
        value, grads = nnopt.value_and_grad(loss, tx)(params, state, x)
        updates = jax.tree.map(lambda g: -1e-3 * g, grads.train)
        params, state = nnopt.step(tx, params, state, updates, grads)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, params, state)))
    shown = tx.apply(params, state)
    assert not np.asarray(shown["tiny"]).any()
    nnopt.save(tmp_path / "model.nnopt", tx.pack(params, state))
    loaded = nnopt.materialize(nnopt.load(tmp_path / "model.nnopt"))
    jax.tree.map(np.testing.assert_array_equal, loaded, shown)
