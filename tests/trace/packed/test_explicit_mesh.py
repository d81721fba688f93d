"""Over a mesh with Explicit axes packed leaves have the types that their arrays have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nnopt_jax as nnopt

W8 = nnopt.quantization.uniform(8, granularity="channel")
TRANSFORMS = {
    "int8": W8,
    "4-bit groups": nnopt.quantization.uniform(4, group=4),
    "nf4": nnopt.quantization.nf4(group=4),
    "low rank": nnopt.compression.low_rank(2),
    "rounded inputs": nnopt.chain(W8, nnopt.quantization.quantize_activations(8)),
}


def mesh():
    return jax.make_mesh((2, 4), ("data", "model"), (AxisType.Explicit,) * 2)


def put(x, *spec):
    return jax.device_put(x, NamedSharding(mesh(), PartitionSpec(*spec)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_hidden_units_stay_split(name):
    """Through jitted and custom derivative functions, which keep the types they were traced at."""
    tx = TRANSFORMS[name]
    params = {"w": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)}
    packed = tx.pack(params, tx.init(params))
    specs = nnopt.packed_specs(packed, {"w": PartitionSpec(None, "model")}, mesh())
    split = jax.tree.map(lambda x, spec: put(x, *spec), packed, specs)
    x = put(jnp.arange(32.0).reshape(4, 8), "data")
    run = jax.jit(nnopt.on_packed(lambda p, x: jax.nn.silu(jax.nn.relu(x @ p["w"]))))
    found = run(split, x)
    assert jax.typeof(found).sharding.spec == PartitionSpec("data", "model")
    np.testing.assert_allclose(found, run(packed, np.asarray(x)), rtol=1e-5, atol=1e-4)


def test_a_lookup_says_where_its_outcome_lies():
    params = {"table": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)}
    packed = W8.pack(params, W8.init(params))
    held, ids = put(packed), put(jnp.arange(10).reshape(2, 5), "data")
    with pytest.raises(Exception, match=r"Use `\.at\[\.\.\.\]\.get\(out_sharding=\)`"):
        jax.jit(nnopt.on_packed(lambda p, ids: p["table"][ids]))(held, ids)
    where = PartitionSpec("data")
    with jax.set_mesh(mesh()):
        run = nnopt.on_packed(lambda p, ids: p["table"].at[ids].get(out_sharding=where))
        found = jax.jit(run)(held, ids)
    assert jax.typeof(found).sharding.spec == PartitionSpec("data", None, None)
    np.testing.assert_allclose(found, nnopt.materialize(packed)["table"][np.asarray(ids)])
