"""What is counted is what XLA counts of the program, as it is written and as it is compiled.

Equal to the last operation, where the compiler computes what was written: convolutions are not
padded here (XLA leaves products with padding out), stacks are unrolled (it counts the body of a
loop once). What is left over are a few scalars that it folds, hence a thousandth for attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import nnopt_jax as nnopt

KEY = jax.random.key(0)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2), padding="VALID")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=4, padding="VALID")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, padding="VALID")(x))
        x = nn.relu(nn.Conv(8, (2, 2), kernel_dilation=2, padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(32)(nn.relu(nn.Dense(64)(x))), None


class Stacked(nn.Module):
    unroll: int = 3

    @nn.compact
    def __call__(self, x):
        over = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            unroll=self.unroll,
        )
        return over()(x, None)[0]


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.LSTMCell(16), unroll=5)(x)


NETWORKS = {
    "dense": (Dense(), jnp.ones((8, 20)), 0),
    "convolutions": (Convolutions(), jnp.ones((2, 20, 20, 3)), 0),
    "attention": (Attention(), jnp.ones((2, 10, 32)), 1e-3),
    "stacked": (Stacked(), jnp.ones((8, 32)), 0),
    "recurrent": (Recurrent(), jnp.ones((4, 5, 8)), 0),
}


def flops_of(function, *args, compiled=True):
    lowered = jax.jit(function).lower(*args)
    return (lowered.compile() if compiled else lowered).cost_analysis()["flops"]


def cost_of(function, params, *args, latency=False, **kwargs):
    return nnopt.graph(function, params, *args, **kwargs).cost(params, latency=latency)


def shapes_of(module, x):
    return jax.eval_shape(module.init, KEY, x)


COMPILED = [False, pytest.param(True, marks=pytest.mark.slow)]
"""Counted as it was written, every day; and as it is compiled, which takes its time."""


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, compiled):
    module, x, most = NETWORKS[name]
    params = shapes_of(module, x)
    found = cost_of(module.apply, params, x)
    assert not found.notes
    counted = flops_of(module.apply, params, x, compiled=compiled)
    assert found.flops == pytest.approx(counted, rel=most, abs=0)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("name", ["dense", "convolutions"])
@pytest.mark.parametrize("tx", [nnopt.quantization.uniform(8), nnopt.compression.low_rank(4)])
def test_packed_networks(name, tx, compiled):
    module, x, _ = NETWORKS[name]
    params = shapes_of(module, x)
    packed = jax.eval_shape(lambda p: tx.pack(p, tx.init(p, key=KEY)), params)
    found = cost_of(module.apply, packed, x)
    assert found.flops == flops_of(nnopt.on_packed(module.apply), packed, x, compiled=compiled)


def test_a_compiled_product():
    w, x = jnp.ones((32, 16)), jnp.ones((8, 32))
    assert cost_of(lambda w, x: x @ w, w, x).flops == flops_of(lambda w, x: x @ w, w, x)


def test_a_loop_costs_what_it_costs_unrolled():
    _, x, _ = NETWORKS["stacked"]
    params = shapes_of(Stacked(), x)
    unrolled = cost_of(Stacked().apply, params, x)
    assert cost_of(Stacked(unroll=1).apply, params, x) == unrolled


def test_of_padded_images_xla_counts_the_inside():
    x, w = jnp.ones((2, 12, 12, 3)), jnp.ones((3, 3, 3, 4))

    def apply(w, x):
        return lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    places = 2 * np.arange(6)[:, None] + np.arange(3)  # of six windows; the last one sticks out
    inside = int(np.sum(places < 12)) ** 2
    assert flops_of(apply, w, x) == 2 * 2 * inside * 3 * 4
    assert cost_of(apply, w, x).flops == 2 * 2 * (6 * 3) ** 2 * 3 * 4


def test_single_steps():
    x = jnp.full((7, 5), 0.5)  # of a weak type: a cast to a strong one is none
    places, along = jnp.array([[0], [1]]), lax.ScatterDimensionNumbers((1,), (0,), (0,))
    steps = {
        "cast": lambda x: x.astype(jnp.int32),
        "power": lambda x: lax.integer_pow(x, 5),
        "logistic": jax.nn.sigmoid,
        "sum": lambda x: x.sum(0),
        "maximum": lambda x: x.max(),
        "window": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID"),
        "scattered": lambda x: lax.scatter_add(x, places, jnp.ones((2, 5)), along),
        "either": lambda x: jnp.where(x > 0, x, 2 * x),
        "moved": lambda x: jnp.concatenate([x.T.reshape(7, 5), x[::-1]]),
    }

    for name, step in steps.items():
        found = cost_of(step, x)
        counted = jax.jit(step).lower(x).cost_analysis() or {}
        assert found.flops == (counted.get("flops") or 0), name
        assert found.transcendentals == (counted.get("transcendentals") or 0), name
