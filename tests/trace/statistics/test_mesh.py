"""Batches split over a mesh give what they give on one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nnopt_jax as nnopt

DRAW = np.random.default_rng(3)


def observe(function, params, batches, names, **settings):
    graph = nnopt.graph(function, params, batches[0])
    return graph.observe(params, batches, names, **settings)


def loss(p, x):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(layer, x.reshape(-1, 4), p["stack"])
    return jnp.square(x @ p["head"]).mean()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_totals_are_those_of_one_device(kind):
    params = {
        "stack": DRAW.normal(size=(2, 4, 4)).astype("f"),
        "head": DRAW.normal(size=(4, 2)).astype("f"),
    }
    batches = [DRAW.normal(size=(n, 3, 4)).astype("f") for n in (16, 16, 8)]
    names = (
        "input_gram", "input_moments", "input_absmax", "input_histogram", "output_moments",
        "gradient",
    )  # fmt: skip
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    traces = []

    def counted(p, x):
        traces.append(x.shape)
        return loss(p, x)

    alone = observe(loss, params, batches, names)
    split = [jax.device_put(batch, rows) for batch in batches]
    seen = observe(counted, jax.device_put(params, whole), split, names)
    assert len(traces) == 3  # for the graph, then for each shape
    for name in names:
        for path in params:
            for a, b in zip(
                jax.tree.leaves(seen[name][path]), jax.tree.leaves(alone[name][path]), strict=True
            ):
                assert a.sharding.is_fully_replicated
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert len(nnopt.graph(loss, jax.device_put(params, whole), split[0]).uses) == 2
