"""Tensor parallelism that follows from the graph of a model."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt


class Block(nn.Module):
    """Attention of four heads and a gated feed-forward network, behind normalization."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="first")(x)
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(y)
        y = nn.LayerNorm(name="second")(x)
        hidden = nn.silu(nn.Dense(24, name="gate")(y)) * nn.Dense(24, name="up")(y)
        return x + nn.Dense(16, name="down")(hidden)


MODEL, X = Block(), jnp.ones((2, 5, 16))
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), X)["params"]


def apply(params, x):
    return MODEL.apply({"params": params}, x)


GRAPH = nnopt.graph(apply, PARAMS, X)


def test_units_and_heads_are_split_together():
    mesh = nnopt.parallel.mesh(model=4, data=2)
    plan = nnopt.parallel.specs(PARAMS, mesh, graph=GRAPH)
    split = {row.path: tuple(row.spec) for row in plan.rows if any(row.spec)}
    heads = {
        f"attention/{name}/{leaf}": (None, "model") if leaf == "kernel" else ("model",)
        for name in ("query", "key", "value")
        for leaf in ("kernel", "bias")
    }
    units = {
        f"{name}/{leaf}": (None, "model") if leaf == "kernel" else ("model",)
        for name in ("gate", "up")
        for leaf in ("kernel", "bias")
    }
    rows = {"attention/out/kernel": ("model",), "down/kernel": ("model",)}
    assert split == heads | units | rows
    assert {row.reason for row in plan.rows if any(row.spec)} <= {*GRAPH.coupled.names}


def test_it_computes_what_one_device_does():
    mesh = nnopt.parallel.mesh(model=4, data=2)
    plan = nnopt.parallel.specs(PARAMS, mesh, graph=GRAPH)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
    found = jax.jit(apply)(jax.device_put(PARAMS, plan.shardings), x)
    np.testing.assert_allclose(found, jax.jit(apply)(PARAMS, x), rtol=1e-5, atol=1e-5)


def test_what_does_not_divide_stays_whole():
    mesh = nnopt.parallel.mesh(model=8)
    plan = nnopt.parallel.specs(PARAMS, mesh, graph=GRAPH)
    split = {row.path for row in plan.rows if any(row.spec)}
    assert split == {"gate/kernel", "gate/bias", "up/kernel", "up/bias", "down/kernel"}


def test_rules_come_first():
    mesh = nnopt.parallel.mesh(model=4, data=2)
    plan = nnopt.parallel.specs(PARAMS, mesh, [("down/kernel", None)], graph=GRAPH)
    assert not any(plan.specs["down"]["kernel"])


def test_gates_in_one_kernel_are_not_cut_apart():
    """Halves of a kernel that belong to the same units lie on other devices: it stays whole."""

    def fused(p, x):
        gate, up = jnp.split(x @ p["in"], 2, -1)
        return jax.nn.silu(gate) * up @ p["out"]

    params = {"in": jnp.ones((6, 16)), "out": jnp.ones((8, 4))}
    graph = nnopt.graph(fused, params, jnp.ones((3, 6)))
    plan = nnopt.parallel.specs(params, nnopt.parallel.mesh(model=4, data=2), graph=graph)
    assert not any(any(row.spec) for row in plan.rows)
