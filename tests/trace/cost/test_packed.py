"""Packed leaves cost what the packed road does with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import nnopt_jax as nnopt
from nnopt_jax.arrays import Factored

KEY = jax.random.key(0)
ROWS, WIDE, OUT = 3, 16, 8


def packed_by(tx, params):
    return tx.pack(params, tx.init(params, key=KEY))


def shapes_by(tx, params):
    return jax.eval_shape(lambda params: packed_by(tx, params), params)


def product(p, x):
    return x @ p["w"]


def cost_of(function, params, *args, latency=False, **kwargs):
    return nnopt.graph(function, params, *args, **kwargs).cost(params, latency=latency)


def of(tx, packed_by=shapes_by):
    params = {"w": jnp.arange(float(WIDE * OUT)).reshape(WIDE, OUT)}
    return cost_of(product, packed_by(tx, params), jnp.ones((ROWS, WIDE))).rows[0]


def test_codes_are_multiplied_and_cost_a_cast():
    row = of(nnopt.quantization.uniform(8, granularity="channel"))
    assert row.macs == ROWS * WIDE * OUT
    assert row.bytes == WIDE * OUT + 4 * OUT
    assert row.flops == 2 * row.macs + WIDE * OUT
    assert row.form.startswith("Quantized(")


def test_factors_are_two_thin_products():
    rank = 2
    row = of(nnopt.compression.low_rank(rank))
    assert row.macs == ROWS * WIDE * rank + ROWS * rank * OUT
    assert row.flops == 2 * row.macs
    assert row.bytes == 4 * rank * (WIDE + OUT)
    assert row.bytes_read == 4 * ROWS * (WIDE + rank)
    assert row.bytes_written == 4 * ROWS * (rank + OUT)


def test_what_is_made_dense_costs_the_making():
    shared, pruned = nnopt.compression.codebook(4), nnopt.pruning.magnitude(0.5)
    for row in (of(shared), of(pruned, packed_by)):
        assert row.macs == ROWS * WIDE * OUT
        assert row.flops > 2 * row.macs  # codes are unpacked, rows of the mask counted
        assert row.bytes < 4 * WIDE * OUT


def test_sums_are_of_one_leaf():
    chain = nnopt.chain(nnopt.quantization.uniform(8), nnopt.transfer.lora(2))
    row = of(chain)
    assert row.macs == ROWS * WIDE * OUT + ROWS * 2 * (WIDE + OUT)


def test_a_product_that_only_gradients_need_is_free():
    tx = nnopt.chain(
        nnopt.quantization.uniform(8, granularity="channel"),
        nnopt.quantization.quantize_activations(),
    )
    assert of(tx).macs == ROWS * WIDE * OUT


def test_stacked_factors_are_followed_into_their_steps():
    leaf = Factored(jnp.ones((4, 8, 2)), jnp.ones((4, 2, 8)))

    def apply(p, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0]

    row = cost_of(apply, {"w": leaf}, jnp.ones((ROWS, 8))).rows[0]
    assert row.macs == 4 * ROWS * 2 * (8 + 8)


def test_shapes_of_packed_leaves_will_do():
    params = {"w": jnp.ones((WIDE, OUT)), "table": jnp.ones((50, WIDE))}
    tx = nnopt.quantization.uniform(8)
    packed = packed_by(tx, params)
    abstract = jax.eval_shape(lambda: packed)

    def apply(p, tokens):
        return p["table"][tokens] @ p["w"]

    tokens = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    cost = cost_of(apply, abstract, tokens)
    assert cost == cost_of(apply, packed, jnp.zeros(ROWS, jnp.int32))
    by = {row.path: row for row in cost.rows}
    assert by["w"].macs == ROWS * WIDE * OUT
    assert by["table"].macs == 0
    assert by["table"].bytes_written == ROWS * WIDE + 4 * ROWS  # codes of eight bits, and scales
    dense = cost_of(apply, nnopt.materialize(packed), tokens)
    assert dense.against(cost).bytes > 3.8
