"""Annotations of where arrays lie and how gradients flow: they are identities, and may be cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

import nnopt_jax as nnopt

MESH = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def drawn(*shape, seed=0):
    rng = np.random.default_rng((seed, *shape))
    return jnp.asarray(rng.normal(size=shape, scale=0.5).astype(np.float32))


def constrained(x):
    return lax.with_sharding_constraint(x, NamedSharding(MESH, PartitionSpec(None, "model")))


def half(graph):
    rng = np.random.default_rng(0)
    return {
        each.name: np.sort(rng.permutation(each.size)[: each.size // 2])
        for each in graph.coupled.dimensions
    }


def check_shrunk(graph, params, *args):
    """Without half of the units it is as with zeros in their place, which is another function."""
    keep = half(graph)

    @jax.jit
    def outcomes(params, *args):
        small = graph.shrink(params, keep)
        masked = graph.apply(graph.mask(params, keep), *args)
        return small.apply(small.params, *args), masked, graph.apply(params, *args)

    small, masked, whole = outcomes(params, *args)
    scale = np.abs(masked).max()
    np.testing.assert_allclose(small, masked, rtol=0, atol=1e-6 * scale)
    assert np.abs(masked - whole).max() > 1e-2 * scale
    return graph.shrink(params, keep)


PARAMS = {"a": drawn(3, 10), "bias": drawn(10), "b": drawn(10, 4)}
X = drawn(6, 3)

IDENTITIES = {
    "sharding constraint": constrained,
    "device put": lambda x: jax.device_put(x, jax.devices()[0]),
    "barrier": lax.optimization_barrier,
    "checkpoint name": lambda x: checkpoint_name(x, "hidden"),
    "stop gradient": lax.stop_gradient,
    "copy": jnp.copy,
    "precision": lambda x: lax.reduce_precision(x, 8, 10),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_pass_units_and_what_they_leave(name):
    """The mean counts sigmoids of zero: what removed units leave goes through the identity."""

    def apply(p, x):
        same = IDENTITIES[name]
        hidden = same(jax.nn.sigmoid(x @ p["a"]))
        return same(hidden.mean(-1, keepdims=True)) * (same(x @ p["a"]) @ p["b"])

    graph = nnopt.graph(apply, PARAMS, X)
    assert {each.name: each.size for each in graph.coupled.dimensions} == {"a:1": 10}
    check_shrunk(graph, PARAMS, X)


def test_constraints_that_no_longer_divide_run_with_and_without_jit():
    graph = nnopt.graph(lambda p, x: constrained(x @ p["a"]) @ p["b"], PARAMS, X)
    small = graph.shrink(PARAMS, {"a:1": [0, 3, 7]})
    at = np.array([0, 3, 7])
    wanted = np.asarray(X) @ np.asarray(PARAMS["a"])[:, at] @ np.asarray(PARAMS["b"])[at]
    np.testing.assert_allclose(jax.jit(small.apply)(small.params, X), wanted, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(small.apply(small.params, X), wanted, rtol=2e-5, atol=2e-6)


class Annotated(nn.Module):
    """One kernel for queries, keys and values, and constraints wherever a partitioner has them."""

    heads: int = 4
    size: int = 6

    @nn.compact
    def __call__(self, x):
        width = self.heads * self.size
        boxed = lambda *axes: nn.with_partitioning(nn.initializers.normal(0.4), axes)  # noqa: E731
        x = constrained(nn.Dense(16, kernel_init=boxed(None, "model"))(x))
        qkv = nn.Dense(3 * width, kernel_init=boxed(None, "model"), name="qkv")(x)
        parts = (
            constrained(part).reshape(-1, self.heads, self.size)
            for part in jnp.split(checkpoint_name(qkv, "qkv"), 3, -1)
        )
        q, k, v = parts
        weights = nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        y = constrained(jnp.einsum("hqk,khd->qhd", weights, v).reshape(-1, width))
        x = x + nn.Dense(16, kernel_init=boxed("model", None), name="out")(y)
        y = constrained(nn.gelu(nn.Dense(20, kernel_init=boxed(None, "model"))(x)))
        return nn.Dense(3)(x + nn.Dense(16, kernel_init=boxed("model", None))(y))


@pytest.mark.parametrize("annotated", [True, False])
def test_an_annotated_flax_model_of_fused_attention(annotated, monkeypatch):
    """With annotations and without the same units are found, and the model can be cut."""
    if not annotated:
        monkeypatch.setitem(globals(), "constrained", lambda x: x)
    model, x = Annotated(), drawn(5, 8)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), x))
    graph = nnopt.graph(model.apply, params, x)
    assert {each.name: each.size for each in graph.coupled.dimensions} == {
        "params/Dense_0/kernel:1": 16,
        "params/Dense_1/kernel:1": 20,
        "params/qkv/kernel:1": 4,  # heads
        "params/qkv/kernel:1#2": 6,  # dimensions of values
        "params/qkv/kernel:1#3": 6,  # dimensions of queries and keys
    }
    small = check_shrunk(graph, params, x)
    assert small.widths["params/qkv/kernel"] == (8, 3 * 2 * 3)
    assert small.widths["params/Dense_1/kernel"] == (8, 10)
