"""A transform that is bound to a model trains on a mesh as on one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax import Axes, parallel


def loss(params, x):
    return jnp.square(jnp.tanh(x @ params["w1"].T) @ params["w2"].T).mean()


def test_bound_patterns_on_a_mesh_are_those_of_one_device():
    draws = np.random.default_rng(0)
    params = {  # (out, in)
        "w1": jnp.asarray(draws.normal(size=(16, 8)), jnp.float32),
        "w2": jnp.asarray(draws.normal(size=(4, 16)), jnp.float32),
    }
    x = jnp.asarray(draws.normal(size=(8, 8)), jnp.float32)
    tx = nnopt.pruning.magnitude(pattern="2:4").bind(axes={"*": Axes(1, 0)})
    found = []
    for axes in ({"data": 1}, {"fsdp": 4}):
        count = int(np.prod(list(axes.values())))
        mesh = parallel.mesh(devices=jax.devices()[:count], **axes)
        plan = parallel.specs(params, mesh, [], least=0)
        run = parallel.train_step(loss, optax.sgd(0.1), tx, plan=plan)
        state, _ = run(run.init(params), x)
        found.append(jax.tree.map(np.asarray, (state.params, state.state.rest)))
    one, many = found
    for path, leaf in params.items():
        mask = one[1][path]["mask"]
        assert (mask.reshape(leaf.shape[0], -1, 4).sum(2) == 2).all()
        np.testing.assert_array_equal(many[1][path]["mask"], mask)
        np.testing.assert_allclose(many[0][path], one[0][path], rtol=1e-5, atol=1e-6)
